// The bottom panel: its views, its life (it listens only while it can be seen) and what its buttons do. Touches the app
// through the object `contact` alone.
import { budgetButton } from './budget_button.js';
import { element, rovingFocus, setText } from './dom.js';
import { explanations, leftToApp } from './explain.js';
import { graphOptionsForm } from './graph_options_form.js';
import { optionsText, said } from './graph_options.js';
import { memoryBars } from './memory_bar.js';
import { componentNames, emptyState, focused, isOurs, withAhead, withLive, withReport, withStored } from './model.js';
import { numberTiles } from './numbers.js';
import { placementMap } from './placement_map.js';
import { promptOf } from './prompt.js';
import { word } from './settings.js';
import { LOADER } from './tables.js';
import { timeline } from './timeline.js';

const VIEWS = ['overview', 'explain', 'options'];
const SETTLED_MS = 300; // after the last change of the graph

/** A panel that can be mounted and unmounted any number of times; what it knows outlives that. */
export function createPanel(contact) {
  let state = emptyState();
  let chosen = null;
  let view = 'overview';
  let mounted = null;
  const failing = new Set(); // what the server did not answer last time; the head says so
  let asked = null; // the prompt that `state.ahead` is about, as text
  const attempt = async (what, ask) => {
    try {
      const change = await ask();
      state = change(state);
      mounted?.draw(true);
      if (failing.delete(what) && !failing.size) mounted?.tell('');
    } catch (error) {
      failing.add(what);
      mounted?.tell(error.message);
    }
  };
  const refresh = () => attempt('report', async () => {
    const report = await contact.fetchReport();
    return (known) => withReport(known, report);
  });
  const lookBack = () => attempt('events', async () => {
    const { events } = await contact.fetchEvents();
    return (known) => withStored(known, events);
  });
  const lookAhead = (again = false) => attempt('plan', async () => {
    const prompt = promptOf(contact.activeNodes(), optionsText(contact.readGraphOptions(), word(contact.settingValue)));
    const text = JSON.stringify(prompt);
    if (text === asked && !again) return (known) => known;
    asked = text;
    const ahead = prompt && (await contact.fetchAhead(prompt));
    return (known) => (asked === text ? withAhead(known, ahead) : known); // else there is a later question
  });
  const panel = {
    async mount(place) {
      panel.unmount();
      const say = await contact.words();
      const parts = {
        choose: (id) => {
          chosen = id;
          mounted?.draw(true);
        },
        view: (name) => {
          view = name;
          mounted?.draw(true);
        },
      };
      const page = buildPage(say, contact, parts);
      place.style.height = '100%'; // what does not fit is scrolled in here, not with the app's tabs
      place.replaceChildren(page.root);
      const draw = (all) => page.draw(state, view, focused(state, chosen), all);
      const listening = listen(contact, place, (message) => {
        state = withLive(state, message);
        draw(false);
        if (state.stale) refresh();
      }, () => Promise.all([refresh(), lookAhead(true)]), () => lookAhead(), panel.unmount);
      mounted = { draw, tell: page.tell, page, stop: () => (listening.stop(), page.close()) };
      draw(true);
      await Promise.all([refresh(), lookAhead(true), lookBack()]);
    },
    unmount() {
      mounted?.stop();
      mounted = null;
    },
    /** Draws anew what comes from the graph. */
    graphChanged() {
      if (!mounted) return;
      mounted.draw(true);
      lookAhead();
    },
    /** Turns to the reasons for the component that the node `id` asked for, or will; false if nothing is known of it. */
    async explain(id) {
      await Promise.all([refresh(), lookAhead()]);
      const found = state.components.find((one) => (one.nodes ?? []).map(String).includes(id));
      const bystander = state.bystanders.some((one) => (one.nodes ?? []).map(String).includes(id));
      if (!found && !bystander) return false;
      chosen = found?.id ?? chosen;
      view = 'explain';
      mounted?.draw(true);
      mounted?.page.showExplained(found?.id);
      return true;
    },
  };
  return panel;
}

/**
 * Live messages while the page is visible, a new report after each run, the plan anew when the graph has changed; `gone`
 * when the panel's place has left the page.
 */
function listen(contact, place, live, refresh, lookAhead, gone) {
  let on = false;
  let timer = null;
  const set = (wanted) => {
    if (wanted === on) return;
    on = wanted;
    contact.subscribe(on).catch(() => {}); // a server without live messages still has reports
  };
  const visible = () => set(document.visibilityState === 'visible');
  const stops = [
    contact.onMessage('live', (message) => (place.isConnected ? live(message) : gone())),
    contact.onRunEnd(() => {
      on = false; // after a lost connection the server has forgotten us
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
  return {
    stop() {
      document.removeEventListener('visibilitychange', visible);
      clearTimeout(timer);
      stops.forEach((stop) => stop());
      set(false);
    },
  };
}

function buildPage(say, contact, parts) {
  const status = element('span', { class: 'lwo-told', role: 'status' });
  const tell = (text) => setText(status, text ?? '');
  const tabs = VIEWS.map((name) => element('button', { class: 'lwo-tab', type: 'button', role: 'tab', id: `lwo-tab-${name}`, 'aria-controls': `lwo-view-${name}`, text: say(`view.${name}`), onclick: () => parts.view(name) }));
  const list = element('div', { class: 'lwo-tabs', role: 'tablist', 'aria-label': 'Layerwise Offload' }, ...tabs);
  rovingFocus(list, () => tabs, (tab) => tab.click());
  const save = element('button', { class: 'lwo-button', type: 'button', title: say('trace.tip'), text: say('trace.save'), onclick: () => saveTrace(say, contact, tell) });
  const memory = memoryBars(say);
  const numbers = numberTiles(say);
  const map = placementMap(say, parts.choose);
  const overlap = timeline(say);
  const reasons = explanations(say);
  const form = graphOptionsForm(say, (options) => contact.writeGraphOptions(options));
  const empty = emptyView(say, contact);
  const why = element('p', { role: 'status' });
  const enough = budgetButton(say, contact);
  const refused = element('div', { class: 'lwo-refused', hidden: true }, why, enough.root);
  const overview = element('div', { class: 'lwo-overview' }, element('div', { class: 'lwo-top' }, numbers.root, memory.root), map.root, overlap.root);
  const views = { overview, explain: reasons.root, options: form.root };
  const bodies = VIEWS.map((name) => element('div', { class: 'lwo-view', role: 'tabpanel', id: `lwo-view-${name}`, 'aria-labelledby': `lwo-tab-${name}`, tabindex: 0 }, views[name]));
  const root = element('div', { class: 'lwo-panel' }, element('div', { class: 'lwo-head' }, list, status, save), refused, ...bodies, empty.root);

  function draw(state, view, component, all) {
    const nothing = state.known && !state.components.length && !(view === 'explain' && state.bystanders.length);
    VIEWS.forEach((name, index) => {
      tabs[index].setAttribute('aria-selected', String(name === view));
      tabs[index].tabIndex = name === view ? 0 : -1;
      bodies[index].hidden = name !== view || (nothing && name !== 'options');
    });
    empty.root.hidden = !(nothing && view !== 'options');
    refused.hidden = !state.problem || !empty.root.hidden;
    setText(why, state.problem ? `${say('empty.problem')}: ${state.problem}` : '');
    enough.update(state.budget);
    save.disabled = !state.components.some((one) => !one.planned);
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

/** What to do before there is anything to see: differs with what the graph has. */
function emptyView(say, contact) {
  const title = element('h3');
  const text = element('p');
  const enough = budgetButton(say, contact);
  const list = element('ul', { class: 'lwo-asked' });
  const add = element('button', { class: 'lwo-button lwo-primary', type: 'button', text: say('empty.add'), onclick: () => (contact.addNode(LOADER), contact.graphChanged()) });
  return {
    root: element('div', { class: 'lwo-empty' }, title, text, enough.root, list, add),
    update(state) {
      const active = contact.activeNodes().filter(({ node }) => isOurs(node.comfyClass ?? node.type));
      const ready = active.length > 0;
      const names = componentNames(active);
      const problem = ready ? state.problem : null;
      text.classList.toggle('lwo-problem', !!problem);
      setText(title, say(problem ? 'empty.problem' : ready ? 'empty.ready' : 'empty.title'));
      enough.update(ready ? state.budget : null);
      setText(text, problem ?? say(ready ? 'empty.ready_text' : 'empty.text'));
      const options = said(contact.readGraphOptions())?.components ?? {};
      list.hidden = !!problem;
      list.replaceChildren(
        ...(ready && !problem ? names : []).map((name) => element('li', {}, element('b', { text: name }), ' ', options[name]?.placement ?? say('empty.decided'))),
        ...state.bystanders.map((one) => element('li', {}, element('b', { text: one.component }), ` ${leftToApp(say, one)}`)),
      );
      add.hidden = ready;
    },
  };
}
