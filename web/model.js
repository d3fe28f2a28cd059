// What is known about the components: the last report, and the live messages that came after it. Pure; no page, no app.
//
// A report and a live message speak of the same components by `id`. A live message knows no layer names, no settings and
// no predictions: those stay as the last report said them.
import { APPLY, NODES } from './tables.js';

export const KEPT_EVENTS = 4000;
const KEPT_NS = 30e9;
export const LIVE_FIELDS = ['loaded', 'running', 'layer_states', 'numbers', 'pass'];

export function emptyState() {
  return { known: false, components: [], bystanders: [], devices: [], host: null, events: [], ahead: null, problem: null, budget: null };
}

/** The state after a report. Events and live fields are kept where the component is still the same one. */
export function withReport(state, report) {
  return withPlanned({
    ...state,
    known: true,
    components: report.components.map((one) => ({ pass: null, ...one })),
    bystanders: report.bystanders ?? [],
    devices: report.devices ?? [],
    host: report.host ?? null,
  });
}

/** The state after the server has said what the graph would come to if it ran now; null: there is nothing of ours in it. */
export function withAhead(state, ahead) {
  return withPlanned({ ...state, ahead, problem: ahead?.error ?? null, budget: ahead?.budget ?? null });
}

/** What has been loaded is shown as it is; beside it, as planned, what the graph will load. */
function withPlanned(state) {
  const components = state.components.filter((one) => !one.planned);
  const bystanders = state.bystanders.filter((one) => !one.planned);
  const isThere = (one) => [...components, ...bystanders].some((each) => sameComponent(each, one));
  const marked = (list) => (list ?? []).filter((one) => !isThere(one)).map((one) => ({ ...one, planned: true }));
  const planned = marked(state.ahead?.components).map((one) => ({ ...one, pass: null, loaded: false, running: false }));
  return { ...state, components: [...components, ...planned], bystanders: [...bystanders, ...marked(state.ahead?.bystanders)] };
}

/** Whether two reports are of one component of a graph: of one file, or of nodes that took it over from another loader. */
function sameComponent(a, b) {
  if (a.component !== b.component) return false;
  const isFile = (one) => /\.\w+$/.test(one.model);
  const shared = (a.nodes ?? []).some((id) => (b.nodes ?? []).map(String).includes(String(id)));
  return a.model === b.model || (shared && !(isFile(a) && isFile(b)));
}

/** The state with what the server still remembers of earlier passes, for a page that comes late. */
export function withStored(state, events) {
  const keyOf = ([kind, id, layer, start]) => `${kind} ${id} ${layer} ${start}`;
  const known = new Set(state.events.map(keyOf));
  const added = events.filter((event) => !known.has(keyOf(event)));
  return { ...state, events: keptEvents(added, state.events) };
}

/** The state after a live message; `stale` is set when it speaks of a component or layers that the report did not have. */
export function withLive(state, message) {
  const fresh = new Map((message.components ?? []).map((one) => [one.id, one]));
  let stale = false;
  const components = state.components.map((one) => {
    const live = fresh.get(one.id);
    if (!live) return one;
    fresh.delete(one.id);
    stale ||= (live.layer_states ?? '').length !== (one.plan?.layers ?? []).length;
    return { ...one, ...Object.fromEntries(LIVE_FIELDS.filter((name) => name in live).map((name) => [name, live[name]])) };
  });
  return {
    ...state,
    components,
    stale: stale || fresh.size > 0 || (message.events ?? []).some(([kind]) => kind === 'plan'),
    devices: message.devices ?? state.devices,
    host: message.host ?? state.host,
    events: keptEvents(state.events, message.events ?? []),
  };
}

function keptEvents(old, added) {
  const all = [...old, ...added].filter(([kind]) => kind === 'visit' || kind === 'copy' || kind === 'stall');
  const latest = all.reduce((most, event) => Math.max(most, event[4]), 0);
  return all.filter((event) => event[4] >= latest - KEPT_NS).slice(-KEPT_EVENTS);
}

/** The component that numbers and timeline are about: the chosen one, else the running one, else the largest. */
export function focused(state, chosenId) {
  const bytes = (one) => (one.plan?.layers ?? []).reduce((sum, layer) => sum + layer.bytes, 0);
  const rank = (one) => (one.planned ? 1 : 0); // what has been loaded comes before what will be
  return (
    state.components.find((one) => one.id === chosenId) ??
    state.components.find((one) => one.running) ??
    [...state.components].sort((a, b) => rank(a) - rank(b) || bytes(b) - bytes(a))[0] ??
    null
  );
}

/**
 * The events of the last `passes` passes of a component, its copies and stalls with them: {events, start_ns, end_ns}. Only
 * passes that follow one another: of those that nobody watched, every eighth is measured.
 */
export function lastPasses(events, id, passes = 2) {
  const mine = events.filter((event) => event[1] === id);
  const visits = mine.filter(([kind]) => kind === 'visit').sort((a, b) => a[3] - b[3]);
  if (!visits.length) return null;
  const first = Math.min(...visits.map((event) => event[2]));
  const starts = visits.filter((event) => event[2] === first).map((event) => event[3]);
  let from = starts.length - 1;
  while (from > 0 && from > starts.length - passes && follows(visits, starts[from - 1], starts[from], starts[from + 1])) from -= 1;
  const start_ns = starts[from];
  const shown = mine.filter((event) => event[4] > start_ns);
  return { events: shown, start_ns, end_ns: shown.reduce((most, event) => Math.max(most, event[4]), start_ns) };
}

/** Whether the pass that began at `before` led to the one at `start`: the pause between them is no longer than a pass. */
function follows(visits, before, start, next = Infinity) {
  const ended = Math.max(...visits.filter((event) => event[3] >= before && event[3] < start).map((event) => event[4]));
  const last = Math.max(...visits.filter((event) => event[3] >= start && event[3] < next).map((event) => event[4]));
  return start - ended <= Math.max(ended - before, last - start);
}

// ---- the components of a graph, before anything has been loaded

const typeOf = (node) => String(node.comfyClass ?? node.type);
const slotsOf = (node) => NODES[typeOf(node)] ?? [];
const valueOf = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value;

export const isOurs = (type) => type in NODES;

/** Whether the input `name` of a node gets its value by a wire. */
export function isWired(node, name) {
  const slot = (node.inputs ?? []).findIndex((input) => input.name === name);
  return slot >= 0 && node.isInputConnected(slot);
}

/** The kinds of components that a node brings: without those for which an Apply node has no wire, or a loader no file. */
export function kindsOf(node) {
  const isThere = ({ needs }) => !needs || isWired(node, needs) || ![undefined, null, '', 'none'].includes(valueOf(node, needs));
  return slotsOf(node).filter(isThere).map(({ kind }) => kind);
}

/** What a node's placement widget for a component of `kind` is set to; null if it has none. */
export function placementWidget(node, kind) {
  const slot = slotsOf(node).find((each) => each.kind === kind);
  return (slot && valueOf(node, slot.placement)) ?? null;
}

/**
 * The names of the components of a graph, as the server will give them: a kind's second component is `kind_2`, by the
 * order of node ids. `active`: [{id, node}]. An Apply node behind one of our own loaders adds none; where it gets its
 * model from another node of ours cannot be told here across subgraphs, so its components count only if no loader of ours
 * brings one of that kind.
 */
export function componentNames(active) {
  const natural = ({ id }) => id.split(':').map((part) => part.padStart(12, '0')).join(':');
  const ordered = [...active].sort((a, b) => (natural(a) < natural(b) ? -1 : 1));
  const counts = {};
  const isApply = ({ node }) => typeOf(node) === APPLY;
  for (const one of ordered.filter((each) => !isApply(each))) {
    for (const kind of kindsOf(one.node)) counts[kind] = (counts[kind] ?? 0) + 1;
  }
  const loaded = new Set(Object.keys(counts));
  for (const one of ordered.filter(isApply)) {
    for (const kind of kindsOf(one.node)) if (!loaded.has(kind)) counts[kind] = (counts[kind] ?? 0) + 1;
  }
  return Object.entries(counts).flatMap(([kind, count]) =>
    Array.from({ length: count }, (_, index) => (index ? `${kind}_${index + 1}` : kind)),
  );
}
