// Registers the pack's part of the page with the app: panel, settings, command, and what our nodes show.
import * as app_contact from './app_contact.js';
import { SCHEMA, carriedPart } from './graph_options.js';
import { nodeWidgets } from './node_widgets.js';
import { createPanel } from './panel.js';
import { definitions } from './settings.js';
import { isOurs } from './model.js';
import { wordsFor } from './words.js';

const PANEL = 'layerwise-offload';
const EXPLAIN = 'LayerwiseOffload.ExplainPlacement';

const contact = {
  ...app_contact,
  words: () => wordsFor(app_contact.locale()),
  graphChanged: () => panel.graphChanged(),
  readGraphOptions: () => app_contact.savedGraphOptions() ?? carriedPart(app_contact.activeNodes()),
  // What nodes brought with them would speak again if nothing were saved.
  writeGraphOptions: (options) => app_contact.writeGraphOptions(options ?? (carriedPart(app_contact.activeNodes()) && { schema: SCHEMA })),
};
const panel = createPanel(contact);
const nodes = nodeWidgets(contact);

/** Turns the panel to the reasons for the selected node; says what to do if there is no such node, or it has not run. */
async function explainPlacement() {
  const say = await contact.words();
  const ours = contact.selectedItems().filter((node) => isOurs(node.comfyClass ?? node.type));
  const selected = contact.activeNodes().find(({ node }) => ours.includes(node));
  if (!selected) return contact.toast('info', say('command.select'));
  contact.showPanel(PANEL);
  if (!(await panel.explain(selected.id))) contact.toast('info', say('command.run_first', { node: selected.node.title }));
}

contact.register({
  name: 'LayerwiseOffload',
  // The app calls before it has stored the value, and for every setting when the page is opened.
  settings: definitions().map((one) => ({ ...one, onChange: () => setTimeout(panel.graphChanged) })),
  commands: [{ id: EXPLAIN, label: 'Layerwise Offload: explain placement', icon: 'pi pi-info-circle', function: explainPlacement }],
  bottomPanelTabs: [{ id: PANEL, title: 'Layerwise Offload', type: 'custom', render: (place) => panel.mount(place), destroy: () => panel.unmount() }],
  async init() {
    const link = document.createElement('link');
    link.rel = 'stylesheet';
    link.href = new URL('layerwise_offload.css', import.meta.url).href;
    document.head.append(link);
  },
  async setup() {
    await nodes.ready();
    contact.onMessage('resolved', (message) => nodes.resolved(message));
    contact.onRunEnd(() => nodes.fillMissing());
    contact.onMessage('live', () => {}); // the app complains of messages that nobody has asked for
  },
  nodeCreated: (node) => nodes.created(node),
  onNodeOutputsUpdated: (outputs) => nodes.restored(outputs),
  afterConfigureGraph() {
    panel.graphChanged();
    return nodes.fill();
  },
});
