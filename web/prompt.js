// The part of a graph that says which files our nodes will load, as a prompt in API form, without asking the app for one:
// making a real prompt may draw seeds or send pictures, which must not happen because a panel is open. Pure.
import { isOurs } from './model.js';

const APP_LOADERS = [
  'UNETLoader', 'CLIPLoader', 'DualCLIPLoader', 'TripleCLIPLoader', 'QuadrupleCLIPLoader', 'VAELoader', 'CLIPVisionLoader',
  'ControlNetLoader', 'CheckpointLoaderSimple',
];
const OPTIONS = 'LayerwiseOffloadOptions';

/**
 * `active`: [{id, node, graph}], every node that would run. Of our nodes and the app's loaders the widgets come with it, of all
 * nodes the links. `graphOptions`: what our nodes will carry. null if there is none of ours.
 */
export function promptOf(active, graphOptions = '') {
  const typeOf = (node) => String(node.comfyClass ?? node.type);
  if (!active.some(({ node }) => isOurs(typeOf(node)))) return null;
  const prompt = {};
  for (const { id, node, graph } of active) {
    const type = typeOf(node);
    const read = isOurs(type) || type === OPTIONS || APP_LOADERS.includes(type);
    const inputs = {};
    for (const widget of read ? node.widgets ?? [] : []) {
      if (['string', 'number', 'boolean'].includes(typeof widget.value)) inputs[widget.name] = widget.value;
    }
    for (const input of node.inputs ?? []) {
      const link = linkOf(graph, input.link);
      if (link) inputs[input.name] = [id.replace(/[^:]*$/, '') + link.origin_id, link.origin_slot];
    }
    delete inputs.layerwise_offload_text;
    if (isOurs(type)) inputs.graph_options = graphOptions;
    prompt[id] = { class_type: type, inputs };
  }
  return prompt;
}

function linkOf(graph, id) {
  if (id === null || id === undefined) return null;
  return graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null;
}
