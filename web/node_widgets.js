// What our nodes carry in the browser: a text widget, and the hidden input with the options of the whole graph.
// Gets the app's node objects from its hooks; all other contact with the app is by `contact`.
import { graphPart, optionsText } from './graph_options.js';
import { isOurs, isWired, kindsOf } from './model.js';
import { MARGIN, REPORT_HEIGHT, fromReport, heightFor, kindOf, nodeText, reportText } from './node_text.js';
import { word } from './settings.js';
import { noticeLines } from './words.js';

const TEXT_WIDGET = 'layerwise_offload_text';
const OPTIONS_WIDGET = 'graph_options';
const WIDTH = 380; // of a new node: what `auto` came to is read without its tooltip
const REPORT = 'LayerwiseOffloadReport';
const REPORT_SIZE = [560, 420]; // of a new one: its text has many lines, of a hundred characters
const TOGETHER_MS = 500; // what comes within this time is said in one toast

/** Looks after the nodes of the graph. `say` must be ready before nodes are made; see `ready`. */
export function nodeWidgets(contact) {
  const shown = new WeakMap(); // node -> {text, resolved: Map by component}
  const reports = new WeakMap(); // Report node -> its text
  let say = null;
  const told = new Set();
  const pending = [];

  const put = (node, list) => {
    const entry = shown.get(node);
    if (!entry) return;
    entry.resolved = new Map(list.map((one) => [one.component, one]));
    entry.text.show(list);
  };
  const find = (id) => contact.activeNodes().find((one) => one.id === String(id))?.node;
  const textNodes = () => contact.activeNodes().filter(({ node }) => shown.has(node));
  const nodes = {
    /** Has the words of the app's language at hand: before any node is made, and again for each workflow. */
    async ready() {
      say = await contact.words();
    },
    /** A node has been made: by hand, by loading, or by pasting. */
    created(node) {
      const type = node.comfyClass ?? node.type;
      const speak = (...words) => say(...words);
      if (type === REPORT) {
        const text = reportText(speak);
        reports.set(node, text);
        carryText(node, text.root, REPORT_SIZE, () => REPORT_HEIGHT);
        const before = node.onExecuted;
        node.onExecuted = function (output, ...rest) {
          before?.call(this, output, ...rest);
          text.show(textOf(output));
        };
      }
      if (!isOurs(type)) return;
      carryOptions(contact, node);
      const text = nodeText(speak, node);
      shown.set(node, { text, resolved: new Map() });
      const height = () => heightFor(node);
      carryText(node, text.root, [WIDTH, 0], height, height);
    },
    /** The app has put back what nodes of this workflow showed: another tab has been opened, or a run of the history. */
    restored(outputs) {
      for (const { node, graph, parent } of contact.activeNodes()) {
        const output = outputs?.[parent ? `${graph.id}:${node.id}` : node.id];
        if (output) reports.get(node)?.show(textOf(output));
      }
    },
    /** The message that a component has been placed. Warnings stay on the node; what the user has to do is one toast. */
    resolved(message) {
      const node = find(message.node);
      if (node && shown.has(node) && namesFile(node, message.model ?? '')) put(node, [...stillThere(node, shown.get(node).resolved, message), message]);
      const fresh = noticeLines(say, message.to_do_notices, message.to_do).map((text) => `${message.component}: ${text}`).filter((text) => !told.has(text));
      if (!fresh.length) return;
      fresh.forEach((text) => told.add(text));
      if (!pending.length) setTimeout(() => contact.toast('warn', pending.splice(0).join('\n')), TOGETHER_MS);
      pending.push(...fresh);
    },
    /** After a reload: what the last runs came to, for nodes that still load the same files. `missing`: of what says nothing. */
    async fill(active = textNodes(), missing = false) {
      if (!active.length) return;
      await this.ready();
      for (const { node } of active) put(node, [...shown.get(node).resolved.values()]);
      const report = await contact.fetchReport().catch(() => null);
      if (!report) return;
      const ids = new Set(contact.activeNodes().map((one) => one.id));
      for (const { id, node } of active) {
        const kept = missing ? [...shown.get(node).resolved.values()] : [];
        const list = resolvedOf(report, node, id, ids).filter((one) => !kept.some((each) => kindOf(each.component) === kindOf(one.component)));
        if (list.length) put(node, [...kept, ...list]);
      }
    },
    /** After a run: what the app found in its cache has had no message: a whole node, as a loader put into a subgraph, or a part. */
    fillMissing: () => nodes.fill(textNodes().filter(({ node }) => saysNothingOfSome(node, shown.get(node).resolved)), true),
  };
  return nodes;
}

/**
 * Puts a text on a node: its last widget, in no prompt and in no saved workflow. `size`: what a new node has at least;
 * `least()` and `most()`: the text's height, without a `most` what the node has left.
 */
function carryText(node, root, size, least, most) {
  const before = [...node.size];
  const widget = node.addDOMWidget(TEXT_WIDGET, 'layerwise_offload_text', root, {
    serialize: false, // not into the prompt
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => '',
    setValue: () => {},
    getMinHeight: least,
    getMaxHeight: most,
  });
  widget.serialize = false; // nor into the workflow; being last, it leaves no hole there
  widget.computeLayoutSize = () => ({ minHeight: least(), maxHeight: most?.(), minWidth: 0 });
  const needed = node.computeSize();
  node.setSize([0, 1].map((side) => Math.max(before[side], needed[side], size[side]))); // a saved one gets its own size after this
}

/** The report in what the Report node gave to the page. */
const textOf = (output) => (output?.text ?? []).join('\n');

/** What a node shows beside a new message: of each kind it brings one, so an earlier name and a file taken out are gone. */
function stillThere(node, resolved, message) {
  const kinds = kindsOf(node).filter((kind) => kind !== kindOf(message.component));
  return [...resolved.values()].filter((one) => kinds.includes(kindOf(one.component)));
}

const saysNothingOfSome = (node, resolved) => kindsOf(node).some((kind) => ![...resolved.values()].some((one) => kindOf(one.component) === kind));

/** What the report says of a node: by its id, else by its files, if the nodes that asked are no longer in the graph. */
function resolvedOf(report, node, id, ids) {
  const named = (one) => namesFile(node, one.model);
  const mine = (one) => (one.nodes ?? []).map(String).includes(id);
  const gone = (one) => !(one.nodes ?? []).some((each) => ids.has(String(each))) && kindsOf(node).includes(kindOf(one.component));
  const pick = (list, test) => (list ?? []).filter((one) => test(one) && named(one)).map((one) => ({ ...one, nodes: [id] }));
  for (const test of [mine, gone]) {
    const found = fromReport({ components: pick(report.components, test), bystanders: pick(report.bystanders, test) }, node, id);
    if (found.length) return found;
  }
  return [];
}

/** The `graph_options` input: filled when the prompt is made, never shown, its own value left as it came. */
function carryOptions(contact, node) {
  const widget = node.widgets?.find((one) => one.name === OPTIONS_WIDGET);
  if (!widget) return; // a server side without it
  widget.hidden = true;
  widget.options = { ...(widget.options ?? {}), hidden: true, advanced: false };
  widget.serializeValue = () => optionsText(contact.savedGraphOptions() ?? graphPart(widget.value), word(contact.settingValue));
}

/**
 * Another workflow may use the same node id: a component is this node's only if one of its widgets names its file. What a
 * widget gets from another node is not known here.
 */
function namesFile(node, model) {
  const isFile = (name) => typeof name === 'string' && /\.\w+$/.test(name);
  const files = (node.widgets ?? []).filter((widget) => isFile(widget.value));
  if (!isFile(model) || !files.length || files.some(({ name }) => isWired(node, name))) return true;
  return files.some(({ value }) => model.includes(value.split(/[\\/]/).pop()));
}
