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
      root.replaceChildren(
        ...state.components.map((component) => explained(say, component, component.id === focusedId)),
        ...state.bystanders.map((component) => card(component, 'lwo-bystander', {}, line('lwo-quiet', leftToApp(say, component)))),
      );
    },
    show(id) {
      const target = [...root.children].find((child) => child.dataset.component === id);
      if (!target) return;
      root.closest('.lwo-panel').scrollTop = target.offsetTop - root.offsetTop; // nothing but the panel is to move
      target.focus({ preventScroll: true });
    },
  };
}

const line = (name, text) => element('p', { class: name, text });

function card({ component, model }, name, properties, ...content) {
  const heading = element('h3', {}, component, element('span', { class: 'lwo-model', text: model, title: model }));
  return element('article', { class: `lwo-card ${name}`, ...properties }, heading, ...content);
}

function explained(say, component, isFocused) {
  return card(
    component,
    isFocused ? 'lwo-focused' : '',
    { tabindex: -1, 'data-component': component.id, 'aria-label': `${component.component} ${component.model}` },
    settingsTable(say, component.settings ?? {}),
    whatIf(say, component),
    quiet(timesLine(say, component)),
    quiet(storedLine(say, component)),
    early(say, component.summary),
    ...noticeLines(say, component.notices, component.warnings).map((text) => line('lwo-warning', text)),
  );
}

function settingsTable(say, settings) {
  const rows = Object.entries(settings).map(([name, { value, source, why, reason }]) =>
    element(
      'tr',
      {},
      element('th', { scope: 'row', text: say(`setting.${name}`) }),
      element('td', { class: 'lwo-value', text: settingValue(name, value) }),
      element('td', {}, element('span', { class: `lwo-source lwo-by-${source}`, text: say(`source.${source}`) })),
      element('td', { class: 'lwo-reason', text: sentence(say, why, reason) }),
    ),
  );
  const heads = ['setting', 'value', 'who', 'why'].map((name) => element('th', { scope: 'col', text: say(`explain.${name}`) }));
  return element('table', { class: 'lwo-settings' }, element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...rows));
}

const quiet = (text) => (text ? line('lwo-quiet', text) : null);

/** How much of its layers lies on which other device: now, or as planned before it has run; null without any. */
export function storedLine(say, { summary, plan }) {
  const { peer_bytes: size, peer_device: device } = summary ?? plan ?? {};
  return size ? say('explain.stored', { size: bytes(size), device }) : null;
}

/** Whether the figures for its budgets are of measured times or of assumed ones; null if the report does not say. */
export function timesLine(say, { assumed_times: count }) {
  if (!Number.isFinite(count)) return null;
  return count ? say('explain.assumed', { count }) : say('explain.measured');
}

/** How much of what it copied came before its turn, while the component before was ending. */
const early = (say, summary) =>
  summary?.early_copies ? line('lwo-quiet', say('explain.early', { early: summary.early_copies, copies: summary.copies })) : null;

/** A pass by the times that are known now; null if the report does not say: its plan may be older than the times. */
const passNow = (component) => component.what_if?.find((budget) => budget.delta_bytes === 0)?.pass_ns ?? null;
const signed = (value, unit) => `${value > 0 ? '+' : '−'}${Math.abs(value)} ${unit}`;

/** What the simulator makes of a budget of a GB more and of a GB less, against what it makes of this one (delta 0). */
export function whatIfLines(say, component) {
  const now = passNow(component);
  return (component.what_if ?? []).filter((budget) => budget.delta_bytes !== 0).map((budget) => {
    const delta = signed(budget.delta_bytes / GB, 'GB');
    if (budget.error) return { delta, text: sentence(say, budget.why, budget.error), bad: true };
    const percent = Math.round((100 * (budget.pass_ns - now)) / now);
    const change = now === null ? '' : ` (${percent === 0 ? say('explain.same') : signed(percent, '%')})`;
    return { delta, text: say('explain.what_if', { pass: duration(budget.pass_ns), change, resident: budget.resident_layers }), bad: false };
  });
}

function whatIf(say, component) {
  const lines = whatIfLines(say, component);
  if (!lines.length) return null;
  const now = passNow(component);
  const rows = lines.map(({ delta, text, bad }) => element('li', { class: bad && 'lwo-quiet' }, element('b', { text: delta }), ' ', text));
  const title = say(now === null ? 'explain.budget_only' : 'explain.budget', { budget: bytes(component.budget_bytes), pass: duration(now) });
  return element('div', { class: 'lwo-what-if' }, element('p', { text: title }), element('ul', {}, ...rows));
}

/** Why a component is left to the app, in one line. */
export const leftToApp = (say, bystander) => `${say('explain.left_to_app')} ${sentence(say, bystander.why, bystander.reason)}`;
