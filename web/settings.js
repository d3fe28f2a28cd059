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

/** The settings to register, in reverse: the app shows the sections and entries of a category from last to first. */
export function definitions() {
  const mode = {
    id: MODE_ID,
    category: [CATEGORY, 'General', 'Mode'],
    name: 'What happens to components whose placement is auto',
    tooltip: 'auto: kept in VRAM where everything fits, else streamed. memory: streamed with a ring and nothing more. speed: as auto, with less VRAM kept free. manual: left to ComfyUI. Workflows and nodes that say something else are stronger.',
    type: 'combo',
    options: MODES,
    defaultValue: 'auto',
  };
  const hostTier = {
    id: HOST_TIER_ID,
    category: [CATEGORY, 'General', 'Host tier'],
    name: 'Where streamed layers wait in system memory',
    tooltip: 'auto: page-locked as far as memory allows, then ordinary memory, then read from the file. pinned: all page-locked, or an error. pageable: all in ordinary memory, or an error; nothing is read from the disk while a model runs. mapped: read from the file in every step. Workflows and nodes that say something else are stronger.',
    type: 'combo',
    options: HOST_TIERS,
    defaultValue: 'auto',
  };
  const pinBudget = {
    id: PIN_BUDGET_ID,
    category: [CATEGORY, 'General', 'Page-locked memory'],
    name: 'Page-locked system memory in GB',
    tooltip: 'System memory that each component may page-lock for its streamed layers, in every workflow that does not say it itself. 0: what the machine can spare.',
    ...SIZE,
  };
  const groups = GROUPS.flatMap((group) => [
    {
      id: placementId(group),
      category: [CATEGORY, TITLES[group], 'Placement'],
      name: 'Placement',
      tooltip: 'Where the weights live while the component runs, in every workflow that does not say it itself. auto: the pack decides.',
      type: 'combo',
      options: PLACEMENTS.filter((placement) => placement !== 'cpu' || COMPUTED_ON_CPU.includes(group)),
      defaultValue: 'auto',
    },
    {
      id: budgetId(group),
      category: [CATEGORY, TITLES[group], 'Budget'],
      name: 'VRAM budget in GB',
      tooltip: 'VRAM that the weights of the component may take, in every workflow that does not say it itself. 0: the pack decides.',
      ...SIZE,
    },
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
