// The widgets that our nodes have in the browser: a text, and the hidden input with the options of the graph.
// The app's hooks pass its node objects in; everything else goes through `contact`.
import { graphPart, optionsText } from './graph_options.js';
import { isOfNode, isOurs, isWired, kindsOf, typeOf } from './model.js';
import { MARGIN, REPORT_HEIGHT, fromReport, heightFor, kindOf, nodeText, reportText } from './node_text.js';
import { defaultOptions } from './settings.js';
import { noticeLines } from './words.js';

const TEXT_WIDGET = 'layerwise_offload_text';
const OPTIONS_WIDGET = 'graph_options';
const WIDTH = 380; // of a new node: the resolved placement is readable without the tooltip
const REPORT = 'LayerwiseOffloadReport';
const REPORT_SIZE = [560, 420]; // of a new one: its text has many lines of about 100 characters
const TOGETHER_MS = 500; // messages within this time share one toast

/** The handlers for the app's hooks and messages about nodes. `ready` must have finished before a node is created. */
export function nodeWidgets(contact) {
  const shown = new WeakMap(); // node -> {text, resolved: Map by component}
  const reports = new WeakMap(); // Report node -> its text
  let say = null;
  const toasted = new Set();
  const pending = [];

  const put = (node, list) => {
    const entry = shown.get(node);
    if (!entry) return;
    entry.resolved = new Map(list.map((resolved) => [resolved.component, resolved]));
    entry.text.show(list);
  };
  const find = (id) => contact.activeNodes().find((entry) => entry.id === String(id))?.node;
  const textNodes = () => contact.activeNodes().filter(({ node }) => shown.has(node));
  const nodes = {
    /** Loads the texts in the app's language; called again for each workflow. */
    async ready() {
      say = await contact.words();
    },
    /** After a node was created by hand, by loading or by pasting. */
    created(node) {
      const speak = (...words) => say(...words);
      if (typeOf(node) === REPORT) {
        const text = reportText(speak);
        reports.set(node, text);
        carryText(node, text.root, REPORT_SIZE, () => REPORT_HEIGHT);
        const before = node.onExecuted;
        node.onExecuted = function (output, ...rest) {
          before?.call(this, output, ...rest);
          text.show(textOf(output));
        };
      }
      if (!isOurs(node)) return;
      carryOptions(contact, node);
      const text = nodeText(speak, node);
      shown.set(node, { text, resolved: new Map() });
      const height = () => heightFor(node);
      carryText(node, text.root, [WIDTH, 0], height, height);
    },
    /** After the app has restored the outputs of the workflow's nodes: a tab or a run of the history was opened. */
    restored(outputs) {
      for (const { node, graph, parent } of contact.activeNodes()) {
        const output = outputs?.[parent ? `${graph.id}:${node.id}` : node.id];
        if (output) reports.get(node)?.show(textOf(output));
      }
    },
    /** After the message that a component was placed. Warnings are shown on the node, what the user has to do in a toast. */
    resolved(message) {
      const node = find(message.node);
      if (node && shown.has(node) && namesFile(node, message.model ?? '')) put(node, [...stillThere(node, shown.get(node).resolved, message), message]);
      const fresh = noticeLines(say, message.to_do_notices, message.to_do).map((text) => `${message.component}: ${text}`).filter((text) => !toasted.has(text));
      if (!fresh.length) return;
      fresh.forEach((text) => toasted.add(text));
      if (!pending.length) setTimeout(() => contact.toast('warn', pending.splice(0).join('\n')), TOGETHER_MS);
      pending.push(...fresh);
    },
    /** Fills nodes from the report, as after a reload, if they still load the same files. `missing`: only kinds without a text. */
    async fill(active = textNodes(), missing = false) {
      if (!active.length) return;
      await this.ready();
      for (const { node } of active) put(node, [...shown.get(node).resolved.values()]);
      const report = await contact.fetchReport().catch(() => null);
      if (!report) return;
      const ids = new Set(contact.activeNodes().map((entry) => entry.id));
      for (const { id, node } of active) {
        const kept = missing ? [...shown.get(node).resolved.values()] : [];
        const list = resolvedOf(report, node, id, ids).filter(({ component }) => !showsKind(kept, kindOf(component)));
        if (list.length) put(node, [...kept, ...list]);
      }
    },
    /** After a run: components from the app's cache had no message, for example of a loader that was moved into a subgraph. */
    fillMissing: () => nodes.fill(textNodes().filter(({ node }) => isMissingSome(node, shown.get(node).resolved)), true),
  };
  return nodes;
}

/**
 * Adds a text as the last widget of a node; it is in no prompt and no saved workflow. `size`: the least size of a new node;
 * `least()` and `most()`: limits of the text's height. Without `most` it takes the free height of the node.
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
  node.setSize([0, 1].map((side) => Math.max(before[side], needed[side], size[side]))); // a saved node gets its own size later
}

/** The text in the Report node's output. */
const textOf = (output) => (output?.text ?? []).join('\n');

/** The entries that stay beside a new message: one per kind that the node brings, so old names and removed files go. */
function stillThere(node, resolved, message) {
  const kinds = kindsOf(node).filter((kind) => kind !== kindOf(message.component));
  return [...resolved.values()].filter(({ component }) => kinds.includes(kindOf(component)));
}

const showsKind = (list, kind) => list.some(({ component }) => kindOf(component) === kind);
const isMissingSome = (node, resolved) => kindsOf(node).some((kind) => !showsKind([...resolved.values()], kind));

/** A node's components in the report: by its id, else by its files, from nodes that are no longer in the graph (`ids`). */
function resolvedOf(report, node, id, ids) {
  const ofThisNode = (component) => isOfNode(component, id);
  const ofRemovedNodes = ({ component, nodes }) => !(nodes ?? []).some((other) => ids.has(String(other))) && kindsOf(node).includes(kindOf(component));
  const pick = (list, test) => (list ?? []).filter((component) => test(component) && namesFile(node, component.model)).map((component) => ({ ...component, nodes: [id] }));
  for (const test of [ofThisNode, ofRemovedNodes]) {
    const resolved = fromReport({ components: pick(report.components, test), bystanders: pick(report.bystanders, test) }, node, id);
    if (resolved.length) return resolved;
  }
  return [];
}

/** Hides the `graph_options` input and fills it when the prompt is made; the value of the widget itself is not changed. */
function carryOptions(contact, node) {
  const widget = node.widgets?.find(({ name }) => name === OPTIONS_WIDGET);
  if (!widget) return; // the server's version of the node has no such input
  widget.hidden = true;
  widget.options = { ...(widget.options ?? {}), hidden: true, advanced: false };
  widget.serializeValue = () => optionsText(contact.savedGraphOptions() ?? graphPart(widget.value), defaultOptions(contact.settingValue));
}

/**
 * Whether a widget of the node names the file `model`: another workflow may use the same node id. True where that cannot be
 * known: without file names, or if another node provides one.
 */
function namesFile(node, model) {
  const isFile = (name) => typeof name === 'string' && /\.\w+$/.test(name);
  const files = (node.widgets ?? []).filter((widget) => isFile(widget.value));
  if (!isFile(model) || !files.length || files.some(({ name }) => isWired(node, name))) return true;
  return files.some(({ value }) => model.includes(value.split(/[\\/]/).pop()));
}
