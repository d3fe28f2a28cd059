// The form for the options of the whole graph: a mode, and for each component a placement, a budget, a ring and where its
// streamed layers wait on the host.
import { element } from './dom.js';
import { changed, said } from './graph_options.js';
import { HOST_TIERS, MODES, PLACEMENTS } from './tables.js';

// The settings of the form, and their words.
const COLUMNS = { placement: 'placement', budget_gb: 'budget', ring_gb: 'ring', host_tier: 'host', pin_budget_gb: 'pins' };

/**
 * `update(options, names)` draws the form for the components `names` of the graph; a component that only the options
 * name is shown too, for the run will refuse it. `save(options)` is called with every change.
 */
export function graphOptionsForm(say, save) {
  const root = element('div', { class: 'lwo-form' });
  let drawn = '';
  let options = null;
  return {
    root,
    update(given, names) {
      const now = JSON.stringify([given, names]);
      if (now === drawn) return; // keeps the focus where the user is typing
      drawn = now;
      options = given;
      const clear = element('button', { class: 'lwo-button', type: 'button', text: say('form.clear'), onclick: () => (keep(null), this.update(null, names)) });
      const keep = (next) => {
        options = next;
        drawn = next ? JSON.stringify([next, names]) : '';
        clear.hidden = !said(next);
        save(next);
      };
      clear.hidden = !said(options);
      root.replaceChildren(...content(say, given, names, (...change) => keep(changed(options, ...change)), clear));
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
      onkeydown: (event) => event.stopPropagation(), // the app has keys of its own
    });
  const word = (name, values) => choice(nameOf(name), values, settings?.[name] ?? 'auto', (value) => set(selector, name, value), tip(say, name));
  const note = isUnknown ? element('span', { class: 'lwo-warning', text: say('form.unknown') }) : null;
  return element(
    'tr',
    { 'data-selector': selector },
    element('th', { scope: 'row' }, label, note),
    element('td', {}, word('placement', PLACEMENTS)),
    element('td', {}, number('budget_gb')),
    element('td', {}, number('ring_gb')),
    element('td', {}, word('host_tier', HOST_TIERS)),
    element('td', {}, number('pin_budget_gb')),
  );
}

/** What a column is about, where its heading does not say it. */
const tip = (say, name) => (['host_tier', 'pin_budget_gb'].includes(name) ? say(`form.${COLUMNS[name]}.tip`) : null);

function choice(label, values, value, changedTo, title = null) {
  const select = element(
    'select',
    { 'aria-label': label, title, onchange: (event) => changedTo(event.target.value), onkeydown: (event) => event.stopPropagation() },
    ...values.map((one) => element('option', { value: one, text: one })),
  );
  select.value = value;
  return select;
}
