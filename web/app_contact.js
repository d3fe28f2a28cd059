// The only file that touches the app (its page objects `app` and `api`) and our routes; the other modules get what they
// need from this one. Draws nothing, and has no effect when it is imported.
import { app } from '../../scripts/app.js';
import { api } from '../../scripts/api.js';
import { BYPASS, NEVER } from './prompt.js';

const NAME = 'layerwise_offload'; // of our routes and messages, and of what is saved with a workflow
const RUN_ENDS = ['execution_success', 'execution_error', 'execution_interrupted', 'reconnected'];

export const register = (extension) => app.registerExtension(extension);

// ---- the server

async function ask(path, body) {
  const request = body && { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
  const answer = await api.fetchApi(`/${NAME}${path}`, request);
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error ?? `HTTP ${answer.status}`);
  return content;
}

export const fetchReport = () => ask('/report');
export const fetchAhead = (prompt) => ask('/expect', { prompt });
export const fetchEvents = () => ask('/events');
export const saveTrace = (name) => ask('/trace/save', { name });
export const forgetMeasured = () => ask('/forget_measured', {});
export const subscribe = (on) => ask('/subscribe', { client_id: api.clientId, on });

/** Adds a listener for events of the app; returns the function that removes it, as do the three that follow. */
function listen(names, listener) {
  for (const name of names) api.addEventListener(name, listener);
  return () => names.forEach((name) => api.removeEventListener(name, listener));
}

/** `kind`: `live` or `resolved`; `handler(content)` gets each message. */
export const onMessage = (kind, handler) => listen([`${NAME}.${kind}`], (event) => handler(event.detail));
/** After each run, failed ones included, and after a reconnection. */
export const onRunEnd = (handler) => listen(RUN_ENDS, handler);
export const onGraphChange = (handler) => listen(['graphChanged'], handler);

// ---- the graph

const rootGraph = () => app.rootGraph ?? app.graph;

/** Every node that would run, as [{id, node, graph, parent}]; `id` is in API form: `12`, in a subgraph `5:12`. */
export function activeNodes(graph = rootGraph(), prefix = '', parent = null) {
  const runs = (graph?.nodes ?? []).filter(({ mode }) => mode !== NEVER && mode !== BYPASS);
  return runs.flatMap((node) => {
    const entry = { id: `${prefix}${node.id}`, node, graph, parent };
    return [entry, ...(node.subgraph ? activeNodes(node.subgraph, `${entry.id}:`, entry) : [])];
  });
}

/** The selected items of the canvas: nodes, groups and reroute points. */
export const selectedItems = () => [...(app.canvas?.selectedItems ?? [])];

export const savedGraphOptions = () => rootGraph()?.extra?.[NAME] ?? null;

/** Saves the options with the workflow; null removes them from it. */
export function writeGraphOptions(options) {
  const graph = rootGraph();
  if (!graph) return;
  graph.extra ??= {};
  if (options) graph.extra[NAME] = options;
  else delete graph.extra[NAME];
  markEdited();
}

/** Sets each of `widgets` ({node, widget}) as the user would: callbacks run, and the change can be undone. */
export function setWidgets(widgets, value) {
  for (const { node, widget } of widgets) {
    if (widget.setValue) widget.setValue(value, { e: null, node, canvas: app.canvas });
    else {
      widget.value = value;
      widget.callback?.(value, app.canvas, node);
    }
    if (widget.value !== value) widget.value = value; // the widget of a constant may round to coarser steps than ours
  }
  markEdited();
}

/** Tells the app that the graph has changed: it redraws, records an undo step and marks the workflow as unsaved. */
function markEdited() {
  rootGraph()?.setDirtyCanvas?.(true, true);
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}

/** Adds a node of `type` at the centre of the visible area and selects it. */
export function addNode(type) {
  const node = window.LiteGraph.createNode(type);
  const area = app.canvas.visible_area ?? [0, 0, 800, 600];
  node.pos = [area[0] + area[2] / 2 - node.size[0] / 2, area[1] + area[3] / 2 - node.size[1] / 2];
  app.canvas.graph.add(node);
  app.canvas.selectNode?.(node);
}

// ---- settings, language, messages, the panel

export const settingValue = (id) => app.extensionManager.setting.get(id);
export const locale = () => settingValue('Comfy.Locale') ?? 'en';

/** Shows a message for `life` milliseconds; `severity`: info, success, warn or error. */
export const toast = (severity, detail, life = 8000) =>
  app.extensionManager.toast.add({ severity, summary: 'Layerwise Offload', detail, life });

/** Shows the tab `id` of the bottom panel. The app can only toggle a tab, so an open one is left as it is. */
export function showPanel(id) {
  const panel = app.extensionManager.bottomPanel;
  if (!(panel.bottomPanelVisible && panel.activeBottomPanelTabId === id)) panel.toggleBottomPanelTab(id);
}
