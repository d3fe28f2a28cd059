// The part of a graph that says which files our nodes will load, as a prompt in API form, without asking the app for one:
// making a real prompt may draw seeds or send pictures, which must not happen because a panel is open. Pure.
import { isOurs } from './model.js';
import { APP_LOADERS, OPTIONS } from './tables.js';

const CONSTANTS = ['PrimitiveInt', 'PrimitiveFloat', 'PrimitiveString', 'PrimitiveStringMultiline', 'PrimitiveBoolean'];
const NEVER = 2, BYPASS = 4; // modes of a node
const FROM_OUTSIDE = '-10'; // the id that a subgraph's own inputs have in its links; a number in older frontends
const MAX_STEPS = 200; // of a wire through nodes that are not in the prompt

/**
 * `active`: [{id, node, graph, parent}], every node that would run. Of our nodes and the app's loaders the widgets come with
 * it, of all nodes the links, as they are when the app has taken out what never runs: reroutes, bypassed nodes, the borders of
 * subgraphs, constants. `graphOptions`: what our nodes will carry. null if there is none of ours.
 */
export function promptOf(active, graphOptions = '') {
  if (!active.some(({ node }) => isOurs(typeOf(node)))) return null;
  const prompt = {};
  for (const entry of active) {
    const { id, node } = entry;
    if (node.isVirtualNode || node.subgraph) continue;
    const type = typeOf(node);
    const read = isOurs(type) || type === OPTIONS || APP_LOADERS.includes(type);
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
    if (isOurs(type)) inputs.graph_options = graphOptions;
    prompt[id] = { class_type: type, inputs };
  }
  return prompt;
}

const typeOf = (node) => String(node.comfyClass ?? node.type);
const isPlain = (value) => ['string', 'number', 'boolean'].includes(typeof value);
const prefixOf = (id) => id.replace(/[^:]*$/, '');
const widgetNamed = (node, name) => node.widgets?.find((one) => one.name === name);
const held = (node, widget) => ({ value: widget?.value, node, widget });

/**
 * Where the user would set the widget `name` of the node with the id `id`: {node, widget}, which is another node's if the
 * value comes from a constant, or from the subgraph around it; null if it is nobody's to set.
 */
export function widgetOf(active, id, name) {
  const entry = active.find((one) => one.id === String(id));
  if (!entry) return null;
  const slot = (entry.node.inputs ?? []).findIndex((input) => input.name === name);
  const { node, widget } = linkInto(entry, slot) ? sourceOf(entry, slot) ?? {} : held(entry.node, widgetNamed(entry.node, name));
  return widget ? { node, widget } : null;
}

/** The link that an input gets its value by, or null. */
function linkInto({ node, graph }, slot) {
  if (slot < 0) return null;
  if (!node.subgraph) return node.getInputLink(slot);
  // a subgraph's node answers that with a link inside it
  const isInto = (link) => String(link.target_id) === String(node.id) && link.target_slot === slot;
  return [...graph.links.values()].find(isInto) ?? null;
}

/** What an input of a node that runs gets: {wire: [id, slot]}, {value, node, widget}, or null for nothing. */
function sourceOf(entry, slot, steps = 0) {
  const link = linkInto(entry, slot);
  return link && follow(entry, link, steps);
}

function follow(entry, link, steps) {
  if (steps > MAX_STEPS) return null;
  const { graph, parent } = entry;
  if (String(link.origin_id) === FROM_OUTSIDE) {
    const outer = parent?.node.inputs?.[link.origin_slot];
    if (!outer) return null;
    if (linkInto(parent, link.origin_slot)) return sourceOf(parent, link.origin_slot, steps + 1);
    return outer.widget ? held(parent.node, widgetNamed(parent.node, outer.widget.name)) : null;
  }
  const id = prefixOf(entry.id) + link.origin_id;
  const node = graph.getNodeById?.(link.origin_id);
  const origin = { id, node, graph, parent };
  if (node?.mode === NEVER) return null;
  if (node?.mode === BYPASS) return sourceOf(origin, passedThrough(node, link.origin_slot), steps + 1);
  if (node?.subgraph) {
    const inner = node.subgraph.getLink(node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
    return inner && follow({ id: `${id}:`, graph: node.subgraph, parent: origin }, inner, steps + 1);
  }
  if (node?.type === 'PrimitiveNode') return steps ? null : held(node, node.widgets?.[0]); // the app hands it on no further
  if (node && CONSTANTS.includes(typeOf(node)) && !node.inputs?.some((_, slot) => linkInto(origin, slot))) {
    return held(node, widgetNamed(node, 'value'));
  }
  if (node?.isVirtualNode) {
    const before = node.getInputLink?.(link.origin_slot); // some packs' pairs of nodes hand over a link of another node
    return before ? follow(origin, before, steps + 1) : null;
  }
  return { wire: [id, link.origin_slot] };
}

/** The slot of the input that a bypassed node hands on at an output: of the same type, in the same place if there is one. */
function passedThrough(node, slot) {
  const type = node.outputs?.[slot]?.type;
  const same = (input) => input && (input.type === type || input.type === '*' || type === '*');
  return same(node.inputs?.[slot]) ? slot : (node.inputs ?? []).findIndex((input) => input.type === type);
}
