// A report and live messages as docs/formats.md describes them, for looks that a small model on a fast machine hardly
// shows: a large model in the middle of a run, warnings, every state of a layer, stalls.
import { readFileSync } from 'node:fs';

import { sentence, speaker } from '../../web/words.js';

const GB = 1e9;

function plan(component, layers, residents) {
  const tiers = layers.map((_, index) => (index % 9 > 5 ? 'peer' : index % 9 ? 'pinned' : 'mapped'));
  return {
    schema: 1, component, device: 'cuda:0', peer_device: 'cuda:1', peer_bytes: layers.reduce((sum, { bytes }, index) => sum + (tiers[index] === 'peer' ? bytes : 0), 0), ring_bytes: 1.2 * GB, resident_bytes: residents * layers[0].bytes, loose_bytes: 0.2 * GB,
    layers: layers.map((layer, index) => ({ ...layer, offset: null, host_tier: tiers[index], placement: index % 3 === 1 ? 'resident' : 'streamed' })),
    visits: layers.map((_, index) => index),
    predicted: { pass_ns: 1.21e9, bound_ns: 1.1e9, stall_ns: 0.1e9, bytes_per_pass: 7.4 * GB, first_pass_ns: 2e9 }, decisions: [],
  };
}

const blocks = (name, count, bytes) => Array.from({ length: count }, (_, index) => ({ name: `${name}.${index}`, bytes }));

const english = speaker(JSON.parse(readFileSync(new URL('../../web/words/en.json', import.meta.url))));
const textOf = (why) => sentence(english, why, why.code);
const because = (code, values = {}) => ({ code, values });
const setting = (value, source, why) => ({ value, source, why, reason: textOf(why) });
const DOES_NOT_FIT = because('does_not_fit', { size: '11.90 GB', sum: because('memory_sum', { needed: '13.10 GB', free: '12.00 GB', headroom: '1.20 GB' }) });
const setBy = (source) => because('set_by', { source: because(source) });
const TOO_SMALL = because('budget_too_small', { budget: '0.40 GB', needed: '1.36 GB' });

export function report(running = false) {
  const flux = [...blocks('double_blocks', 19, 0.34 * GB), ...blocks('single_blocks', 38, 0.14 * GB)];
  const dit = {
    id: 'dit-1', component: 'dit', model: 'flux1-dev-bf16.safetensors', kind: 'dit', device: 'cuda:0', loaded: true, running,
    layer_states: states(flux.length, running ? 24 : null), plan: plan('dit', flux, 19), plan_text: '', budget_bytes: 6 * GB, summary: { peak_device_bytes: 5.93 * GB, copies: 1216, early_copies: 12, peer_bytes: 3.98 * GB, peer_device: 'cuda:1' },
    numbers: { stall_pct: 3.9, bytes_per_pass: 7.41 * GB, copy_bytes_per_s: 9.1 * GB, hit_rate: 0.982, headroom_bytes: 1.74 * GB },
    host: { pinned_bytes: 11 * GB, pageable_bytes: 0, mapped_bytes: 0.9 * GB },
    what_if: [{ delta_bytes: 0, pass_ns: 1.21e9, resident_layers: 19 }, { delta_bytes: GB, pass_ns: 1.04e9, resident_layers: 23 }, { delta_bytes: -GB, pass_ns: 1.37e9, resident_layers: 14 }],
    assumed_times: 0, nodes: ['1'], warnings: [],
    settings: {
      placement: setting('layerwise', 'policy', DOES_NOT_FIT),
      budget_bytes: setting(6 * GB, 'graph', setBy('source_graph')), ring_bytes: setting(null, 'policy', because('planner_decides_ring')),
    },
  };
  const notice = { component: 'text_encoder', ...because('not_page_locked', { size: '9.12 GB' }), do: because('do_free_memory') };
  const encoder = {
    ...dit, id: 'text_encoder-1', component: 'text_encoder', model: 't5xxl_fp16.safetensors', kind: 'text_encoder', loaded: false, running: false,
    plan: plan('text_encoder', blocks('block', 24, 0.38 * GB), 8), layer_states: 'O'.repeat(24), budget_bytes: 1.4 * GB, assumed_times: 24, nodes: ['1'],
    numbers: { stall_pct: 3.2, bytes_per_pass: 9.1 * GB, copy_bytes_per_s: 22.8 * GB, hit_rate: 0.96, headroom_bytes: null },
    what_if: [{ delta_bytes: GB, pass_ns: 1.21e9, resident_layers: 10 }, { delta_bytes: -GB, error: textOf(TOO_SMALL), why: TOO_SMALL }],
    settings: { placement: setting('layerwise', 'policy', DOES_NOT_FIT), budget_bytes: setting(null, 'policy', because('budget_ring')) },
    warnings: [`${textOf(notice)}; ${textOf(notice.do)}`], notices: [notice],
  };
  return {
    schema: 1, components: [dit, encoder], devices: devices(), host: host(),
    bystanders: [{ component: 'vae', model: 'ae.safetensors', why: setBy('source_node'), reason: textOf(setBy('source_node')), nodes: ['1'] }],
  };
}

/** The same between runs, with both components loaded within a number for the whole workflow. */
export function reportOfWorkflowBudget(number = 8 * GB) {
  const { components: [dit, encoder], ...rest } = report();
  const why = because('part_of_workflow', { number: '8.00 GB', source: because('source_graph') });
  const sharing = (component, resident_bytes, part) => ({
    ...component, loaded: true, plan: { ...component.plan, resident_bytes },
    settings: { ...component.settings, workflow_budget_bytes: setting(number, 'graph', setBy('source_graph')), budget_bytes: setting(part, 'graph', why) },
  });
  const devices = rest.devices.map((device, index) => ({ ...device, budget_bytes: index ? null : number }));
  return { ...rest, devices, components: [sharing(dit, 3.5 * GB, number), sharing(encoder, 1.03 * GB, 3.2 * GB)] };
}

const devices = () => [
  { name: 'cuda:0', total_bytes: 12 * GB, free_bytes: 1.74 * GB, ring_bytes: 1.2 * GB, resident_bytes: 4.53 * GB, loose_bytes: 0.2 * GB, stored_bytes: 0, others_bytes: 4.33 * GB, budget_bytes: 6 * GB },
  { name: 'cuda:1', total_bytes: 8 * GB, free_bytes: 2.87 * GB, ring_bytes: 0, resident_bytes: 0, loose_bytes: 0, stored_bytes: 3.98 * GB, others_bytes: 1.15 * GB, budget_bytes: null },
];
const host = () => ({ pinned_bytes: 11 * GB, pageable_bytes: 9.1 * GB, mapped_bytes: 0.9 * GB, available_bytes: 9 * GB, total_bytes: 34 * GB });

/** States in the middle of a pass, the layer `at` in use; between runs with null. */
function states(count, at) {
  return Array.from({ length: count }, (_, index) => {
    if (index % 3 === 1) return at !== null && index > count - 6 ? 'r' : 'R';
    if (at === null || index > at + 6 || index < at - 4) return 'O';
    return index === at ? 'U' : index < at ? 'C' : 'F';
  }).join('');
}

/** A live message in which the layer `at` of pass `pass` is in use, with the events of three passes before. */
export function live(at = 24, pass = 3) {
  const events = [];
  for (let one = 0; one < 3; one += 1) {
    for (let index = 0; index < 57; index += 1) {
      const start = (one * 57 + index) * 20e6;
      const stalled = index % 11 === 4 ? 9e6 : 0;
      if (index % 3 !== 1) events.push(['copy', 'dit-1', index, start - 24e6, start - 3e6 + stalled, 0.2 * GB]);
      if (stalled) events.push(['stall', 'dit-1', index, start, start + stalled, 0]);
      events.push(['visit', 'dit-1', index, start + stalled, start + 19.5e6, 0]);
    }
  }
  const { components } = report(true);
  const [dit, encoder] = components;
  const stateOf = ({ id, component, model, loaded, running, layer_states, numbers }) => ({ id, component, model, loaded, running, layer_states, numbers });
  return {
    schema: 1, time_ns: 4e9, devices: devices(), host: host(), events,
    components: [{ ...stateOf(dit), loaded: true, running: true, layer_states: states(57, at), pass }, { ...stateOf(encoder), pass: 1 }],
  };
}

/** What the server says of the same graph before it has run. */
export function ahead() {
  const { components, bystanders, ...rest } = report();
  const { events } = live();
  const [dit, encoder] = components.map(({ numbers, summary, layer_states, loaded, running, ...one }) => ({
    ...one, id: `${one.component}-planned`, placement: 'layerwise', device_bytes: 5.93 * GB, warnings: [], notices: [], events: [],
  }));
  dit.events = events.filter(([, , , start]) => start >= 57 * 20e6 && start < 2 * 57 * 20e6).map(([kind, , ...others]) => [kind, dit.id, ...others]);
  return { ...rest, components: [dit, encoder], bystanders };
}
