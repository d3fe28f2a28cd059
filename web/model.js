// The panel's state: the last report, updated by the live messages after it, and the plan of what has not run yet. Pure.
// Reports, live messages, and their events [kind, component id, layer index, start_ns, end_ns, bytes]: docs/formats.md.
import { APPLY, NODES } from './tables.js';

export const KEPT_EVENTS = 4000;
const KEPT_NS = 30e9;

export function emptyState() {
  return { known: false, components: [], bystanders: [], devices: [], host: null, events: [], ahead: null, problem: null, budget: null };
}

/** The state after a report. Events are kept. */
export function withReport(state, { components, bystanders = [], devices = [], host = null }) {
  return withPlanned({ ...state, known: true, components, bystanders, devices, host });
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
  const marked = { planned: true, pass: null, loaded: false, running: false };
  const planned = (list) => (list ?? []).filter((component) => !isLoaded(component)).map((component) => ({ ...component, ...marked }));
  const { ahead } = state;
  return { ...state, components: [...components, ...planned(ahead?.components)], bystanders: [...bystanders, ...planned(ahead?.bystanders)] };
}

export const isFile = (name) => typeof name === 'string' && /\.\w+$/.test(name);
/** Whether the source of a setting is one that sets it: the policy, or none, leaves it to the pack. */
export const isSet = (source) => !!source && source !== 'policy';
/** Whether the node with the id `id` brought a component. */
export const isOfNode = (component, id) => (component.nodes ?? []).map(String).includes(String(id));

/** Whether two entries are the same component: from the same file, or of the same node if one of them names no file. */
function sameComponent(first, second) {
  if (first.component !== second.component) return false;
  const isShared = (first.nodes ?? []).some((id) => isOfNode(second, id));
  return first.model === second.model || (isShared && !(isFile(first.model) && isFile(second.model)));
}

/** The state with the events that the server has stored, for a panel that is opened after a run. */
export function withStored(state, events) {
  return { ...state, events: keptEvents(unknown(state, events), state.events) };
}

/** Those of `events` that the state does not have: a panel that is opened again is sent some for the second time. */
function unknown(state, events) {
  const keyOf = ([kind, id, layer, start]) => `${kind} ${id} ${layer} ${start}`;
  const known = new Set(state.events.map(keyOf));
  return events.filter((event) => !known.has(keyOf(event)));
}

/** The state after a live message; `stale` if it has a component, layers or a plan that the last report lacks, or lacks one of its. */
export function withLive(state, { components = [], events = [], devices = state.devices, host = state.host }) {
  const live = new Map(components.map((component) => [component.id, component]));
  const layers = new Map(state.components.map(({ id, plan }) => [id, plan?.layers?.length ?? 0]));
  const isNew = ({ id, layer_states }) => layers.get(id) !== (layer_states?.length ?? 0);
  const isGone = ({ id, planned }) => !planned && !live.has(id);
  return {
    ...state,
    components: state.components.map((component) => ({ ...component, ...live.get(component.id) })),
    stale: components.some(isNew) || state.components.some(isGone) || events.some(([kind]) => kind === 'plan'),
    devices,
    host,
    events: keptEvents(state.events, unknown(state, events)),
  };
}

function keptEvents(old, added) {
  const all = [...old, ...added].filter(([kind]) => ['visit', 'copy', 'stall'].includes(kind));
  const latest = Math.max(...all.map((event) => event[4]));
  return all.filter((event) => event[4] >= latest - KEPT_NS).slice(-KEPT_EVENTS);
}

/** The component that numbers and timeline show: the chosen one, else the running one, else the largest, else null. */
export function focused({ components }, chosenId) {
  const size = (component) => (component.plan?.layers ?? []).reduce((sum, layer) => sum + layer.bytes, 0);
  const byRank = (a, b) => Number(a.planned ?? false) - Number(b.planned ?? false) || size(b) - size(a); // loaded before planned
  const [largest = null] = [...components].sort(byRank);
  return components.find(({ id }) => id === chosenId) ?? components.find(({ running }) => running) ?? largest;
}

/**
 * The visits, copies and stalls of a component's last two passes: {events, start_ns, end_ns}; null without visits. Of the last
 * one alone after a pause longer than either: while no page listens, only every eighth pass is measured.
 */
export function lastPasses(events, id) {
  const ofComponent = events.filter((event) => event[1] === id);
  const visits = ofComponent.filter(([kind]) => kind === 'visit').sort((a, b) => a[3] - b[3]);
  if (!visits.length) return null;
  const first = Math.min(...visits.map((event) => event[2]));
  const waits = new Map(ofComponent.filter(([kind]) => kind === 'stall').map((event) => [event[4], event[3]])); // by their ends
  const passes = [];
  for (const [, , layer, start, end] of visits) {
    const pass = passes.at(-1);
    if (layer === first) passes.push({ start: waits.get(start) ?? start, end });
    else if (pass) pass.end = Math.max(pass.end, end);
  }
  const [last, before = last] = passes.reverse();
  const isNext = last.start - before.end <= Math.max(before.end - before.start, last.end - last.start);
  const start_ns = isNext ? before.start : last.start;
  const shown = ofComponent.filter((event) => event[4] > start_ns);
  return { events: shown, start_ns, end_ns: Math.max(start_ns, ...shown.map((event) => event[4])) };
}

// ---- the components of a graph before it has run

export const typeOf = (node) => String(node.comfyClass ?? node.type);
const slotsOf = (node) => NODES[typeOf(node)] ?? [];
export const widgetNamed = (node, name) => node.widgets?.find((widget) => widget.name === name);
const valueOf = (node, name) => widgetNamed(node, name)?.value;

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
 * The names that the server will give to the components of a graph: the second of a kind is `kind_2`. `active`: [{id, node}].
 * An Apply node behind one of our own loaders adds no component. Links across subgraphs are not followed here, so an Apply
 * node's kinds count only if no loader of ours brings them.
 */
export function componentNames(active) {
  const kindsIn = (entries) => entries.flatMap(({ node }) => kindsOf(node));
  const isApply = ({ node }) => typeOf(node) === APPLY;
  const ordered = [...active].sort((a, b) => a.id.localeCompare(b.id, 'en', { numeric: true }));
  const loaded = kindsIn(ordered.filter((entry) => !isApply(entry)));
  const applied = kindsIn(ordered.filter(isApply)).filter((kind) => !loaded.includes(kind));
  const counts = {};
  for (const kind of [...loaded, ...applied]) counts[kind] = (counts[kind] ?? 0) + 1;
  return Object.entries(counts).flatMap(([kind, count]) =>
    Array.from({ length: count }, (_, index) => (index ? `${kind}_${index + 1}` : kind)),
  );
}
