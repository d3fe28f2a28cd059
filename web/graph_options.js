// The options of a graph and the user's defaults as plain data, and the text in which our nodes send them to the server
// (docs/formats.md). Unset values (`auto` and 0) are left out. Pure.
import { widgetNamed } from './model.js';
import { CHOICES, SIZES } from './tables.js';

export const SCHEMA = 1;

/** A copy of `options` without unset values and unknown members; null if nothing is left. */
export function withoutUnset(options) {
  const components = {};
  for (const [selector, settings] of Object.entries(options?.components ?? {})) {
    const kept = {};
    for (const name of CHOICES) if (settings?.[name] && settings[name] !== 'auto') kept[name] = settings[name];
    for (const name of SIZES) if (Number(settings?.[name]) > 0) kept[name] = Number(settings[name]);
    if (Object.keys(kept).length) components[selector] = kept;
  }
  const result = {};
  if (options?.mode && options.mode !== 'auto') result.mode = options.mode;
  if (Object.keys(components).length) result.components = components;
  return Object.keys(result).length ? result : null;
}

/** A copy of `options` with one change: of `selector`'s setting `name`, or of the mode if `selector` is null. Null if all is unset. */
export function changed(options, selector, name, value) {
  const copy = { mode: options?.mode, components: { ...options?.components } };
  if (selector === null) copy.mode = value;
  else copy.components[selector] = { ...copy.components[selector], [name]: value };
  const kept = withoutUnset(copy);
  return kept && { schema: SCHEMA, ...kept };
}

/** The value of the nodes' `graph_options` input; '' if all is unset. Sorted keys let equal options hit the app's cache. */
export function optionsText(graph, settings) {
  const parts = Object.entries({ graph, settings }).map(([name, options]) => [name, sorted(withoutUnset(options))]);
  const set = parts.filter(([, options]) => options);
  return set.length ? JSON.stringify({ schema: SCHEMA, ...Object.fromEntries(set) }) : '';
}

/** The graph's options in a text of `optionsText`; null if there are none, or if it is not JSON. */
export function graphPart(text) {
  try {
    return withoutUnset(JSON.parse(text)?.graph);
  } catch {
    return null;
  }
}

/** The graph's options in the first node of `active` that carries some, as after a workflow in API form was loaded, or null. */
export function carriedPart(active) {
  const texts = active.map(({ node }) => widgetNamed(node, 'graph_options')?.value);
  const part = texts.map(graphPart).find(Boolean);
  return part ? { schema: SCHEMA, ...part } : null;
}

/** A copy of a JSON value with the keys of every object in alphabetical order. */
function sorted(value) {
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}
