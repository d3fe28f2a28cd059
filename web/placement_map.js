// The placement map: a strip per component with a cell per layer; a cell's width is the layer's size, its colour its state.
// A cell that is hovered or focused is described in the readout beside the legend.
import { element, keptParts, legendKey, rovingFocus, setAttribute, setText } from './dom.js';
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
  const body = element('div', { class: 'lwo-map-rows' });
  const readout = element('div', { class: 'lwo-readout', 'aria-live': 'polite' });
  const keys = Object.values(STATES).map((name) => legendKey(`lwo-cell lwo-is-${name}`, say(`state.${name}`)));
  const title = say('map.title');
  const head = element('div', { class: 'lwo-section-head' }, element('h3', { text: title }), element('div', { class: 'lwo-keys' }, ...keys), readout);
  const show = keptParts(body, ({ id }) => mapRow(say, () => choose(id), (text) => setText(readout, text)));
  return {
    root: element('section', { 'aria-label': title }, head, body),
    update: ({ components }, focusedId) => show(components.map((component) => [component.id, component, component.id === focusedId])),
  };
}

function mapRow(say, choose, read) {
  const name = element('b');
  const model = element('span', { class: 'lwo-model' });
  const status = element('span', { class: 'lwo-status' });
  const pick = element('button', { class: 'lwo-pick', type: 'button', onclick: choose }, name, model, status);
  let cells = [];
  const enter = ({ target }) => cells.includes(target) && read(target.getAttribute('aria-label'));
  const leave = () => read('');
  const listeners = { onpointerover: enter, onfocusin: enter, onpointerleave: leave, onfocusout: leave };
  const strip = element('div', { class: 'lwo-strip', role: 'group', ...listeners });
  const root = element('div', {}, pick, strip);
  rovingFocus(strip, () => cells);
  return {
    root,
    update(next, isFocused) {
      const { layers } = next.plan;
      if (cells.length !== layers.length) {
        cells = layers.map((layer, index) => {
          const grow = Math.max(1, Math.round(layer.bytes / 1e5));
          return element('span', { role: 'img', tabindex: index ? -1 : 0, style: `flex-grow: ${grow}` });
        });
        strip.replaceChildren(...cells);
      }
      setText(name, next.component);
      setText(model, next.model);
      model.title = next.model;
      const idle = next.planned ? 'map.planned' : next.loaded ? 'map.loaded' : 'map.unloaded';
      setText(status, next.running ? say('map.pass', { pass: next.pass ?? 0 }) : say(idle));
      setAttribute(root, 'class', `lwo-map-row${isFocused ? ' lwo-focused' : ''}${next.running ? ' lwo-running' : ''}`);
      setAttribute(pick, 'aria-pressed', String(isFocused));
      const states = statesOf(next);
      cells.forEach((cell, index) => {
        const state = STATES[states[index]] ?? 'offloaded';
        setAttribute(cell, 'class', `lwo-cell lwo-is-${state}`);
        setAttribute(cell, 'aria-label', cellText(say, next, layers[index], state));
      });
      const resident = layers.filter((layer) => layer.placement === 'resident').length;
      const counts = { layers: layers.length, resident, streamed: layers.length - resident };
      setAttribute(strip, 'aria-label', say('map.strip', { component: next.component, ...counts }));
    },
  };
}

/** What is said of a layer: its name, size and state, and where it waits if it is streamed. */
export function cellText(say, { component, plan }, layer, state) {
  const parts = [`${component} · ${layer.name}`, bytes(layer.bytes), say(`state.${state}`)];
  if (layer.placement !== 'resident' && layer.host_tier) parts.push(say(`memory.${layer.host_tier}`, { device: plan.peer_device }));
  return parts.join(' · ');
}
