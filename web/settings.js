// The settings with the user's defaults, and their values in the form of graph options. Pure; the app keeps the values.
import { COMPUTED_ON_CPU, GROUPS, HOST_TIERS, MODES, PLACEMENTS } from './tables.js';

const CATEGORY = 'Layerwise Offload';
const PREFIX = 'LayerwiseOffload';
const TITLES = { dit: 'Diffusion model', text_encoder: 'Text encoders', image_encoder: 'Image encoder', vae: 'VAE' };
const KEYS = { dit: 'Dit', text_encoder: 'TextEncoder', image_encoder: 'ImageEncoder', vae: 'Vae' };

const placementId = (group) => `${PREFIX}.${KEYS[group]}.Placement`;
const budgetId = (group) => `${PREFIX}.${KEYS[group]}.BudgetGB`;
const MODE_ID = `${PREFIX}.Mode`;
const HOST_TIER_ID = `${PREFIX}.HostTier`;
const PIN_BUDGET_ID = `${PREFIX}.PinBudgetGB`;

const SIZE = { type: 'number', attrs: { min: 0, max: 1024, step: 0.1, minFractionDigits: 0, maxFractionDigits: 2 }, defaultValue: 0 };

// What the app needs to know of a value that is chosen from a list, and a whole definition.
const choice = (options) => ({ type: 'combo', options, defaultValue: 'auto' });
const setting = (id, section, entry, name, tooltip, kind) => ({ id, category: [CATEGORY, section, entry], name, tooltip, ...kind });

/** The settings to register, in reverse: the app shows the sections and entries of a category from last to first. */
export function definitions() {
  const mode = setting(
    MODE_ID, 'General', 'Mode', 'What happens to components whose placement is auto',
    'auto: kept in VRAM where everything fits, else streamed. memory: streamed with a ring and nothing more. speed: as auto, with less VRAM kept free. manual: left to ComfyUI. Workflows and nodes that say something else are stronger.',
    choice(MODES),
  );
  const hostTier = setting(
    HOST_TIER_ID, 'General', 'Host tier', 'Where streamed layers wait in system memory',
    'auto: page-locked as far as memory allows, then ordinary memory, then read from the file. pinned: all page-locked, or an error. pageable: all in ordinary memory, or an error; nothing is read from the disk while a model runs. mapped: read from the file in every step. Workflows and nodes that say something else are stronger.',
    choice(HOST_TIERS),
  );
  const pinBudget = setting(
    PIN_BUDGET_ID, 'General', 'Page-locked memory', 'Page-locked system memory in GB',
    'System memory that each component may page-lock for its streamed layers, in every workflow that does not say it itself. 0: what the machine can spare.',
    SIZE,
  );
  const groups = GROUPS.flatMap((group) => [
    setting(
      placementId(group), TITLES[group], 'Placement', 'Placement',
      'Where the weights live while the component runs, in every workflow that does not say it itself. auto: the pack decides.',
      choice(PLACEMENTS.filter((placement) => placement !== 'cpu' || COMPUTED_ON_CPU.includes(group))),
    ),
    setting(
      budgetId(group), TITLES[group], 'Budget', 'VRAM budget in GB',
      'VRAM that the weights of the component may take, in every workflow that does not say it itself. 0: the pack decides.',
      SIZE,
    ),
  ]);
  return [...groups.reverse(), pinBudget, hostTier, mode];
}

/** The user's defaults in the form of graph options; `read(id)` returns a setting's value. */
export function defaultOptions(read) {
  const components = Object.fromEntries(
    GROUPS.map((group) => [group, { placement: read(placementId(group)), budget_gb: read(budgetId(group)) }]),
  );
  components.all = { host_tier: read(HOST_TIER_ID), pin_budget_gb: read(PIN_BUDGET_ID) };
  return { mode: read(MODE_ID), components };
}
