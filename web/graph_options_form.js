// The form for the options of a graph: its mode, and for each component a row of its settings.
import { button, element } from './dom.js';
import { changed, withoutUnset } from './graph_options.js';
import { MODES, PLACEMENTS } from './tables.js';

// The sizes of the whole workflow, above the table: the key in words/.
const OF_THE_WORKFLOW = { workflow_budget_gb: 'workflow_budget', workflow_host_gb: 'workflow_host' };

// The settings by column: the key in words/, the values of one that is chosen from a list, and whether the heading has a tooltip.
const columnsFor = (hostTiers) => ({
  placement: { word: 'placement', values: PLACEMENTS },
  budget_gb: { word: 'budget' },
  ring_gb: { word: 'ring' },
  host_tier: { word: 'host', values: hostTiers, hasTip: true },
  pin_budget_gb: { word: 'pins', hasTip: true },
  peer_budget_gb: { word: 'peer', hasTip: true },
});

/**
 * `update(options, names)` draws the form for the components `names` of the graph, and for those that only the options name:
 * the server refuses them. `save(options)` is called after every change. `hostTiers`: where streamed layers can wait, as the
 * server lists it, the devices of the machine included.
 */
export function graphOptionsForm(say, save, hostTiers) {
  const table = Object.entries(columnsFor(hostTiers));
  const root = element('div', { class: 'lwo-form' });
  let drawn = '';
  const update = (saved, names) => {
    const textOf = (options) => JSON.stringify([options, names]);
    if (textOf(saved) === drawn) return; // the input that the user types in keeps the focus
    drawn = textOf(saved);
    let options = saved;
    const keep = (next) => {
      options = next;
      drawn = next ? textOf(next) : '';
      clear.hidden = !withoutUnset(next);
      save(next);
    };
    const clear = button(say('form.clear'), { hidden: !withoutUnset(saved), onclick: () => (keep(null), update(null, names)) });
    root.replaceChildren(...content(say, table, saved, names, (...change) => keep(changed(options, ...change)), clear));
  };
  return { root, update };
}

function content(say, table, options, names, set, clear) {
  const unknown = Object.keys(options?.components ?? {}).filter((name) => !names.includes(name) && !['all', 'default'].includes(name));
  const columns = table.map(([name, { word, values, hasTip }]) =>
    ({ name, values, text: say(`form.${word}`), title: hasTip ? say(`form.${word}.tip`) : null }));
  const heads = [{ text: say('form.component') }, ...columns].map(({ text, title }) => element('th', { scope: 'col', text, title }));
  const rows = [...names, ...unknown, 'all'].map((name) => row(say, columns, name, options?.components?.[name], unknown.includes(name), set));
  const mode = choice(options?.mode, (value) => set(null, 'mode', value), { 'aria-label': say('form.mode') }, MODES);
  const sizes = Object.entries(OF_THE_WORKFLOW).map(([name, word]) => {
    const [text, title] = [say(`form.${word}`), say(`form.${word}.tip`)];
    const input = size(options?.components?.all?.[name], (value) => set('all', name, value), { 'aria-label': text, title });
    return element('label', { 'data-setting': name, title }, element('span', { text }), input);
  });
  return [
    element('p', { class: 'lwo-quiet', text: say('form.help') }),
    element('div', { class: 'lwo-form-mode' }, element('label', {}, element('span', { text: say('form.mode') }), mode), ...sizes, clear),
    element('table', { class: 'lwo-options' }, element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...rows)),
  ];
}

function row(say, columns, selector, settings, isUnknown, set) {
  const label = selector === 'all' ? say('form.all') : selector;
  const note = isUnknown ? element('span', { class: 'lwo-warning', text: say('form.unknown') }) : null;
  const cells = columns.map(({ name, values, text, title }) => {
    const input = values ? choice : size;
    const properties = { 'aria-label': `${label}: ${text}`, title };
    return element('td', {}, input(settings?.[name], (value) => set(selector, name, value), properties, values));
  });
  return element('tr', { 'data-selector': selector }, element('th', { scope: 'row' }, label, note), ...cells);
}

const onkeydown = (event) => event.stopPropagation(); // the app's shortcuts

function choice(value, set, properties, values) {
  const shown = !value || values.includes(value) ? values : [...values, value]; // a device of the machine that it was saved on
  const options = shown.map((text) => element('option', { value: text, text }));
  return element('select', { ...properties, value: value ?? 'auto', onkeydown, onchange: ({ target }) => set(target.value) }, ...options);
}

function size(value, set, properties) {
  const onchange = ({ target }) => target.reportValidity() && set(Number(target.value));
  const limits = { type: 'number', min: 0, max: 1024, step: 0.01, placeholder: 'auto' };
  return element('input', { ...properties, ...limits, value: value || '', onkeydown, onchange });
}
