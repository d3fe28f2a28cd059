// Registers the pack's extension with the app: the panel, the settings, the command, and the texts on our nodes.
import * as app_contact from './app_contact.js';
import { element } from './dom.js';
import { SCHEMA, carriedPart } from './graph_options.js';
import { nodeWidgets } from './node_widgets.js';
import { createPanel } from './panel.js';
import { definitions } from './settings.js';
import { isOurs } from './model.js';
import { HOST_TIERS, OPTIONS } from './tables.js';
import { wordsFor } from './words.js';

const PANEL = 'layerwise-offload';
const EXPLAIN = 'LayerwiseOffload.ExplainPlacement';

// Where streamed layers can wait: the words, and as soon as the server has described the options node also the machine's devices.
const hostTiers = [...HOST_TIERS];

const contact = {
  ...app_contact,
  hostTiers,
  words: () => wordsFor(app_contact.locale()),
  graphChanged: () => panel.graphChanged(),
  readGraphOptions: () => app_contact.savedGraphOptions() ?? carriedPart(app_contact.activeNodes()),
  // If nothing were saved, the options that nodes carry would apply again.
  writeGraphOptions: (options) => app_contact.writeGraphOptions(options ?? (carriedPart(app_contact.activeNodes()) && { schema: SCHEMA })),
};
const panel = createPanel(contact);
const nodes = nodeWidgets(contact);

/** Shows the reasons for the selected node in the panel; a toast says what to do if none is selected or it has not run. */
async function explainPlacement() {
  const say = await contact.words();
  const items = contact.selectedItems();
  const selected = contact.activeNodes().find(({ node }) => isOurs(node) && items.includes(node));
  if (!selected) return contact.toast('info', say('command.select'));
  contact.showPanel(PANEL);
  if (!(await panel.explain(selected.id))) contact.toast('info', say('command.run_first', { node: selected.node.title }));
}

contact.register({
  name: 'LayerwiseOffload',
  // The app calls onChange before it stores the value, and for every setting when the page opens.
  settings: definitions(hostTiers).map((definition) => ({ ...definition, onChange: () => setTimeout(panel.graphChanged) })),
  commands: [{ id: EXPLAIN, label: 'Layerwise Offload: explain placement', icon: 'pi pi-info-circle', function: explainPlacement }],
  bottomPanelTabs: [{ id: PANEL, title: 'Layerwise Offload', type: 'custom', render: (place) => panel.mount(place), destroy: () => panel.unmount() }],
  async init() {
    document.head.append(element('link', { rel: 'stylesheet', href: new URL('layerwise_offload.css', import.meta.url) }));
  },
  beforeRegisterNodeDef(_, { name, input }) {
    if (name === OPTIONS) hostTiers.splice(0, hostTiers.length, ...(input?.optional?.host_tier?.[1]?.options ?? HOST_TIERS));
  },
  async setup() {
    await nodes.ready();
    contact.onMessage('resolved', (message) => nodes.resolved(message));
    contact.onRunEnd(() => nodes.fillMissing());
    contact.onMessage('live', () => {}); // the app warns about messages without a listener
  },
  nodeCreated: (node) => nodes.created(node),
  onNodeOutputsUpdated: (outputs) => nodes.restored(outputs),
  afterConfigureGraph() {
    panel.graphChanged();
    return nodes.fill();
  },
});
