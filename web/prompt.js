// The part of a graph that determines which files our nodes will load, as a prompt in API form. The app is not asked for the
// prompt: making one may draw seeds or upload images, which an open panel must not cause. Pure.
import { isOurs, typeOf, widgetNamed } from './model.js';
import { APP_LOADERS, OPTIONS } from './tables.js';

const CONSTANTS = ['PrimitiveInt', 'PrimitiveFloat', 'PrimitiveString', 'PrimitiveStringMultiline', 'PrimitiveBoolean'];
export const NEVER = 2, BYPASS = 4; // values of a node's `mode`
const FROM_OUTSIDE = '-10'; // origin_id of links from a subgraph's own inputs; a number in older frontends
const MAX_STEPS = 200; // of one connection, through nodes that are not in the prompt

/**
 * The prompt for `active` ([{id, node, graph, parent}]); null if none of them is ours. Links are resolved as the app resolves
 * them; widget values are only those of our nodes and the app's loaders. `graphOptions`: the value of our nodes' input.
 */
export function promptOf(active, graphOptions = '') {
  if (!active.some(({ node }) => isOurs(node))) return null;
  const prompt = {};
  for (const entry of active) {
    const { id, node } = entry;
    if (node.isVirtualNode || node.subgraph) continue;
    const type = typeOf(node);
    const read = isOurs(node) || type === OPTIONS || APP_LOADERS.includes(type);
    const inputs = {};
    for (const widget of read ? node.widgets ?? [] : []) {
      if (isPlain(widget.value)) inputs[widget.name] = widget.value;
    }
    for (const [slot, input] of (node.inputs ?? []).entries()) {
      const source = sourceOf(entry, slot);
      if (source?.wire) inputs[input.name] = source.wire;
      else if (source && read && isPlain(source.value)) inputs[input.name] = source.value;
    }
    delete inputs.layerwise_offload_text;
    if (isOurs(node)) inputs.graph_options = graphOptions;
    prompt[id] = { class_type: type, inputs };
  }
  return prompt;
}

const isPlain = (value) => ['string', 'number', 'boolean'].includes(typeof value);
const valueIn = (node, widget) => ({ value: widget?.value, node, widget });

/** The widget that sets the input `name` of the node `id`, be it a constant's or a subgraph's: {node, widget}; null without one. */
export function widgetOf(active, id, name) {
  const entry = active.find((candidate) => candidate.id === String(id));
  if (!entry) return null;
  const slot = (entry.node.inputs ?? []).findIndex((input) => input.name === name);
  const { node, widget } = linkInto(entry, slot) ? sourceOf(entry, slot) ?? {} : valueIn(entry.node, widgetNamed(entry.node, name));
  return widget ? { node, widget } : null;
}

/** The link into an input, or null. */
function linkInto({ node, graph }, slot) {
  if (slot < 0) return null;
  if (!node.subgraph) return node.getInputLink(slot);
  // getInputLink of a subgraph's node returns a link inside the subgraph
  const isInto = (link) => String(link.target_id) === String(node.id) && link.target_slot === slot;
  return [...graph.links.values()].find(isInto) ?? null;
}

/** The source of an input: {wire: [id, slot]} for an output in the prompt, {value, node, widget} for a widget, or null. */
function sourceOf(entry, slot, steps = 0) {
  const link = linkInto(entry, slot);
  return link && follow(entry, link, steps);
}

/** As `sourceOf`, for a link in `entry.graph`. */
function follow(entry, link, steps) {
  if (steps > MAX_STEPS) return null;
  const { graph, parent } = entry;
  if (String(link.origin_id) === FROM_OUTSIDE) {
    const outer = parent?.node.inputs?.[link.origin_slot];
    if (!outer) return null;
    if (linkInto(parent, link.origin_slot)) return sourceOf(parent, link.origin_slot, steps + 1);
    return outer.widget ? valueIn(parent.node, widgetNamed(parent.node, outer.widget.name)) : null;
  }
  const id = entry.id.replace(/[^:]*$/, '') + link.origin_id;
  const node = graph.getNodeById?.(link.origin_id);
  const origin = { id, node, graph, parent };
  if (node?.mode === NEVER) return null;
  if (node?.mode === BYPASS) return sourceOf(origin, passedThrough(node, link.origin_slot), steps + 1);
  if (node?.subgraph) {
    const inner = node.subgraph.getLink(node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
    return inner && follow({ id: `${id}:`, graph: node.subgraph, parent: origin }, inner, steps + 1);
  }
  if (node?.type === 'PrimitiveNode') return steps ? null : valueIn(node, node.widgets?.[0]); // the app does not pass its value on
  if (node && CONSTANTS.includes(typeOf(node)) && !node.inputs?.some((_, slot) => linkInto(origin, slot))) {
    return valueIn(node, widgetNamed(node, 'value'));
  }
  if (node?.isVirtualNode) {
    const before = node.getInputLink?.(link.origin_slot); // paired nodes of some packs return a link of their partner
    return before ? follow(origin, before, steps + 1) : null;
  }
  return { wire: [id, link.origin_slot] };
}

/** The input that a bypassed node passes to the output `slot`: the one in the same slot if its type fits, else the first that fits. */
function passedThrough(node, slot) {
  const type = node.outputs?.[slot]?.type;
  const same = (input) => input && (input.type === type || input.type === '*' || type === '*');
  return same(node.inputs?.[slot]) ? slot : (node.inputs ?? []).findIndex((input) => input.type === type);
}
