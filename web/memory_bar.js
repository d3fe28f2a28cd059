// Memory bars, one for each device and one for the host: their contents, and a mark at the budget of the workflow, or else at the
// sum of the components' budgets.
import { element, keptParts, legendKey, setAttribute, setText } from './dom.js';
import { bytes } from './format.js';

/** The element with all bars. */
export function memoryBars(say) {
  const root = element('div', { class: 'lwo-memory' });
  const show = keptParts(root, ({ parts }) => memoryBar(say, Object.keys(parts)));
  return {
    root,
    /** `component`: the focused one; while it is only planned, its device is shown as predicted for its run. */
    update({ devices, host, components }, component) {
      const bars = devices.map((device) => {
        const planned = component?.planned && component.device === device.name;
        return [`device ${device.name}`, planned ? plannedPart(device, component, say) : devicePart(device, components)];
      });
      show(host ? [...bars, ['host', hostPart(host, say, components)]] : bars);
    },
  };
}

/** The largest number that was set for the whole workflow, by components that are `here`; null without one. */
function ofTheWorkflow(components, name, here = () => true) {
  const numbers = components.filter(here).map(({ settings }) => settings?.[name]?.value).filter(Number.isFinite);
  return numbers.length ? Math.max(...numbers) : null;
}

/** The contents of a device's bar in bytes. `ceiling`: the workflow's budget, or the sum of the loaded components'; null without one. */
export function devicePart(device, components) {
  const { total_bytes: total, free_bytes: free, resident_bytes: resident, loose_bytes: loose, ring_bytes: ring } = device;
  const isHere = (component) => component.loaded && component.device === device.name;
  const budgets = components.filter(isHere).map((component) => component.budget_bytes).filter(Number.isFinite);
  const sum = budgets.length ? budgets.reduce((all, budget) => all + budget) : null;
  const budget = ofTheWorkflow(components, 'workflow_budget_bytes', isHere) ?? sum;
  const ceiling = budget === null ? null : Math.min(budget, total);
  return { title: device.name, total, free, ceiling, parts: { resident, loose, ring, others: device.others_bytes } };
}

/** As `devicePart`, predicted for the run of a planned component; what others hold is assumed to stay the same. */
export function plannedPart(device, component, say) {
  const { total_bytes: total, free_bytes: free } = device;
  const { resident_bytes: resident, loose_bytes: loose, ring_bytes: ring } = component.plan;
  return {
    title: `${device.name} · ${say('memory.planned', { component: component.component })}`,
    total,
    free: Math.max(0, free - resident - loose - ring),
    ceiling: Math.min(ofTheWorkflow([component], 'workflow_budget_bytes') ?? component.budget_bytes, total),
    parts: { resident, loose, ring, others: total - free },
  };
}

/** The contents of the host's bar in bytes. Mapped files do not count as used: the system can reclaim their pages. */
export function hostPart(host, say, components = []) {
  const { total_bytes: total, available_bytes: free, pinned_bytes: pinned, pageable_bytes: pageable } = host;
  const others = Math.max(0, total - free - pinned - pageable);
  return { title: say('memory.host'), total, free, ceiling: ofTheWorkflow(components, 'workflow_host_bytes'), parts: { pinned, pageable, mapped: host.mapped_bytes, others } };
}

function memoryBar(say, names) {
  const title = element('span', { class: 'lwo-bar-title' });
  const free = element('span', { class: 'lwo-bar-free' });
  const shownParts = names.map((name) => {
    const word = say(`memory.${name}`);
    const value = element('b');
    const segment = element('span', { class: `lwo-segment lwo-${name}` });
    return { name, word, value, segment, key: legendKey(`lwo-${name}`, word, ' ', value) };
  });
  const mark = element('span', { class: 'lwo-ceiling' });
  const ceiling = element('b');
  const ceilingKey = legendKey('lwo-ceiling-key', say('memory.ceiling'), ' ', ceiling);
  const track = element('div', { class: 'lwo-track', role: 'img' }, ...shownParts.map(({ segment }) => segment), mark);
  const legend = element('div', { class: 'lwo-keys' }, ...shownParts.map(({ key }) => key), ceilingKey);
  return {
    root: element('div', {}, element('div', { class: 'lwo-bar-head' }, title, free), track, legend),
    update(data) {
      setText(title, data.title);
      setText(free, say('memory.free', { free: bytes(data.free), total: bytes(data.total) }));
      const share = (value) => `${(100 * Math.min(1, Math.max(0, value / (data.total || 1)))).toFixed(2)}%`;
      for (const { name, word, value, segment, key } of shownParts) {
        const size = data.parts[name];
        segment.style.width = share(size ?? 0);
        segment.title = `${word}: ${bytes(size)}`;
        setText(value, bytes(size));
        key.hidden = !size && name !== 'others';
      }
      mark.hidden = ceilingKey.hidden = data.ceiling === null;
      mark.style.left = share(data.ceiling);
      mark.title = `${say('memory.ceiling')}: ${bytes(data.ceiling)}`;
      setText(ceiling, bytes(data.ceiling));
      const words = shownParts.map(({ word, value }) => `${word} ${value.textContent}`);
      setAttribute(track, 'aria-label', `${data.title}: ${words.join(', ')}; ${free.textContent}`);
    },
  };
}
