// The form for the options of a graph: its mode, and for each component the placement, the budget, the ring, and the host
// tier and page-locked memory of streamed layers.
import { button, element } from './dom.js';
import { changed, withoutUnset } from './graph_options.js';
import { HOST_TIERS, MODES, PLACEMENTS } from './tables.js';

// The setting of each column, and its key in words/; the values of those that are chosen from a list.
const CHOSEN = { placement: PLACEMENTS, host_tier: HOST_TIERS };
const COLUMNS = { placement: 'placement', budget_gb: 'budget', ring_gb: 'ring', host_tier: 'host', pin_budget_gb: 'pins' };

/**
 * `update(options, names)` draws the form for the components `names` of the graph, and for those that only the options name:
 * the server refuses them. `save(options)` is called after every change.
 */
export function graphOptionsForm(say, save) {
  const root = element('div', { class: 'lwo-form' });
  let drawn = '';
  let options = null;
  return {
    root,
    update(saved, names) {
      const current = JSON.stringify([saved, names]);
      if (current === drawn) return; // the input that the user types in keeps the focus
      drawn = current;
      options = saved;
      const clear = button(say('form.clear'), { onclick: () => (keep(null), this.update(null, names)) });
      const keep = (next) => {
        options = next;
        drawn = next ? JSON.stringify([next, names]) : '';
        clear.hidden = !withoutUnset(next);
        save(next);
      };
      clear.hidden = !withoutUnset(options);
      root.replaceChildren(...content(say, saved, names, (...change) => keep(changed(options, ...change)), clear));
    },
  };
}

function content(say, options, names, set, clear) {
  const unknown = Object.keys(options?.components ?? {}).filter((name) => !names.includes(name) && !['all', 'default'].includes(name));
  const rows = [...names, ...unknown, 'all'];
  const mode = choice(say('form.mode'), MODES, options?.mode ?? 'auto', (value) => set(null, 'mode', value));
  return [
    element('p', { class: 'lwo-quiet', text: say('form.help') }),
    element('div', { class: 'lwo-form-mode' }, element('label', {}, element('span', { text: say('form.mode') }), mode), clear),
    element(
      'table',
      { class: 'lwo-options' },
      element('thead', {}, element('tr', {}, element('th', { scope: 'col', text: say('form.component') }), ...Object.keys(COLUMNS).map((name) => element('th', { scope: 'col', text: say(`form.${COLUMNS[name]}`), title: tip(say, name) })))),
      element('tbody', {}, ...rows.map((name) => row(say, name, options?.components?.[name], unknown.includes(name), set))),
    ),
  ];
}

function row(say, selector, settings, isUnknown, set) {
  const label = selector === 'all' ? say('form.all') : selector;
  const nameOf = (name) => `${label}: ${say(`form.${COLUMNS[name]}`)}`;
  const number = (name) =>
    element('input', {
      type: 'number', min: 0, max: 1024, step: 0.01, placeholder: 'auto', value: settings?.[name] || '',
      'aria-label': nameOf(name), title: tip(say, name),
      onchange: (event) => event.target.reportValidity() && set(selector, name, Number(event.target.value)),
      onkeydown: (event) => event.stopPropagation(), // the app's shortcuts
    });
  const select = (name) => choice(nameOf(name), CHOSEN[name], settings?.[name] ?? 'auto', (value) => set(selector, name, value), tip(say, name));
  const note = isUnknown ? element('span', { class: 'lwo-warning', text: say('form.unknown') }) : null;
  return element(
    'tr',
    { 'data-selector': selector },
    element('th', { scope: 'row' }, label, note),
    ...Object.keys(COLUMNS).map((name) => element('td', {}, name in CHOSEN ? select(name) : number(name))),
  );
}

/** The tooltip of a column whose heading needs an explanation; null for the others. */
const tip = (say, name) => (['host_tier', 'pin_budget_gb'].includes(name) ? say(`form.${COLUMNS[name]}.tip`) : null);

function choice(label, values, value, onChoice, title = null) {
  const select = element(
    'select',
    { 'aria-label': label, title, onchange: (event) => onChoice(event.target.value), onkeydown: (event) => event.stopPropagation() },
    ...values.map((text) => element('option', { value: text, text })),
  );
  select.value = value;
  return select;
}
