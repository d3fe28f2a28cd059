// The settings with the user's defaults, and their values in the form of graph options. Pure; the app keeps the values.
import { COMPUTED_ON_CPU, GROUPS, MODES, PLACEMENTS } from './tables.js';

const PACK = 'Layerwise Offload';
const TITLES = { dit: 'Diffusion model', text_encoder: 'Text encoders', image_encoder: 'Image encoder', vae: 'VAE' };
const KEYS = { dit: 'Dit', text_encoder: 'TextEncoder', image_encoder: 'ImageEncoder', vae: 'Vae' };

// What the app needs to know of a value that is a size, of one that is chosen from a list, and of a whole setting.
const SIZE = { type: 'number', attrs: { min: 0, max: 1024, step: 0.1, minFractionDigits: 0, maxFractionDigits: 2 }, defaultValue: 0 };
const choice = (options) => ({ type: 'combo', options, defaultValue: 'auto' });
const idOf = (key) => `LayerwiseOffload.${key}`;
const setting = (key, section, entry, kind, name, tooltip) => ({ id: idOf(key), category: [PACK, section, entry], name, tooltip, ...kind });

/**
 * The settings to register, in reverse: the app shows the sections and entries of a category from last to first. `hostTiers` is
 * kept as it is, not copied: devices that are added to it later can be chosen in the settings dialog as well.
 */
export function definitions(hostTiers) {
  return [
    setting(
      'Mode', 'General', 'Mode', choice(MODES), 'What happens to components whose placement is auto',
      'auto: kept in VRAM where everything fits, else streamed. memory: streamed with a ring and nothing more. speed: as auto, with less VRAM kept free. manual: left to ComfyUI. Workflows and nodes that say something else are stronger.',
    ),
    setting(
      'HostTier', 'General', 'Host tier', choice(hostTiers), 'Where streamed layers wait',
      'auto: in page-locked system memory as far as there is room, then ordinary memory, then read from the file. pinned: all page-locked, or an error. pageable: all in ordinary memory, or an error; nothing is read from the disk while a model runs. mapped: read from the file in every step. Another device of this machine, such as cuda:1: in its memory as far as there is room, the others as with auto. Workflows and nodes that say something else are stronger.',
    ),
    setting(
      'PinBudgetGB', 'General', 'Page-locked memory', SIZE, 'Page-locked system memory in GB',
      'System memory that each component may page-lock for its streamed layers, in every workflow that does not say it itself. 0: what the machine can spare.',
    ),
    setting(
      'PeerBudgetGB', 'General', 'Memory of another device', SIZE, 'Memory of another device in GB',
      'Memory that the streamed layers of each component may take on the device that “Where streamed layers wait” names, in every workflow that does not say it itself. 0: what is free there. Without effect where it names no device.',
    ),
    setting(
      'WorkflowBudgetGB', 'General', 'VRAM of a workflow', SIZE, 'VRAM for the weights of a whole workflow in GB',
      'VRAM that the weights of a workflow may take at any moment, divided among its components by when they run, in every workflow that does not say it itself. 0: each component for itself.',
    ),
    setting(
      'WorkflowHostGB', 'General', 'System memory of a workflow', SIZE, 'System memory for the layers of a whole workflow in GB',
      'System memory that copies of streamed layers may take, of all components together, in every workflow that does not say it itself. What has no room is read from its file. 0: what the machine can spare.',
    ),
    ...GROUPS.flatMap((group) => [
      setting(
        `${KEYS[group]}.Placement`, TITLES[group], 'Placement', choice(placementsOf(group)), 'Placement',
        'Where the weights live while the component runs, in every workflow that does not say it itself. auto: the pack decides.',
      ),
      setting(
        `${KEYS[group]}.BudgetGB`, TITLES[group], 'Budget', SIZE, 'VRAM budget in GB',
        'VRAM that the weights of the component may take, in every workflow that does not say it itself. 0: the pack decides.',
      ),
    ]),
  ].reverse();
}

const placementsOf = (group) => PLACEMENTS.filter((placement) => placement !== 'cpu' || COMPUTED_ON_CPU.includes(group));

/** The user's defaults in the form of graph options; `read(id)` returns a setting's value. */
export function defaultOptions(read) {
  const valueOf = (key) => read(idOf(key));
  const ofGroup = (group) => ({ placement: valueOf(`${KEYS[group]}.Placement`), budget_gb: valueOf(`${KEYS[group]}.BudgetGB`) });
  const components = Object.fromEntries(GROUPS.map((group) => [group, ofGroup(group)]));
  components.all = { host_tier: valueOf('HostTier'), pin_budget_gb: valueOf('PinBudgetGB'), peer_budget_gb: valueOf('PeerBudgetGB'), workflow_budget_gb: valueOf('WorkflowBudgetGB'), workflow_host_gb: valueOf('WorkflowHostGB') };
  return { mode: valueOf('Mode'), components };
}
