// Options of the whole graph and the user's defaults, as plain data, and the text that our nodes carry to the server:
//   {"schema": 1, "graph": {"mode", "components": {selector: {placement, budget_gb, ring_gb, lora_mode,
//                                                    host_tier, pin_budget_gb}}},
//    "settings": {same}}
// Says nothing where nobody set anything: `auto` and 0 are unset. Pure.
import { CHOICES, SIZES } from './tables.js';

export const SCHEMA = 1;

/** One source's word with everything that is unset left out; null if nothing is left. Unknown members are kept out. */
export function said(word) {
  const components = {};
  for (const [selector, settings] of Object.entries(word?.components ?? {})) {
    const kept = {};
    for (const name of CHOICES) if (settings?.[name] && settings[name] !== 'auto') kept[name] = settings[name];
    for (const name of SIZES) if (Number(settings?.[name]) > 0) kept[name] = Number(settings[name]);
    if (Object.keys(kept).length) components[selector] = kept;
  }
  const result = {};
  if (word?.mode && word.mode !== 'auto') result.mode = word.mode;
  if (Object.keys(components).length) result.components = components;
  return Object.keys(result).length ? result : null;
}

/** A copy of `word` in which `selector`'s setting `name` has `value`; `selector` null sets the mode. */
export function changed(word, selector, name, value) {
  const copy = { schema: SCHEMA, ...(word?.mode ? { mode: word.mode } : {}), components: { ...(word?.components ?? {}) } };
  if (selector === null) copy.mode = value;
  else copy.components[selector] = { ...(copy.components[selector] ?? {}), [name]: value };
  const kept = said(copy);
  return kept && { schema: SCHEMA, ...kept };
}

/** What the nodes' `graph_options` input says at queue time; '' if nobody said anything. Keys in one order, for the cache. */
export function optionsText(graph, settings) {
  const parts = { graph: said(graph), settings: said(settings) };
  if (!parts.graph && !parts.settings) return '';
  const content = { schema: SCHEMA };
  for (const [name, word] of Object.entries(parts)) if (word) content[name] = sorted(word);
  return JSON.stringify(content);
}

/** The graph's part of such a text, as it came with a workflow in API form; null if it has none. */
export function graphPart(text) {
  try {
    return said(JSON.parse(text)?.graph);
  } catch {
    return null;
  }
}

/** The graph's part that nodes brought with them, of the first that has one: `active` as of the app; null if none has. */
export function carriedPart(active) {
  for (const { node } of active) {
    const part = graphPart(node.widgets?.find((widget) => widget.name === 'graph_options')?.value);
    if (part) return { schema: SCHEMA, ...part };
  }
  return null;
}

function sorted(value) {
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}
