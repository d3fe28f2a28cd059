// Memory bars, one for each device and one for the host: their contents, and a mark at the sum of our budgets.
import { element, legendKey, setAttribute, setText } from './dom.js';
import { bytes } from './format.js';

/** The element with all bars. */
export function memoryBars(say) {
  const root = element('div', { class: 'lwo-memory' });
  const bars = new Map();
  const drawn = (key, data) => {
    if (!bars.has(key)) bars.set(key, memoryBar(say, Object.keys(data.parts)));
    bars.get(key).update(data);
    return bars.get(key).root;
  };
  return {
    root,
    /** `component`: the focused one; while it is only planned, its device is shown as predicted for its run. */
    update(state, component) {
      const shown = state.devices.map((device) => {
        const planned = component?.planned && component.device === device.name;
        return drawn(`device ${device.name}`, planned ? plannedPart(device, component, say) : devicePart(device, state.components));
      });
      if (state.host) shown.push(drawn('host', hostPart(state.host, say)));
      if (shown.length !== root.children.length || shown.some((child, index) => root.children[index] !== child)) {
        root.replaceChildren(...shown);
      }
    },
  };
}

/** The contents of a device's bar in bytes. `ceiling`: the sum of the loaded components' budgets; null without one. */
export function devicePart(device, components) {
  const loaded = components.filter((component) => component.loaded && component.device === device.name && Number.isFinite(component.budget_bytes));
  const ceiling = loaded.reduce((sum, component) => sum + component.budget_bytes, 0);
  return {
    title: device.name,
    total: device.total_bytes,
    free: device.free_bytes,
    ceiling: loaded.length ? Math.min(ceiling, device.total_bytes) : null,
    parts: { resident: device.resident_bytes, loose: device.loose_bytes, ring: device.ring_bytes, others: device.others_bytes },
  };
}

/** As `devicePart`, predicted for the run of a planned component; what others hold is assumed to stay the same. */
export function plannedPart(device, component, say) {
  const { resident_bytes, loose_bytes, ring_bytes } = component.plan;
  const others = device.total_bytes - device.free_bytes;
  const used = resident_bytes + loose_bytes + ring_bytes + others;
  return {
    title: `${device.name} · ${say('memory.planned', { component: component.component })}`,
    total: device.total_bytes,
    free: Math.max(0, device.total_bytes - used),
    ceiling: Math.min(component.budget_bytes, device.total_bytes),
    parts: { resident: resident_bytes, loose: loose_bytes, ring: ring_bytes, others },
  };
}

/** The contents of the host's bar in bytes. Mapped files do not count as used: the system can reclaim their pages. */
export function hostPart(host, say) {
  const ours = host.pinned_bytes + host.pageable_bytes;
  const others = Math.max(0, host.total_bytes - host.available_bytes - ours);
  return {
    title: say('memory.host'),
    total: host.total_bytes,
    free: host.available_bytes,
    ceiling: null,
    parts: { pinned: host.pinned_bytes, pageable: host.pageable_bytes, mapped: host.mapped_bytes, others },
  };
}

function memoryBar(say, names) {
  const title = element('span', { class: 'lwo-bar-title' });
  const free = element('span', { class: 'lwo-bar-free' });
  const segments = names.map((name) => element('span', { class: `lwo-segment lwo-${name}` }));
  const mark = element('span', { class: 'lwo-ceiling' });
  const track = element('div', { class: 'lwo-track', role: 'img' }, ...segments, mark);
  const legend = names.map((name) => {
    const value = element('b');
    return { item: legendKey(`lwo-${name}`, say(`memory.${name}`), ' ', value), value };
  });
  const ceiling = element('b');
  const ceilingKey = legendKey('lwo-ceiling-key', say('memory.ceiling'), ' ', ceiling);
  const root = element(
    'div',
    { class: 'lwo-bar' },
    element('div', { class: 'lwo-bar-head' }, title, free),
    track,
    element('div', { class: 'lwo-keys' }, ...legend.map(({ item }) => item), ceilingKey),
  );
  return {
    root,
    update(data) {
      setText(title, data.title);
      setText(free, say('memory.free', { free: bytes(data.free), total: bytes(data.total) }));
      const share = (value) => `${(100 * Math.min(1, Math.max(0, value / (data.total || 1)))).toFixed(2)}%`;
      names.forEach((name, index) => {
        segments[index].style.width = share(data.parts[name] ?? 0);
        segments[index].title = `${say(`memory.${name}`)}: ${bytes(data.parts[name])}`;
        setText(legend[index].value, bytes(data.parts[name]));
        legend[index].item.hidden = !data.parts[name] && name !== 'others';
      });
      mark.hidden = ceilingKey.hidden = data.ceiling === null;
      if (data.ceiling !== null) {
        mark.style.left = share(data.ceiling);
        mark.title = `${say('memory.ceiling')}: ${bytes(data.ceiling)}`;
        setText(ceiling, bytes(data.ceiling));
      }
      const words = names.map((name) => `${say(`memory.${name}`)} ${bytes(data.parts[name])}`);
      setAttribute(track, 'aria-label', `${data.title}: ${words.join(', ')}; ${free.textContent}`);
    },
  };
}
