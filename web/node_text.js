// What a node says about itself: for each of its components, what `auto` came to, which source set it, and what it takes; on the
// Report node, the report.
// Makes elements and texts; where they go on the node is app-side business of layerwise_offload.js.
import { element } from './dom.js';
import { bytes } from './format.js';
import { isOfNode, kindsOf, placementWidget } from './model.js';
import { DECLARED_AS } from './tables.js';
import { noticeLines, sentence } from './words.js';

export const LINE_HEIGHT = 20;
export const MARGIN = 6;

/** The group a component's name belongs to: `dit_2` and `audio_vae` are shown where `dit` and `vae` are asked for. */
export function kindOf(component) {
  const base = component.replace(/_\d+$/, '');
  return DECLARED_AS[base] ?? base;
}

/** One line about a resolved component: {text, title, warned}. `resolved`: as in the message of that name. */
export function line(say, node, resolved) {
  const widget = placementWidget(node, kindOf(resolved.component));
  const isAuto = widget === null || widget === 'auto';
  const placement = isAuto ? `auto → ${resolved.placement}` : resolved.placement;
  const used = Number.isFinite(resolved.budget_bytes)
    ? say('node.used_of', { used: bytes(resolved.device_bytes), budget: bytes(resolved.budget_bytes) })
    : Number.isFinite(resolved.device_bytes) ? bytes(resolved.device_bytes) : '';
  const warnings = noticeLines(say, resolved.notices, resolved.warnings);
  const rest = [resolved.source && say(`source.${resolved.source}`), used].filter(Boolean).join(' · ');
  const title = [`${resolved.component}: ${placement}`, rest, sentence(say, resolved.why, resolved.reason), ...warnings].filter(Boolean).join('\n'); // a narrow node cuts the line
  return { component: resolved.component, placement, rest, title, warned: warnings.length > 0 };
}

/** The element of a node's text; `show(list)` fills it from resolved components, empty before the first run. */
export function nodeText(say, node) {
  const root = element('div', { class: 'lwo-node' });
  const show = (resolved) => {
    const lines = [...resolved].sort((a, b) => order(a.component) - order(b.component)).map((message) => {
      const { component, placement, rest, title, warned } = line(say, node, message);
      return element(
        'div',
        { class: `lwo-node-line${warned ? ' lwo-warned' : ''}`, title },
        element('span', { class: 'lwo-node-name', text: component }),
        element('b', { text: placement }),
        element('span', { class: 'lwo-node-rest', text: rest }),
        warned ? element('span', { class: 'lwo-node-mark', text: '⚠', role: 'img', 'aria-label': title }) : null,
      );
    });
    if (!lines.length) lines.push(element('div', { class: 'lwo-node-line lwo-quiet', text: say('node.not_run'), title: say('node.not_run.tip') }));
    root.replaceChildren(...lines);
  };
  show([]);
  return { root, show };
}

/** The element of the Report node's text; `show(text)` fills it, empty before the first run. */
export function reportText(say) {
  // the app's page leaves the wheel to what says so and has the focus
  const root = element('div', { class: 'lwo-node lwo-report', tabindex: 0, 'data-capture-wheel': 'true' });
  const show = (text) => {
    root.classList.toggle('lwo-quiet', !text);
    root.textContent = text || say('node.no_report');
  };
  show('');
  return { root, show };
}

const ORDER = ['dit', 'text_encoder', 'image_encoder', 'vae', 'controlnet'];
const order = (component) => ORDER.indexOf(kindOf(component));

/** The least height of a report; it takes what the node has. */
export const REPORT_HEIGHT = 2 * MARGIN + 5 * LINE_HEIGHT;

/** The height of the text of a node, the same before and after a run, so that no run changes a node's size. */
export const heightFor = (node) => 2 * MARGIN + LINE_HEIGHT * Math.max(1, kindsOf(node).length);

/** What the report says about the components of `node`, whose id in the prompt is `id`, as the `resolved` message would. */
export function fromReport(report, node, id) {
  const isOfThis = (component) => isOfNode(component, id);
  const ours = report.components.filter(isOfThis).map(({ component, settings, summary, budget_bytes, warnings, notices }) => {
    const { value = 'layerwise', source = null, reason = '', why = null } = settings?.placement ?? {};
    const device_bytes = summary?.peak_device_bytes ?? null;
    return { component, placement: value, source, reason, why, budget_bytes, device_bytes, warnings, notices };
  });
  const others = (report.bystanders ?? []).filter(isOfThis).map(({ component, reason, why }) => {
    const widget = placementWidget(node, kindOf(component));
    const isSet = widget !== null && widget !== 'auto'; // the report of a bystander has its reason, and no source
    return { component, placement: isSet ? widget : 'whole', source: isSet ? 'node' : null, reason, why, warnings: [] };
  });
  return [...ours, ...others];
}
