// The widgets that our nodes have in the browser: a text, and the hidden input with the options of the graph.
// The app's hooks pass its node objects in; everything else goes through `contact`.
import { graphPart, optionsText } from './graph_options.js';
import { isFile, isOfNode, isOurs, isWired, kindsOf, typeOf, widgetNamed } from './model.js';
import { fromReport, kindOf, nodeText, reportText } from './node_text.js';
import { defaultOptions } from './settings.js';
import { noticeLines } from './words.js';

const TEXT_WIDGET = 'layerwise_offload_text';
const WIDTH = 380; // of a new node: the resolved placement is readable without the tooltip
const REPORT = 'LayerwiseOffloadReport';
const REPORT_SIZE = [560, 420]; // of a new one: its text has many lines of about 100 characters
const MARGIN = 6;
const heightOf = (lines) => 2 * MARGIN + 20 * lines;
const TOGETHER_MS = 500; // messages within this time share one toast

/** The handlers for the app's hooks and messages about nodes. `ready` must have finished before a node is created. */
export function nodeWidgets(contact) {
  const texts = new WeakMap(); // node of ours, or Report node -> its text
  let say = null;
  const toasted = new Set();
  const pending = [];
  const speak = (...words) => say(...words);
  const textNodes = () => contact.activeNodes().filter(({ node }) => isOurs(node) && texts.has(node));
  const nodes = {
    /** Loads the texts in the app's language; called again for each workflow. */
    async ready() {
      say = await contact.words();
    },
    /** After a node was created by hand, by loading or by pasting. */
    created(node) {
      if (isOurs(node)) {
        carryOptions(contact, node);
        texts.set(node, nodeText(speak, node));
        const height = () => heightOf(Math.max(1, kindsOf(node).length)); // the same before and after a run, as the node's size
        carryText(node, texts.get(node).root, [WIDTH, 0], height, height);
      } else if (typeOf(node) === REPORT) {
        texts.set(node, reportText(speak));
        carryText(node, texts.get(node).root, REPORT_SIZE, () => heightOf(5));
        const before = node.onExecuted;
        node.onExecuted = function (output, ...rest) {
          before?.call(this, output, ...rest);
          texts.get(node).show(output);
        };
      }
    },
    /** After the app has restored the outputs of the workflow's nodes: a tab or a run of the history was opened. */
    restored(outputs) {
      for (const { node, graph, parent } of contact.activeNodes()) {
        const output = outputs?.[parent ? `${graph.id}:${node.id}` : node.id];
        if (output && typeOf(node) === REPORT) texts.get(node)?.show(output);
      }
    },
    /** After the message that a component was placed. Warnings are shown on the node, what the user has to do in a toast. */
    resolved(message) {
      const { node } = textNodes().find(({ id }) => id === String(message.node)) ?? {};
      if (node && namesFile(node, message.model ?? '')) {
        const text = texts.get(node);
        const kinds = kindsOf(node).filter((kind) => kind !== kindOf(message.component)); // so old names and removed files go
        text.show([...text.resolved.filter(({ component }) => kinds.includes(kindOf(component))), message]);
      }
      const lines = noticeLines(say, message.to_do_notices, message.to_do).map((line) => `${message.component}: ${line}`);
      const fresh = lines.filter((line) => !toasted.has(line));
      if (!fresh.length) return;
      fresh.forEach((line) => toasted.add(line));
      if (!pending.length) setTimeout(() => contact.toast('warn', pending.splice(0).join('\n')), TOGETHER_MS);
      pending.push(...fresh);
    },
    /** Fills nodes from the report, as after a reload, if they still load the same files. `missing`: only kinds without a text. */
    async fill(active = textNodes(), missing = false) {
      if (!active.length) return;
      await nodes.ready();
      for (const { node } of active) texts.get(node).show(texts.get(node).resolved);
      const report = await contact.fetchReport().catch(() => null);
      if (!report) return;
      const ids = new Set(contact.activeNodes().map((entry) => entry.id));
      for (const { id, node } of active) {
        const text = texts.get(node);
        const kept = missing ? text.resolved : [];
        const added = inReport(report, node, id, ids).filter(({ component }) => !showsKind(kept, kindOf(component)));
        if (added.length) text.show([...kept, ...added]);
      }
    },
    /** After a run: components from the app's cache had no message, for example of a loader that was moved into a subgraph. */
    fillMissing() {
      const isMissingSome = ({ node }) => kindsOf(node).some((kind) => !showsKind(texts.get(node).resolved, kind));
      return nodes.fill(textNodes().filter(isMissingSome), true);
    },
  };
  return nodes;
}

/**
 * Adds a text as the last widget of a node; it is in no prompt and no saved workflow. `size`: the least size of a new node;
 * `least()` and `most()`: limits of the text's height. Without `most` it takes the free height of the node.
 */
function carryText(node, root, size, least, most) {
  const before = [...node.size];
  const widget = node.addDOMWidget(TEXT_WIDGET, TEXT_WIDGET, root, {
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

const showsKind = (list, kind) => list.some(({ component }) => kindOf(component) === kind);

/** A node's components in the report: by its id, else by its files, from nodes that are no longer in the graph (`ids`). */
function inReport(report, node, id, ids) {
  const ofRemoved = ({ component, nodes }) => kindsOf(node).includes(kindOf(component)) && !(nodes ?? []).some((other) => ids.has(String(other)));
  const withFile = (isOfThis) => fromReport(report, node, (component) => isOfThis(component) && namesFile(node, component.model));
  const ofNode = withFile((component) => isOfNode(component, id));
  return ofNode.length ? ofNode : withFile(ofRemoved);
}

/** Hides the `graph_options` input and fills it when the prompt is made; the value of the widget itself is not changed. */
function carryOptions(contact, node) {
  const widget = widgetNamed(node, 'graph_options');
  if (!widget) return; // the server's version of the node has no such input
  widget.hidden = true;
  widget.options = { ...widget.options, hidden: true, advanced: false };
  widget.serializeValue = () => optionsText(contact.savedGraphOptions() ?? graphPart(widget.value), defaultOptions(contact.settingValue));
}

/**
 * Whether a widget of the node names the file `model`: another workflow may use the same node id. True where that cannot be
 * known: without file names, or if another node provides one.
 */
function namesFile(node, model) {
  const files = (node.widgets ?? []).filter((widget) => isFile(widget.value));
  if (!isFile(model) || !files.length || files.some(({ name }) => isWired(node, name))) return true;
  return files.some(({ value }) => model.includes(value.split(/[\\/]/).pop()));
}
