// The placement map: a strip per component with a cell per layer; a cell's width is the layer's size, its colour its state.
// A cell that is hovered or focused is described in the readout beside the legend.
import { element, legendKey, rovingFocus, setAttribute, setClass, setText } from './dom.js';
import { bytes } from './format.js';

const STATES = { R: 'resident', r: 'arriving', U: 'in_use', F: 'in_flight', C: 'used', O: 'offloaded' };

/** The state letters of a component's layers, derived from its plan if the server has reported none. */
export function statesOf(component) {
  const layers = component.plan?.layers ?? [];
  if (component.layer_states?.length === layers.length) return component.layer_states;
  const resident = component.loaded ? 'R' : component.planned ? 'r' : 'O';
  return layers.map((layer) => (layer.placement === 'resident' ? resident : 'O')).join('');
}

/** `update(state, focusedId)` draws; `choose(id)` is called when the user picks a component. */
export function placementMap(say, choose) {
  const rows = new Map();
  const body = element('div', { class: 'lwo-map-rows' });
  const readout = element('div', { class: 'lwo-readout', 'aria-live': 'polite' });
  const legend = element('div', { class: 'lwo-keys' }, ...Object.values(STATES).map((name) => legendKey(`lwo-cell lwo-is-${name}`, say(`state.${name}`))));
  const root = element('section', { class: 'lwo-map', 'aria-label': say('map.title') }, element('div', { class: 'lwo-section-head' }, element('h3', { text: say('map.title') }), legend, readout), body);
  const read = (text) => setText(readout, text);
  return {
    root,
    update(state, focusedId) {
      const ids = new Set(state.components.map(({ id }) => id));
      for (const [id, row] of rows) {
        if (ids.has(id)) continue;
        row.root.remove();
        rows.delete(id);
      }
      state.components.forEach((component, index) => {
        if (!rows.has(component.id)) rows.set(component.id, mapRow(say, choose, read));
        const row = rows.get(component.id);
        row.update(component, component.id === focusedId);
        if (body.children[index] !== row.root) body.insertBefore(row.root, body.children[index] ?? null);
      });
    },
  };
}

function mapRow(say, choose, read) {
  const name = element('b');
  const model = element('span', { class: 'lwo-model' });
  const status = element('span', { class: 'lwo-status' });
  const pick = element('button', { class: 'lwo-pick', type: 'button' }, name, model, status);
  const strip = element('div', { class: 'lwo-strip', role: 'group' });
  const root = element('div', { class: 'lwo-map-row' }, pick, strip);
  let component = null;
  let cells = [];
  pick.addEventListener('click', () => choose(component.id));
  const readCell = (event) => {
    const index = cells.indexOf(event.target);
    if (index >= 0) read(cellText(say, component, index));
  };
  for (const kind of ['pointerover', 'focusin']) strip.addEventListener(kind, readCell);
  for (const kind of ['pointerleave', 'focusout']) strip.addEventListener(kind, () => read(''));
  rovingFocus(strip, () => cells);
  return {
    root,
    update(next, isFocused) {
      if (component?.plan.layers.length !== next.plan.layers.length || component.id !== next.id) {
        cells = next.plan.layers.map((layer, index) =>
          element('span', { role: 'img', tabindex: index ? -1 : 0, style: { 'flex-grow': Math.max(1, Math.round(layer.bytes / 1e5)) } }),
        );
        strip.replaceChildren(...cells);
      }
      component = next;
      setText(name, next.component);
      setText(model, next.model);
      model.title = next.model;
      const idle = next.planned ? 'map.planned' : next.loaded ? 'map.loaded' : 'map.unloaded';
      setText(status, next.running ? say('map.pass', { pass: next.pass ?? 0 }) : say(idle));
      setClass(root, `lwo-map-row${isFocused ? ' lwo-focused' : ''}${next.running ? ' lwo-running' : ''}`);
      setAttribute(pick, 'aria-pressed', String(isFocused));
      const states = statesOf(next);
      cells.forEach((cell, index) => {
        const before = cell.className;
        setClass(cell, `lwo-cell lwo-is-${STATES[states[index]] ?? 'offloaded'}`);
        if (before !== cell.className) setAttribute(cell, 'aria-label', cellText(say, next, index));
      });
      setAttribute(strip, 'aria-label', stripText(say, next, states));
    },
  };
}

function cellText(say, component, index) {
  const layer = component.plan.layers[index];
  const state = STATES[statesOf(component)[index]] ?? 'offloaded';
  const parts = [`${component.component} · ${layer.name}`, bytes(layer.bytes), say(`state.${state}`)];
  if (layer.placement !== 'resident' && layer.host_tier) parts.push(say(`memory.${layer.host_tier}`));
  return parts.join(' · ');
}

function stripText(say, component, states) {
  const resident = component.plan.layers.filter((layer) => layer.placement === 'resident').length;
  return say('map.strip', { component: component.component, layers: states.length, resident, streamed: states.length - resident });
}
