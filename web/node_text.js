// What a node says: what became of each of its components, of which source, and what it takes; on the Report node, the report.
import { element } from './dom.js';
import { bytes } from './format.js';
import { isSet, placementWidget } from './model.js';
import { DECLARED_AS } from './tables.js';
import { noticeLines, sentence } from './words.js';

const ORDER = ['dit', 'text_encoder', 'image_encoder', 'vae', 'controlnet', 'model_patch', 'audio_encoder', 'upscaler', 'latent_upscaler', 'frame_interpolator'];

/** The group a component's name belongs to: `dit_2` and `audio_vae` are shown where `dit` and `vae` are asked for. */
export function kindOf(component) {
  const base = component.replace(/_\d+$/, '');
  return DECLARED_AS[base] ?? base;
}

/** What a node's widget sets for a component; null where that is `auto`, or no widget. */
function setOnNode(node, component) {
  const widget = placementWidget(node, kindOf(component));
  return widget === 'auto' ? null : widget;
}

/** One line about a resolved component: {placement, rest, title, warned}. `resolved`: as in the message of that name. */
export function line(say, node, resolved) {
  const { component, source, budget_bytes, budget_source, device_bytes } = resolved;
  const placement = setOnNode(node, component) ? resolved.placement : `auto → ${resolved.placement}`;
  const size = Number.isFinite(device_bytes) ? bytes(device_bytes) : '';
  const used = Number.isFinite(budget_bytes) && isSet(budget_source) ? say('node.used_of', { used: bytes(device_bytes), budget: bytes(budget_bytes) }) : size;
  const warnings = noticeLines(say, resolved.notices, resolved.warnings);
  const stored = resolved.peer_bytes ? say('node.stored', { size: bytes(resolved.peer_bytes), device: resolved.peer_device }) : '';
  const rest = [source && say(`source.${source}`), used, stored].filter(Boolean).join(' · ');
  const title = [`${component}: ${placement}`, rest, sentence(say, resolved.why, resolved.reason), ...warnings]; // a narrow node cuts the line
  return { placement, rest, title: title.filter(Boolean).join('\n'), warned: warnings.length > 0 };
}

/** The element of a node's text; `show(list)` fills it from resolved components, which it keeps as `resolved`. */
export function nodeText(say, node) {
  const root = element('div', { class: 'lwo-node' });
  const order = ({ component }) => ORDER.indexOf(kindOf(component));
  const lineOf = (resolved) => {
    const { placement, rest, title, warned } = line(say, node, resolved);
    return element(
      'div',
      { class: 'lwo-node-line', title },
      element('span', { class: 'lwo-node-name', text: resolved.component }),
      element('b', { text: placement }),
      element('span', { class: 'lwo-node-rest', text: rest }),
      warned ? element('span', { class: 'lwo-node-mark', text: '⚠', role: 'img', 'aria-label': title }) : null,
    );
  };
  const text = {
    root,
    resolved: [],
    show(list) {
      text.resolved = list;
      root.replaceChildren(...[...list].sort((a, b) => order(a) - order(b)).map(lineOf));
      if (list.length) return;
      root.append(element('div', { class: 'lwo-node-line lwo-quiet', text: say('node.not_run'), title: say('node.not_run.tip') }));
    },
  };
  text.show([]);
  return text;
}

/** The element of the Report node's text; `show(output)` fills it from the node's output, null before the first run. */
export function reportText(say) {
  // the app's page leaves the wheel to what says so and has the focus
  const root = element('div', { class: 'lwo-node lwo-report', tabindex: 0, 'data-capture-wheel': 'true' });
  const show = (output) => {
    const text = (output?.text ?? []).join('\n');
    root.classList.toggle('lwo-quiet', !text);
    root.textContent = text || say('node.no_report');
  };
  show(null);
  return { root, show };
}

/** What the report says, as the `resolved` message would, about those components for which `isOfNode` holds. */
export function fromReport(report, node, isOfNode) {
  const ours = report.components.filter(isOfNode).map(({ component, settings, summary, budget_bytes, warnings, notices }) => {
    const { value = 'layerwise', source = null, reason = '', why = null } = settings?.placement ?? {};
    const budget_source = settings?.budget_bytes?.source ?? null;
    const { peak_device_bytes: device_bytes, peer_bytes, peer_device } = summary ?? {};
    return { component, placement: value, source, reason, why, budget_bytes, budget_source, device_bytes, peer_bytes, peer_device, warnings, notices };
  });
  const others = (report.bystanders ?? []).filter(isOfNode).map(({ component, reason, why }) => {
    const placement = setOnNode(node, component); // the report of a bystander has its reason, and no source
    return { component, placement: placement ?? 'whole', source: placement && 'node', reason, why };
  });
  return [...ours, ...others];
}
