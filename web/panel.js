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

const VIEWS = ['overview', 'explain', 'options'];
const SETTLED_MS = 300; // without a change of the graph before its plan is fetched

/** A panel that can be mounted and unmounted repeatedly; its state is kept in between. */
export function createPanel(contact) {
  let state = emptyState();
  let chosenId = null;
  let view = 'overview';
  let mounted = null;
  const failing = new Set(); // requests whose last attempt failed; the panel's head shows the error
  let plannedText = null; // the prompt of `state.ahead` as text
  const redraw = () => mounted?.draw(true);
  /** Puts what `fetchContent` answers into the state as it is then, by `change(state, content)`. */
  const attempt = async (request, fetchContent, change) => {
    try {
      const content = await fetchContent();
      state = change(state, content);
      redraw();
      if (failing.delete(request) && !failing.size) mounted?.page.tell('');
    } catch (error) {
      failing.add(request);
      mounted?.page.tell(error.message);
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
  const panel = {
    async mount(place) {
      panel.unmount();
      const say = await contact.words();
      const actions = {
        choose: (id) => {
          chosenId = id;
          redraw();
        },
        view: (name) => {
          view = name;
          redraw();
        },
      };
      const page = buildPage(say, contact, actions);
      place.style.height = '100%'; // the panel scrolls, not the app's tabs with it
      place.replaceChildren(page.root);
      const draw = (all) => page.draw(state, view, focused(state, chosenId), all);
      const stopListening = listen(contact, place, (message) => {
        state = withLive(state, message);
        draw(false);
        if (state.stale) refresh();
      }, () => Promise.all([refresh(), lookAhead(true)]), () => lookAhead(), panel.unmount);
      mounted = { draw, page, stop: () => (stopListening(), page.close()) };
      draw(true);
      await Promise.all([refresh(), lookAhead(true), lookBack()]);
    },
    unmount() {
      mounted?.stop();
      mounted = null;
    },
    /** After a change of the graph: redraws, and fetches the plan again. */
    graphChanged() {
      if (!mounted) return;
      mounted.draw(true);
      lookAhead();
    },
    /** Shows the reasons for the component, loaded or planned, of the node `id`; returns false if it has none. */
    async explain(id) {
      await Promise.all([refresh(), lookAhead()]);
      const component = state.components.find((candidate) => isOfNode(candidate, id));
      if (!component && !state.bystanders.some((bystander) => isOfNode(bystander, id))) return false;
      chosenId = component?.id ?? chosenId;
      view = 'explain';
      redraw();
      mounted?.page.showExplained(component?.id);
      return true;
    },
  };
  return panel;
}

/**
 * Calls `live(message)` while the page is visible, `refresh()` after each run, `lookAhead()` after changes of the graph, and
 * `gone()` once `place` has left the page. Returns the function that stops all of it.
 */
function listen(contact, place, live, refresh, lookAhead, gone) {
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
      refresh();
    }),
    contact.onGraphChange(() => {
      clearTimeout(timer);
      timer = setTimeout(lookAhead, SETTLED_MS);
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

function buildPage(say, contact, actions) {
  const status = element('span', { class: 'lwo-told', role: 'status' });
  const tell = (text) => setText(status, text);
  const tabs = VIEWS.map((name) => element('button', { class: 'lwo-tab', type: 'button', role: 'tab', id: `lwo-tab-${name}`, 'aria-controls': `lwo-view-${name}`, text: say(`view.${name}`), onclick: () => actions.view(name) }));
  const list = element('div', { class: 'lwo-tabs', role: 'tablist', 'aria-label': 'Layerwise Offload' }, ...tabs);
  rovingFocus(list, () => tabs, (tab) => tab.click());
  const save = button(say('trace.save'), { title: say('trace.tip'), onclick: () => saveTrace(say, contact, tell) });
  const memory = memoryBars(say);
  const numbers = numberTiles(say);
  const map = placementMap(say, actions.choose);
  const overlap = timeline(say);
  const reasons = explanations(say);
  const form = graphOptionsForm(say, (options) => contact.writeGraphOptions(options));
  const empty = emptyView(say, contact);
  const problem = element('p', { role: 'status' });
  const setBudget = budgetButton(say, contact);
  const refused = element('div', { class: 'lwo-refused', hidden: true }, problem, setBudget.root);
  const overview = element('div', { class: 'lwo-overview' }, element('div', { class: 'lwo-top' }, numbers.root, memory.root), map.root, overlap.root);
  const views = { overview, explain: reasons.root, options: form.root };
  const bodies = VIEWS.map((name) => element('div', { class: 'lwo-view', role: 'tabpanel', id: `lwo-view-${name}`, 'aria-labelledby': `lwo-tab-${name}`, tabindex: 0 }, views[name]));
  const root = element('div', { class: 'lwo-panel' }, element('div', { class: 'lwo-head' }, list, status, save), refused, ...bodies, empty.root);

  function draw(state, view, component, all) {
    const isEmpty = state.known && !state.components.length && !(view === 'explain' && state.bystanders.length);
    VIEWS.forEach((name, index) => {
      tabs[index].setAttribute('aria-selected', String(name === view));
      tabs[index].tabIndex = name === view ? 0 : -1;
      bodies[index].hidden = name !== view || (isEmpty && name !== 'options');
    });
    empty.root.hidden = !(isEmpty && view !== 'options');
    refused.hidden = !state.problem || !empty.root.hidden;
    setText(problem, state.problem ? `${say('empty.problem')}: ${state.problem}` : '');
    setBudget.update(state.budget);
    save.disabled = !state.components.some(({ planned }) => !planned);
    if (!empty.root.hidden) empty.update(state);
    if (view === 'overview') {
      memory.update(state, component);
      numbers.update(component);
      map.update(state, component?.id);
      overlap.update(state, component);
    } else if (all && view === 'explain') reasons.update(state, component?.id);
    else if (all) form.update(contact.readGraphOptions(), componentNames(contact.activeNodes()));
  }
  return { root, draw, tell, showExplained: (id) => reasons.show(id), close: overlap.close };
}

async function saveTrace(say, contact, tell) {
  tell('');
  try {
    const name = `trace-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, '-')}`;
    tell(say('trace.saved', { file: (await contact.saveTrace(name)).file }));
  } catch (error) {
    tell(say('trace.failed', { error: error.message }));
  }
}

/** What the panel shows while there is no component: what to do next, depending on the graph. */
function emptyView(say, contact) {
  const title = element('h3');
  const text = element('p');
  const setBudget = budgetButton(say, contact);
  const list = element('ul', { class: 'lwo-asked' });
  const add = button(say('empty.add'), { class: 'lwo-primary', onclick: () => (contact.addNode(LOADER), contact.graphChanged()) });
  return {
    root: element('div', { class: 'lwo-empty' }, title, text, setBudget.root, list, add),
    update(state) {
      const active = contact.activeNodes().filter(({ node }) => isOurs(node));
      const ready = active.length > 0;
      const names = componentNames(active);
      const problem = ready ? state.problem : null;
      text.classList.toggle('lwo-problem', !!problem);
      setText(title, say(problem ? 'empty.problem' : ready ? 'empty.ready' : 'empty.title'));
      setBudget.update(ready ? state.budget : null);
      setText(text, problem ?? say(ready ? 'empty.ready_text' : 'empty.text'));
      const options = withoutUnset(contact.readGraphOptions())?.components ?? {};
      list.hidden = !!problem;
      list.replaceChildren(
        ...(ready && !problem ? names : []).map((name) => element('li', {}, element('b', { text: name }), ' ', options[name]?.placement ?? say('empty.decided'))),
        ...state.bystanders.map((bystander) => element('li', {}, element('b', { text: bystander.component }), ` ${leftToApp(say, bystander)}`)),
      );
      add.hidden = ready;
    },
  };
}
