// The one file that touches the app: its page objects `app` and `api`, and our routes. Everything else here is given
// what it needs by this one. Nothing is drawn here, and nothing happens when this is imported.
import { app } from '../../scripts/app.js';
import { api } from '../../scripts/api.js';

const ROUTES = '/layerwise_offload';
const EXTRA = 'layerwise_offload';
const MESSAGES = { live: 'layerwise_offload.live', resolved: 'layerwise_offload.resolved' };
const ENDS = ['execution_success', 'execution_error', 'execution_interrupted'];

export const register = (extension) => app.registerExtension(extension);

// ---- the server

async function ask(path, body) {
  const request = body && { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) };
  const answer = await api.fetchApi(ROUTES + path, request);
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error ?? `HTTP ${answer.status}`);
  return content;
}

export const fetchReport = () => ask('/report');
export const fetchAhead = (prompt) => ask('/expect', { prompt });
export const fetchEvents = () => ask('/events');
export const fetchTrace = () => ask('/trace');
export const saveTrace = (name) => ask('/trace/save', { name });
export const subscribe = (on) => ask('/subscribe', { client_id: api.clientId, on });

/** Calls `handler(content)` for every message of the kind `live` or `resolved`; returns how to stop it. */
export function onMessage(kind, handler) {
  const listener = (event) => handler(event.detail);
  api.addEventListener(MESSAGES[kind], listener);
  return () => api.removeEventListener(MESSAGES[kind], listener);
}

/** Calls `handler()` after each run, however it ended, and after the connection came back. */
export function onRunEnd(handler) {
  for (const name of [...ENDS, 'reconnected']) api.addEventListener(name, handler);
  return () => [...ENDS, 'reconnected'].forEach((name) => api.removeEventListener(name, handler));
}

/** Calls `handler()` when the user has changed something in the graph; returns how to stop it. */
export function onGraphChange(handler) {
  api.addEventListener('graphChanged', handler);
  return () => api.removeEventListener('graphChanged', handler);
}

// ---- the graph

const rootGraph = () => app.rootGraph ?? app.graph;

/** Every node that would run, with its id in API form (`12`, in a subgraph `5:12`): [{id, node, graph, parent}]. */
export function activeNodes(graph = rootGraph(), prefix = '', parent = null) {
  const found = [];
  for (const node of graph?.nodes ?? []) {
    if (node.mode === 2 || node.mode === 4) continue; // never, bypass
    const entry = { id: `${prefix}${node.id}`, node, graph, parent };
    found.push(entry);
    if (node.subgraph) found.push(...activeNodes(node.subgraph, `${entry.id}:`, entry));
  }
  return found;
}

/** What is selected: nodes, and groups and bends of wires beside them. */
export const selectedItems = () => [...(app.canvas?.selectedItems ?? [])];

export const savedGraphOptions = () => rootGraph()?.extra?.[EXTRA] ?? null;

/** Saves the options with the workflow, or takes them out of it if `options` is null. */
export function writeGraphOptions(options) {
  const graph = rootGraph();
  if (!graph) return;
  graph.extra ??= {};
  if (options) graph.extra[EXTRA] = options;
  else delete graph.extra[EXTRA];
  edited();
}

/** Puts a value into each of `widgets` ({node, widget}) as if the user had: what listens to it is told, and it can be undone. */
export function setWidgets(widgets, value) {
  for (const { node, widget } of widgets) {
    if (widget.setValue) widget.setValue(value, { e: null, node, canvas: app.canvas });
    else {
      widget.value = value;
      widget.callback?.(value, app.canvas, node);
    }
    if (widget.value !== value) widget.value = value; // a constant's own steps may be coarser than ours
  }
  edited();
}

/** Tells the app that the graph is another: it draws it, can undo it, and the tab shows that there is something to save. */
function edited() {
  rootGraph()?.setDirtyCanvas?.(true, true);
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}

/** Puts a node of `type` into the middle of what is seen, and selects it. */
export function addNode(type) {
  const node = window.LiteGraph.createNode(type);
  const area = app.canvas.visible_area ?? [0, 0, 800, 600];
  node.pos = [area[0] + area[2] / 2 - node.size[0] / 2, area[1] + area[3] / 2 - node.size[1] / 2];
  app.canvas.graph.add(node);
  app.canvas.selectNode?.(node);
}

export const redraw = () => rootGraph()?.setDirtyCanvas?.(true, false);

// ---- settings, language, messages, the panel

export const settingValue = (id) => app.extensionManager.setting.get(id);
export const locale = () => settingValue('Comfy.Locale') ?? 'en';

/** A message that asks the user to do something; `severity`: info, success, warn or error. */
export const toast = (severity, detail, life = 8000) =>
  app.extensionManager.toast.add({ severity, summary: 'Layerwise Offload', detail, life });

/** Shows the bottom panel's tab `id`, which may be open already. */
export function showPanel(id) {
  const panel = app.extensionManager.bottomPanel;
  if (!(panel.bottomPanelVisible && panel.activeBottomPanelTabId === id)) panel.toggleBottomPanelTab(id);
}
