// The form for the options of the whole graph: a mode, and for each component a placement, a budget and a ring.
import { element } from './dom.js';
import { MODES, PLACEMENTS, changed, said } from './graph_options.js';

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
      element('thead', {}, element('tr', {}, ...['component', 'placement', 'budget', 'ring'].map((name) => element('th', { scope: 'col', text: say(`form.${name}`) })))),
      element('tbody', {}, ...rows.map((name) => row(say, name, options?.components?.[name], unknown.includes(name), set))),
    ),
  ];
}

function row(say, selector, settings, isUnknown, set) {
  const label = selector === 'all' ? say('form.all') : selector;
  const number = (name) =>
    element('input', {
      type: 'number', min: 0, max: 1024, step: 0.01, placeholder: 'auto', value: settings?.[name] || '',
      'aria-label': `${label}: ${say(name === 'budget_gb' ? 'form.budget' : 'form.ring')}`,
      onchange: (event) => event.target.reportValidity() && set(selector, name, Number(event.target.value)),
      onkeydown: (event) => event.stopPropagation(), // the app has keys of its own
    });
  const placement = choice(`${label}: ${say('form.placement')}`, PLACEMENTS, settings?.placement ?? 'auto', (value) => set(selector, 'placement', value));
  const note = isUnknown ? element('span', { class: 'lwo-warning', text: say('form.unknown') }) : null;
  return element(
    'tr',
    { 'data-selector': selector },
    element('th', { scope: 'row' }, label, note),
    element('td', {}, placement),
    element('td', {}, number('budget_gb')),
    element('td', {}, number('ring_gb')),
  );
}

function choice(label, values, value, changedTo) {
  const select = element(
    'select',
    { 'aria-label': label, onchange: (event) => changedTo(event.target.value), onkeydown: (event) => event.stopPropagation() },
    ...values.map((one) => element('option', { value: one, text: one })),
  );
  select.value = value;
  return select;
}
