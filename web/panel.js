// The bottom panel: its views, its buttons, and its subscription to live messages while it is visible. Touches the app only
// through `contact`.
import { budgetButton } from './budget_button.js';
import { button, element, rovingFocus, setText } from './dom.js';
import { explanations, leftToApp } from './explain.js';
import { graphOptionsForm } from './graph_options_form.js';
import { optionsText, withoutUnset } from './graph_options.js';
import { memoryBars } from './memory_bar.js';
import { componentNames, emptyState, focused, isOfNode, isOurs, withAhead, withLive, withReport, withStored } from './model.js';
import { numberTiles } from './numbers.js';
import { placementMap } from './placement_map.js';
import { promptOf } from './prompt.js';
import { defaultOptions } from './settings.js';
import { LOADER } from './tables.js';
import { timeline } from './timeline.js';

const SETTLED_MS = 300; // without a change of the graph before its plan is fetched

/** A panel that can be mounted and unmounted repeatedly; its state is kept in between. */
export function createPanel(contact) {
  let state = emptyState();
  const shown = { chosenId: null, view: 'overview' };
  let mounted = null;
  const failing = new Set(); // requests whose last attempt failed; the panel's head shows the error
  let plannedText = null; // the prompt of `state.ahead` as text
  const redraw = (live = false) => mounted?.draw(state, shown.view, focused(state, shown.chosenId), live);
  const show = (change) => {
    Object.assign(shown, change);
    redraw();
  };
  /** Puts what `fetchContent` answers into the state as it is then, by `change(state, content)`. */
  const attempt = async (request, fetchContent, change) => {
    try {
      const content = await fetchContent();
      state = change(state, content);
      redraw();
      if (failing.delete(request) && !failing.size) mounted?.tell('');
    } catch (error) {
      failing.add(request);
      mounted?.tell(error.message);
    }
  };
  const refresh = () => attempt('report', contact.fetchReport, withReport);
  const lookBack = () => attempt('events', contact.fetchEvents, (current, { events }) => withStored(current, events));
  const lookAhead = (again = false) => attempt('plan', async () => {
    const prompt = promptOf(contact.activeNodes(), optionsText(contact.readGraphOptions(), defaultOptions(contact.settingValue)));
    const text = JSON.stringify(prompt);
    if (text === plannedText && !again) return null;
    plannedText = text;
    return { text, ahead: prompt && (await contact.fetchAhead(prompt)) };
  }, (current, planned) => (planned && plannedText === planned.text ? withAhead(current, planned.ahead) : current)); // else a later request has been sent
  const renew = () => Promise.all([refresh(), lookAhead(true)]);
  const onLive = (message) => {
    state = withLive(state, message);
    redraw(true);
    if (state.stale) refresh();
  };
  const panel = {
    async mount(place) {
      panel.unmount();
      const page = buildPage(await contact.words(), contact, show);
      place.style.height = '100%'; // the panel scrolls, not the app's tabs with it
      place.replaceChildren(page.root);
      const stopListening = listen(contact, place, { live: onLive, ran: renew, changed: lookAhead, gone: panel.unmount });
      mounted = { ...page, stop: () => (stopListening(), page.close()) };
      redraw();
      await Promise.all([renew(), lookBack()]);
    },
    unmount() {
      mounted?.stop();
      mounted = null;
    },
    /** After a change of the graph: redraws, and fetches the plan again. */
    graphChanged() {
      redraw();
      if (mounted) lookAhead();
    },
    /** Shows the reasons for the component, loaded or planned, of the node `id`; returns false if it has none. */
    async explain(id) {
      await Promise.all([refresh(), lookAhead()]);
      const component = state.components.find((candidate) => isOfNode(candidate, id));
      if (!component && !state.bystanders.some((bystander) => isOfNode(bystander, id))) return false;
      show({ chosenId: component?.id ?? shown.chosenId, view: 'explain' });
      mounted?.showExplained(component?.id);
      return true;
    },
  };
  return panel;
}

/**
 * Calls `live(message)` while the page is visible, `ran()` after each run, `changed()` after changes of the graph, and `gone()`
 * once `place` has left the page. Returns the function that stops all of it.
 */
function listen(contact, place, { live, ran, changed, gone }) {
  let on = false;
  let timer = null;
  const set = (wanted) => {
    if (wanted === on) return;
    on = wanted;
    contact.subscribe(on).catch(() => {}); // reports work without live messages
  };
  const visible = () => set(document.visibilityState === 'visible');
  const stops = [
    contact.onMessage('live', (message) => (place.isConnected ? live(message) : gone())),
    contact.onRunEnd(() => {
      on = false; // a reconnection ends the server's subscription
      visible();
      ran();
    }),
    contact.onGraphChange(() => {
      clearTimeout(timer);
      timer = setTimeout(changed, SETTLED_MS);
    }),
  ];
  document.addEventListener('visibilitychange', visible);
  visible();
  return () => {
    document.removeEventListener('visibilitychange', visible);
    clearTimeout(timer);
    stops.forEach((stop) => stop());
    set(false);
  };
}

function buildPage(say, contact, show) {
  const status = element('span', { class: 'lwo-told', role: 'status' });
  const tell = (text) => setText(status, text);
  const memory = memoryBars(say);
  const numbers = numberTiles(say);
  const map = placementMap(say, (chosenId) => show({ chosenId }));
  const overlap = timeline(say);
  const reasons = explanations(say);
  const keep = (options) => (contact.writeGraphOptions(options), contact.graphChanged());
  const form = graphOptionsForm(say, keep, contact.hostTiers);
  const top = element('div', { class: 'lwo-top' }, numbers.root, memory.root);
  const overview = element('div', { class: 'lwo-overview' }, top, map.root, overlap.root);
  const views = Object.entries({ overview, explain: reasons.root, options: form.root }).map(([name, content]) => {
    const ids = { tab: `lwo-tab-${name}`, body: `lwo-view-${name}` };
    const tab = { class: 'lwo-tab', type: 'button', role: 'tab', id: ids.tab, 'aria-controls': ids.body, text: say(`view.${name}`) };
    const body = { role: 'tabpanel', id: ids.body, 'aria-labelledby': ids.tab, tabindex: 0 };
    return { name, tab: element('button', { ...tab, onclick: () => show({ view: name }) }), body: element('div', body, content) };
  });
  const tabs = views.map(({ tab }) => tab);
  const list = element('div', { class: 'lwo-tabs', role: 'tablist', 'aria-label': 'Layerwise Offload' }, ...tabs);
  rovingFocus(list, () => tabs, (tab) => tab.click());
  const save = button(say('trace.save'), { title: say('trace.tip'), onclick: () => saveTrace(say, contact, tell) });
  const forget = button(say('measured.forget'), { title: say('measured.tip'), onclick: () => forgetMeasured(say, contact, tell) });
  const head = element('div', { class: 'lwo-head' }, list, status, save, forget);
  const problem = element('p', { role: 'status' });
  const setBudget = budgetButton(say, contact);
  const refused = element('div', { class: 'lwo-refused' }, problem, setBudget.root);
  const empty = emptyView(say, contact);
  const root = element('div', { class: 'lwo-panel' }, head, refused, ...views.map(({ body }) => body), empty.root);

  function draw(state, view, component, live) {
    const isEmpty = view !== 'options' && state.known && !state.components.length && !(view === 'explain' && state.bystanders.length);
    for (const { name, tab, body } of views) {
      tab.setAttribute('aria-selected', String(name === view));
      tab.tabIndex = name === view ? 0 : -1;
      body.hidden = name !== view || isEmpty;
    }
    empty.root.hidden = !isEmpty;
    refused.hidden = !state.problem || isEmpty;
    setText(problem, state.problem ? `${say('empty.problem')}: ${state.problem}` : '');
    setBudget.update(state.budget);
    save.disabled = !state.components.some(({ planned }) => !planned);
    if (isEmpty) empty.update(state);
    if (view === 'overview') {
      memory.update(state, component);
      numbers.update(component);
      map.update(state, component?.id);
      overlap.update(state, component);
    } else if (live) return;
    else if (view === 'explain') reasons.update(state, component?.id);
    else form.update(contact.readGraphOptions(), componentNames(contact.activeNodes()));
  }
  return { root, draw, tell, showExplained: reasons.show, close: overlap.close };
}

async function saveTrace(say, contact, tell) {
  tell('');
  const name = `trace-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, '-')}`;
  const saved = ({ file }) => tell(say('trace.saved', { file }));
  await contact.saveTrace(name).then(saved, (error) => tell(say('trace.failed', { error: error.message })));
}

async function forgetMeasured(say, contact, tell) {
  tell('');
  const done = ({ forgotten }) => tell(say('measured.forgotten', { count: forgotten }));
  await contact.forgetMeasured().then(done, (error) => tell(say('measured.failed', { error: error.message })));
}

/** What the panel shows while there is no component: what to do next, depending on the graph. */
function emptyView(say, contact) {
  const title = element('h3');
  const text = element('p');
  const setBudget = budgetButton(say, contact);
  const list = element('ul', { class: 'lwo-asked' });
  const add = button(say('empty.add'), { class: 'lwo-primary', onclick: () => (contact.addNode(LOADER), contact.graphChanged()) });
  const item = (name, content) => element('li', {}, element('b', { text: name }), ' ', content);
  return {
    root: element('div', { class: 'lwo-empty' }, title, text, setBudget.root, list, add),
    update({ problem, budget, bystanders }) {
      const active = contact.activeNodes();
      const ready = active.some(({ node }) => isOurs(node));
      const refusal = ready ? problem : null;
      text.classList.toggle('lwo-problem', !!refusal);
      setText(title, say(refusal ? 'empty.problem' : ready ? 'empty.ready' : 'empty.title'));
      setText(text, refusal ?? say(ready ? 'empty.ready_text' : 'empty.text'));
      setBudget.update(ready ? budget : null);
      const options = withoutUnset(contact.readGraphOptions())?.components ?? {};
      list.hidden = !!refusal;
      list.replaceChildren(
        ...componentNames(active).map((name) => item(name, options[name]?.placement ?? say('empty.decided'))),
        ...bystanders.map((bystander) => item(bystander.component, leftToApp(say, bystander))),
      );
      add.hidden = ready;
    },
  };
}
