// Why each component is where it is: what was chosen, by which source, for what reason, and what a GB more or less would do.
import { element } from './dom.js';
import { GB, bytes, duration, settingValue } from './format.js';
import { noticeLines, sentence } from './words.js';

/** A place for the cards; `update(state, focusedId)` builds them anew, which happens with a new report and not live. */
export function explanations(say) {
  const root = element('div', { class: 'lwo-cards' });
  return {
    root,
    update(state, focusedId) {
      const cards = state.components.map((component) => card(say, component, component.id === focusedId));
      const others = state.bystanders.map((component) => bystander(say, component));
      root.replaceChildren(...cards, ...others);
    },
    show(id) {
      const target = [...root.children].find((child) => child.dataset.component === id);
      if (!target) return;
      root.closest('.lwo-panel').scrollTop = target.offsetTop - root.offsetTop; // nothing but the panel is to move
      target.focus({ preventScroll: true });
    },
  };
}

function card(say, component, isFocused) {
  return element(
    'article',
    {
      class: `lwo-card${isFocused ? ' lwo-focused' : ''}`, tabindex: -1, 'data-component': component.id,
      'aria-label': `${component.component} ${component.model}`,
    },
    heading(component),
    settingsTable(say, component),
    whatIf(say, component),
    ...noticeLines(say, component.notices, component.warnings).map((text) => element('p', { class: 'lwo-warning', text })),
  );
}

const heading = ({ component, model }) => element('h3', {}, component, element('span', { class: 'lwo-model', text: model, title: model }));

function settingsTable(say, component) {
  const rows = Object.entries(component.settings ?? {}).map(([name, setting]) =>
    element(
      'tr',
      {},
      element('th', { scope: 'row', text: say(`setting.${name}`) }),
      element('td', { class: 'lwo-value', text: settingValue(name, setting.value) }),
      element('td', {}, element('span', { class: `lwo-source lwo-by-${setting.source}`, text: say(`source.${setting.source}`) })),
      element('td', { class: 'lwo-reason', text: sentence(say, setting.why, setting.reason) }),
    ),
  );
  const heads = ['setting', 'value', 'who', 'why'].map((name) => element('th', { scope: 'col', text: say(`explain.${name}`) }));
  return element('table', { class: 'lwo-settings' }, element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...rows));
}

/** What the simulator makes of a budget of a GB more and of a GB less, against what it makes of this one (delta 0). */
export function whatIfLines(say, component) {
  const now = passNow(component);
  return (component.what_if ?? []).filter((budget) => budget.delta_bytes !== 0).map((budget) => {
    const delta = `${budget.delta_bytes > 0 ? '+' : '−'}${Math.abs(budget.delta_bytes / GB)} GB`;
    if (budget.error) return { delta, text: budget.error, bad: true };
    const pass = duration(budget.pass_ns);
    const change = now === null ? null : Math.round((100 * (budget.pass_ns - now)) / now);
    const comparison = change === null ? '' : change === 0 ? say('explain.same') : `${change > 0 ? '+' : '−'}${Math.abs(change)} %`;
    return { delta, text: say('explain.what_if', { pass, change: comparison && ` (${comparison})`, resident: budget.resident_layers }), bad: false };
  });
}

/** A pass by the times that are known now; null if the report does not say: its plan may be older than the times. */
const passNow = (component) => component.what_if?.find((budget) => budget.delta_bytes === 0)?.pass_ns ?? null;

function whatIf(say, component) {
  const lines = whatIfLines(say, component);
  if (!lines.length) return null;
  const now = passNow(component);
  const rows = lines.map((line) => element('li', { class: line.bad ? 'lwo-quiet' : '' }, element('b', { text: line.delta }), ' ', line.text));
  const title = say(now === null ? 'explain.budget_only' : 'explain.budget', { budget: bytes(component.budget_bytes), pass: duration(now) });
  return element('div', { class: 'lwo-what-if' }, element('p', { text: title }), element('ul', {}, ...rows));
}

function bystander(say, component) {
  return element(
    'article',
    { class: 'lwo-card lwo-bystander' },
    heading(component),
    element('p', { class: 'lwo-quiet', text: leftToApp(say, component) }),
  );
}

/** Why a component is left to the app, in one line. */
export const leftToApp = (say, bystander) => `${say('explain.left_to_app')} ${sentence(say, bystander.why, bystander.reason)}`;
