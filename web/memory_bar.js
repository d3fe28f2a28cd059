// Memory bars, one for each device and one for the host: their contents, and a mark at the budget, where one was set. The
// workflow's budget is a bar of its own, in which each component has its share.
import { element, keptParts, legendKey, setAttribute, setText } from './dom.js';
import { bytes } from './format.js';
import { isSet } from './model.js';

const SHADES = 4; // in the style sheet
const NOTHING = { resident_bytes: 0, loose_bytes: 0, ring_bytes: 0 };

/** The element with all bars. */
export function memoryBars(say) {
  const root = element('div', { class: 'lwo-memory' });
  const show = keptParts(root, (data) => memoryBar(say, data));
  return {
    root,
    /** `component`: the focused one; while it is only planned, its device is shown as predicted for its run. */
    update({ devices, host, components, ahead }, component) {
      const isNew = ({ name }) => !devices.some((device) => device.name === name); // none of our components is on it yet
      const further = component?.planned ? (ahead?.devices ?? []).filter(isNew) : [];
      const bars = [...devices, ...further].flatMap((device) => {
        const planned = component?.planned && component.device === device.name ? component : null;
        const stores = component?.planned && component.plan?.peer_device === device.name;
        const whole = [`device ${device.name}`, planned || stores ? plannedPart(device, component, say) : devicePart(device)];
        const shared = workflowPart(device, components, planned, say);
        return shared ? [whole, [`workflow ${device.name} ${Object.keys(shared.parts)}`, shared]] : [whole];
      });
      show(host ? [...bars, ['host', hostPart(host, say, components)]] : bars);
    },
  };
}

/** The largest number that was set for the whole workflow; null without one. */
function ofTheWorkflow(components, name) {
  const numbers = components.map(({ settings }) => settings?.[name]?.value).filter(Number.isFinite);
  return numbers.length ? Math.max(...numbers) : null;
}

/** The contents of a device's bar in bytes. `ceiling`: the budget that was set, as the server says; null without one. */
export function devicePart(device) {
  const { total_bytes: total, free_bytes: free, resident_bytes: resident, loose_bytes: loose, ring_bytes: ring, stored_bytes: stored } = device;
  return { title: device.name, total, free, ceiling: device.budget_bytes ?? null, parts: { resident, loose, ring, stored, others: device.others_bytes } };
}

/** The budget that was set for a component, as the server says it of a device: the workflow's, else its own; null without one. */
function budgetSet({ settings = {} }) {
  const set = [settings.workflow_budget_bytes, settings.budget_bytes].find((budget) => isSet(budget?.source) && Number.isFinite(budget.value));
  return set?.value ?? null;
}

/**
 * As `devicePart`, predicted for the run of a planned component, which computes on the device or has layers there; what others
 * hold is assumed to stay the same.
 */
export function plannedPart(device, component, say) {
  const { total_bytes: total, free_bytes: free } = device;
  const computes = component.device === device.name;
  const { resident_bytes: resident, loose_bytes: loose, ring_bytes: ring } = computes ? component.plan : NOTHING;
  const stored = component.plan.peer_device === device.name ? component.plan.peer_bytes : 0;
  const budget = computes ? budgetSet(component) : null;
  return {
    title: `${device.name} · ${say('memory.planned', { component: component.component })}`,
    total,
    free: Math.max(0, free - resident - loose - ring - stored),
    ceiling: budget === null ? null : Math.min(budget, total),
    parts: { resident, loose, ring, stored, others: total - free },
  };
}

/**
 * The contents in bytes of the bar whose length is the workflow's budget of a device; null without one. `limits`: what each
 * component may take in its turn. `planned`: the component, if any, for whose run it is predicted, alone; else as things are.
 */
export function workflowPart(device, components, planned, say) {
  const here = components.filter((component) => component.device === device.name);
  const total = ofTheWorkflow(here, 'workflow_budget_bytes');
  if (total === null) return null;
  const isThere = (component) => (planned ? component === planned : component.loaded);
  const held = (component) => (isThere(component) ? component.plan.resident_bytes + component.plan.loose_bytes : 0);
  const parts = {};
  for (const component of here) parts[component.component] = (parts[component.component] ?? 0) + held(component); // another workflow's may have its name
  parts.ring = planned ? planned.plan.ring_bytes : device.ring_bytes;
  const limited = here.filter(({ settings }) => Number.isFinite(settings?.workflow_budget_bytes?.value));
  const limits = Object.fromEntries(limited.map(({ component, settings }) => [component, settings.budget_bytes?.value]));
  const free = Math.max(0, total - Object.values(parts).reduce((sum, size) => sum + size, 0));
  const when = planned ? ` · ${say('memory.planned', { component: planned.component })}` : '';
  return { title: `${say('setting.workflow_budget_bytes')}${when}`, total, free, ceiling: null, parts, limits };
}

/** The contents of the host's bar in bytes. Mapped files do not count as used: the system can reclaim their pages. */
export function hostPart(host, say, components = []) {
  const { total_bytes: total, available_bytes: free, pinned_bytes: pinned, pageable_bytes: pageable } = host;
  const others = Math.max(0, total - free - pinned - pageable);
  return { title: say('memory.host'), total, free, ceiling: ofTheWorkflow(components, 'workflow_host_bytes'), parts: { pinned, pageable, mapped: host.mapped_bytes, others } };
}

/** A bar for the parts that `data` names. With `limits`, all but the ring are components, in shades of one colour. */
function memoryBar(say, { parts, limits }) {
  const title = element('span', { class: 'lwo-bar-title' });
  const free = element('span', { class: 'lwo-bar-free' });
  const shownParts = Object.keys(parts).map((name, index) => {
    const word = say(`memory.${name}`, {}, name);
    const value = element('b');
    const look = limits && name !== 'ring' ? `lwo-resident lwo-share-${index % SHADES}` : `lwo-${name}`;
    const segment = element('span', { class: `lwo-segment ${look}` });
    return { name, word, value, segment, key: legendKey(look, word, ' ', value) };
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
        const limit = data.limits?.[name];
        segment.style.width = share(size ?? 0);
        setText(value, Number.isFinite(limit) ? say('memory.share', { held: bytes(size), limit: bytes(limit) }) : bytes(size));
        segment.title = `${word}: ${value.textContent}`;
        key.hidden = !size && name !== 'others' && !Number.isFinite(limit);
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
