// The panel's state: the last report, updated by the live messages after it, and the plan of what has not run yet. Pure.
//
// Reports and live messages identify components by `id`. A live message has no layer names, settings or predictions: those
// of the last report are kept. An event is [kind, component id, layer index, start_ns, end_ns, bytes].
import { APPLY, NODES } from './tables.js';

export const KEPT_EVENTS = 4000;
const KEPT_NS = 30e9;
const LIVE_FIELDS = ['loaded', 'running', 'layer_states', 'numbers', 'pass'];

export function emptyState() {
  return { known: false, components: [], bystanders: [], devices: [], host: null, events: [], ahead: null, problem: null, budget: null };
}

/** The state after a report. Events are kept. */
export function withReport(state, report) {
  return withPlanned({
    ...state,
    known: true,
    components: report.components.map((component) => ({ pass: null, ...component })),
    bystanders: report.bystanders ?? [],
    devices: report.devices ?? [],
    host: report.host ?? null,
  });
}

/** The state after the server's plan for the graph as it is now; `ahead` is null if the graph has none of our nodes. */
export function withAhead(state, ahead) {
  return withPlanned({ ...state, ahead, problem: ahead?.error ?? null, budget: ahead?.budget ?? null });
}

/** The state with what the report has, followed by what the graph will load, marked as `planned`. */
function withPlanned(state) {
  const components = state.components.filter((component) => !component.planned);
  const bystanders = state.bystanders.filter((component) => !component.planned);
  const isLoaded = (planned) => [...components, ...bystanders].some((loaded) => sameComponent(loaded, planned));
  const marked = (list) => (list ?? []).filter((component) => !isLoaded(component)).map((component) => ({ ...component, planned: true }));
  const planned = marked(state.ahead?.components).map((component) => ({ ...component, pass: null, loaded: false, running: false }));
  return { ...state, components: [...components, ...planned], bystanders: [...bystanders, ...marked(state.ahead?.bystanders)] };
}

/** Whether the node with the id `id` brought a component. */
export const isOfNode = (component, id) => (component.nodes ?? []).map(String).includes(String(id));

/** Whether two entries are the same component: from the same file, or of the same node if one of them names no file. */
function sameComponent(first, second) {
  if (first.component !== second.component) return false;
  const isFile = ({ model }) => /\.\w+$/.test(model);
  const isShared = (first.nodes ?? []).some((id) => isOfNode(second, id));
  return first.model === second.model || (isShared && !(isFile(first) && isFile(second)));
}

/** The state with the events that the server has stored, for a panel that is opened after a run. */
export function withStored(state, events) {
  const keyOf = ([kind, id, layer, start]) => `${kind} ${id} ${layer} ${start}`;
  const known = new Set(state.events.map(keyOf));
  const added = events.filter((event) => !known.has(keyOf(event)));
  return { ...state, events: keptEvents(added, state.events) };
}

/** The state after a live message; `stale` if the message has a component, layers or a plan that the last report lacks. */
export function withLive(state, message) {
  const fresh = new Map((message.components ?? []).map((component) => [component.id, component]));
  let stale = false;
  const components = state.components.map((component) => {
    const live = fresh.get(component.id);
    if (!live) return component;
    fresh.delete(component.id);
    stale ||= (live.layer_states ?? '').length !== (component.plan?.layers ?? []).length;
    return { ...component, ...Object.fromEntries(LIVE_FIELDS.filter((name) => name in live).map((name) => [name, live[name]])) };
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

/** The component that numbers and timeline show: the chosen one, else the running one, else the largest, else null. */
export function focused(state, chosenId) {
  const bytes = (component) => (component.plan?.layers ?? []).reduce((sum, layer) => sum + layer.bytes, 0);
  const rank = (component) => (component.planned ? 1 : 0); // loaded before planned
  return (
    state.components.find((component) => component.id === chosenId) ??
    state.components.find((component) => component.running) ??
    [...state.components].sort((a, b) => rank(a) - rank(b) || bytes(b) - bytes(a))[0] ??
    null
  );
}

/**
 * The visits, copies and stalls of a component's last `passes` passes: {events, start_ns, end_ns}; null without visits. Fewer
 * passes if these do not follow one another: while no page listens, only every eighth pass is measured.
 */
export function lastPasses(events, id, passes = 2) {
  const ofComponent = events.filter((event) => event[1] === id);
  const visits = ofComponent.filter(([kind]) => kind === 'visit').sort((a, b) => a[3] - b[3]);
  if (!visits.length) return null;
  const first = Math.min(...visits.map((event) => event[2]));
  const starts = visits.filter((event) => event[2] === first).map((event) => event[3]);
  let from = starts.length - 1;
  while (from > 0 && from > starts.length - passes && follows(visits, starts[from - 1], starts[from], starts[from + 1])) from -= 1;
  const start_ns = starts[from];
  const shown = ofComponent.filter((event) => event[4] > start_ns);
  return { events: shown, start_ns, end_ns: shown.reduce((most, event) => Math.max(most, event[4]), start_ns) };
}

/** Whether the pass that began at `start` follows the one at `before`: the pause is not longer than the longer pass. */
function follows(visits, before, start, next = Infinity) {
  const ended = Math.max(...visits.filter((event) => event[3] >= before && event[3] < start).map((event) => event[4]));
  const last = Math.max(...visits.filter((event) => event[3] >= start && event[3] < next).map((event) => event[4]));
  return start - ended <= Math.max(ended - before, last - start);
}

// ---- the components of a graph before it has run

export const typeOf = (node) => String(node.comfyClass ?? node.type);
const slotsOf = (node) => NODES[typeOf(node)] ?? [];
const valueOf = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value;

/** Whether a node brings components of ours. */
export const isOurs = (node) => typeOf(node) in NODES;

/** Whether the input `name` of a node is connected. */
export function isWired(node, name) {
  const slot = (node.inputs ?? []).findIndex((input) => input.name === name);
  return slot >= 0 && node.isInputConnected(slot);
}

/** The kinds of components that a node brings, without those whose input is unconnected (Apply) or set to no file (loader). */
export function kindsOf(node) {
  const isPresent = ({ needs }) => !needs || isWired(node, needs) || ![undefined, null, '', 'none'].includes(valueOf(node, needs));
  return slotsOf(node).filter(isPresent).map(({ kind }) => kind);
}

/** The value of a node's placement widget for the component of `kind`; null if it has none. */
export function placementWidget(node, kind) {
  const slot = slotsOf(node).find((candidate) => candidate.kind === kind);
  return (slot && valueOf(node, slot.placement)) ?? null;
}

/**
 * The names that the server will give to the components of a graph: the second one of a kind is `kind_2`, in the order of
 * node ids. `active`: [{id, node}]. An Apply node behind one of our own loaders adds no component. Links across subgraphs are
 * not followed here, so an Apply node's kinds count only if no loader of ours brings them.
 */
export function componentNames(active) {
  const natural = ({ id }) => id.split(':').map((part) => part.padStart(12, '0')).join(':');
  const ordered = [...active].sort((a, b) => (natural(a) < natural(b) ? -1 : 1));
  const kindsIn = (entries) => entries.flatMap(({ node }) => kindsOf(node));
  const isApply = ({ node }) => typeOf(node) === APPLY;
  const loaded = kindsIn(ordered.filter((entry) => !isApply(entry)));
  const applied = kindsIn(ordered.filter(isApply)).filter((kind) => !loaded.includes(kind));
  const counts = {};
  for (const kind of [...loaded, ...applied]) counts[kind] = (counts[kind] ?? 0) + 1;
  return Object.entries(counts).flatMap(([kind, count]) =>
    Array.from({ length: count }, (_, index) => (index ? `${kind}_${index + 1}` : kind)),
  );
}
