// The pure modules of web/, without a browser: node --test. What they draw is for the browser tests.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';

import * as format from '../../web/format.js';
import { changed, graphPart, optionsText, withoutUnset } from '../../web/graph_options.js';
import { devicePart, hostPart, plannedPart, workflowPart } from '../../web/memory_bar.js';
import { KEPT_EVENTS, componentNames, emptyState, focused, isOfNode, lastPasses, withAhead, withLive, withReport, withStored } from '../../web/model.js';
import { fromReport, line } from '../../web/node_text.js';
import { cellText, statesOf } from '../../web/placement_map.js';
import { placeOf } from '../../web/budget_button.js';
import { promptOf, widgetOf } from '../../web/prompt.js';
import { defaultOptions, definitions } from '../../web/settings.js';
import { tickStep } from '../../web/timeline.js';
import { languageFor, noticeLines, sentence, speaker } from '../../web/words.js';
import { leftToApp, storedLine, timesLine, whatIfLines } from '../../web/explain.js';
import * as fixture from './fixture.mjs';

const say = (key, values = {}) => `${key}${Object.values(values).map((one) => ` ${one}`).join('')}`;
// `inputs`: [{name, link}], a link as the app's graph has them, or null
const node = (comfyClass, widgets = {}, inputs = []) => ({
  comfyClass, inputs: inputs.map(({ name }) => ({ name })), widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
  isInputConnected: (slot) => Boolean(inputs[slot].link), getInputLink: (slot) => inputs[slot].link,
});

test('numbers are read by people', () => {
  assert.equal(format.bytes(12.34e9), '12.3 GB');
  assert.equal(format.bytes(99_600_000), '0.10 GB');
  assert.equal(format.bytes(36_500_000), '37 MB');
  assert.equal(format.bytes(0), '0 MB');
  assert.equal(format.bytes(null), format.UNKNOWN);
  assert.equal(format.percent(0.34), '0.3 %');
  assert.equal(format.duration(1.5e9), '1.50 s');
  assert.equal(format.settingValue('budget_bytes', 6e9), '6.00 GB');
  assert.equal(format.settingValue('placement', null), format.UNKNOWN);
});

test('what is on auto or 0 is not said', () => {
  assert.equal(withoutUnset({ mode: 'auto', components: { dit: { placement: 'auto', budget_gb: 0 } } }), null);
  assert.equal(optionsText(null, { mode: 'auto' }), '');
  const text = optionsText({ components: { dit: { ring_gb: 0.5, placement: 'layerwise', lora_mode: 'host', host_tier: 'cuda:1', pin_budget_gb: 4, peer_budget_gb: 6, colour: 1 }, all: { workflow_budget_gb: 8, workflow_host_gb: 16 } } }, { mode: 'memory' });
  assert.deepEqual(JSON.parse(text), { schema: 1, graph: { components: { dit: { placement: 'layerwise', lora_mode: 'host', host_tier: 'cuda:1', ring_gb: 0.5, pin_budget_gb: 4, peer_budget_gb: 6 }, all: { workflow_budget_gb: 8, workflow_host_gb: 16 } } }, settings: { mode: 'memory' } });
});

test('the same options are the same text, whatever their order', () => {
  const one = { components: { vae: { placement: 'whole' }, dit: { budget_gb: 8, placement: 'layerwise' } } };
  const other = { components: { dit: { placement: 'layerwise', budget_gb: 8 }, vae: { placement: 'whole' } } };
  assert.equal(optionsText(one, null), optionsText(other, null));
  assert.deepEqual(graphPart(optionsText(one, null)), withoutUnset(one));
  assert.equal(graphPart('{'), null);
});

test('a change keeps what else was said; the last one undone leaves nothing', () => {
  const first = changed(null, 'dit', 'budget_gb', 8);
  const second = changed(first, null, 'mode', 'memory');
  assert.deepEqual(second, { schema: 1, mode: 'memory', components: { dit: { budget_gb: 8 } } });
  assert.deepEqual(first, { schema: 1, components: { dit: { budget_gb: 8 } } });
  assert.equal(changed(first, 'dit', 'budget_gb', 0), null);
});

test('settings say nothing until somebody sets one', () => {
  const values = Object.fromEntries(definitions(['auto', 'cuda:1']).map((one) => [one.id, one.defaultValue]));
  assert.equal(withoutUnset(defaultOptions((id) => values[id])), null);
  values['LayerwiseOffload.Vae.BudgetGB'] = 2;
  assert.deepEqual(withoutUnset(defaultOptions((id) => values[id])), { components: { vae: { budget_gb: 2 } } });
  values['LayerwiseOffload.HostTier'] = 'pageable';
  values['LayerwiseOffload.PinBudgetGB'] = 4;
  values['LayerwiseOffload.PeerBudgetGB'] = 6;
  values['LayerwiseOffload.WorkflowBudgetGB'] = 8;
  values['LayerwiseOffload.WorkflowHostGB'] = 16;
  assert.deepEqual(withoutUnset(defaultOptions((id) => values[id])).components.all, { host_tier: 'pageable', pin_budget_gb: 4, peer_budget_gb: 6, workflow_budget_gb: 8, workflow_host_gb: 16 });
});

test('components are named as the server names them', () => {
  const active = [
    { id: '10', node: node('LayerwiseOffloadDiffusionModelLoader') },
    { id: '2', node: node('LayerwiseOffloadLoader', { clip_vision_name: 'none' }) },
    { id: '3:1', node: node('LayerwiseOffloadApply', {}, [{ name: 'model', link: {} }, { name: 'clip', link: null }, { name: 'control_net', link: {} }]) },
    { id: '4', node: node('KSampler') },
  ];
  assert.deepEqual(componentNames(active), ['dit', 'dit_2', 'text_encoder', 'vae', 'controlnet']);
});

test('live messages move layers and keep what the report said', () => {
  const state = withLive(withReport(emptyState(), fixture.report()), fixture.live(12, 7));
  const [dit] = state.components;
  assert.equal(dit.pass, 7);
  assert.equal(dit.layer_states[12], 'U');
  assert.equal(dit.plan.layers[12].name, 'double_blocks.12');
  assert.equal(state.stale, false);
  assert.equal(focused(state, null).id, 'dit-1');
  assert.equal(focused(state, 'text_encoder-1').id, 'text_encoder-1');
});

test('a message about what the report did not have asks for a new report', () => {
  const state = withReport(emptyState(), fixture.report());
  const message = fixture.live();
  assert.ok(withLive(state, { ...message, components: [{ ...message.components[0], id: 'dit-2' }] }).stale);
  assert.ok(withLive(state, { ...message, components: [{ ...message.components[0], layer_states: 'RR' }] }).stale);
  assert.ok(withLive(state, { ...message, events: [['plan', 'dit-1', null, 0, 0, 0]] }).stale);
});

test('a message without a component that the report had, which is gone, asks for a new report', () => {
  const state = withReport(emptyState(), fixture.report());
  const message = fixture.live();
  assert.ok(withLive(state, { ...message, components: message.components.slice(1) }).stale);
  const planned = { ...fixture.report().components[0], component: 'dit_2', model: 'other.safetensors', nodes: ['9'] };
  assert.equal(withLive(withAhead(state, { components: [planned] }), message).stale, false, 'what is only planned is in none');
});

test('events are bounded', () => {
  let state = withReport(emptyState(), fixture.report());
  for (let round = 0; round < 100; round += 1) state = withLive(state, fixture.live());
  assert.ok(state.events.length <= KEPT_EVENTS);
  const late = fixture.live().events.map(([kind, id, layer, start, end, size]) => [kind, id, layer, start + 1e12, end + 1e12, size]);
  state = withLive(state, { ...fixture.live(), events: late });
  assert.ok(state.events.every((event) => event[4] > 1e11), 'old events go');
});

test('events that are sent again count once', () => {
  const once = withLive(withReport(emptyState(), fixture.report()), fixture.live());
  const again = withLive(once, fixture.live());
  assert.deepEqual(again.events, once.events);
  assert.deepEqual(lastPasses(again.events, 'dit-1'), lastPasses(once.events, 'dit-1'));
});

test('the timeline shows whole passes', () => {
  const { events } = withLive(withReport(emptyState(), fixture.report()), fixture.live());
  const shown = lastPasses(events, 'dit-1');
  assert.equal(shown.start_ns, 57 * 20e6);
  assert.equal(shown.events.filter(([kind, , layer]) => kind === 'visit' && layer === 0).length, 2);
  assert.equal(lastPasses(events, 'nobody'), null);
  assert.equal(tickStep(1e9, 1000), 1e8);
});

test('the mark is at the budget that was set, and at none that the pack has taken', () => {
  const { components, devices, host } = fixture.report();
  const numbers = { workflow_budget_bytes: { value: 5e9, source: 'graph' }, workflow_host_bytes: { value: 9e9, source: 'graph' } };
  const all = components.map((component) => ({ ...component, settings: { ...component.settings, ...numbers } }));
  assert.equal(devicePart(devices[0]).ceiling, 6e9);
  assert.equal(devicePart({ ...devices[0], budget_bytes: null }).ceiling, null, 'nothing was set');
  assert.equal(devicePart({ ...devices[0], budget_bytes: undefined }).ceiling, null, 'a server of before');
  const [planned] = fixture.ahead().components;
  const ceiling = (settings, total_bytes = 12e9) => plannedPart({ ...devices[0], name: planned.device, total_bytes }, { ...planned, settings }, say).ceiling;
  const own = (source) => ({ budget_bytes: { value: 6e9, source } });
  assert.equal(ceiling({ ...own('node'), ...numbers }), 5e9);
  assert.equal(ceiling({ ...own('node'), workflow_budget_bytes: { value: null, source: 'policy' } }), 6e9);
  assert.equal(ceiling(own('node'), 4e9), 4e9);
  assert.equal(ceiling(own('policy')), null, 'what the app offers');
  assert.equal(ceiling({}), null);
  assert.equal(hostPart(host, say, all).ceiling, 9e9);
  assert.equal(hostPart(host, say, components).ceiling, null);
});

test('the budget of the workflow is one bar that its components share', () => {
  const { components, devices } = fixture.reportOfWorkflowBudget(8e9);
  const [device] = devices;
  const rounded = (parts) => Object.fromEntries(Object.entries(parts).map(([name, size]) => [name, Math.round(size)]));
  assert.equal(workflowPart(device, fixture.report().components, null, say), null, 'nothing was set');
  assert.equal(workflowPart({ ...device, name: 'cuda:1' }, components, null, say), null, 'of another device');
  const now = workflowPart(device, components, null, say);
  assert.deepEqual(rounded(now.parts), { dit: 3.7e9, text_encoder: 1.23e9, ring: 1.2e9 });
  assert.deepEqual([now.total, Math.round(now.free), now.limits], [8e9, 1.87e9, { dit: 8e9, text_encoder: 3.2e9 }]);
  const idle = components.map((component) => ({ ...component, loaded: component.component === 'dit' }));
  assert.equal(workflowPart(device, idle, null, say).parts.text_encoder, 0, 'what is not loaded holds nothing');
  const planned = components.map((component) => ({ ...component, planned: true, loaded: false }));
  const turn = workflowPart(device, planned, planned[1], say);
  assert.deepEqual(rounded(turn.parts), { dit: 0, text_encoder: 1.23e9, ring: 1.2e9 });
  assert.ok(turn.title.includes('text_encoder'));
});

test('layers that lie on another device are shown there', () => {
  const { components, devices: [first, second] } = fixture.report();
  assert.equal(devicePart(first).parts.stored, 0);
  const now = devicePart(second);
  assert.deepEqual([now.parts.stored, now.ceiling], [3.98e9, null]);
  assert.equal(Math.round(Object.values(now.parts).reduce((sum, size) => sum + size, now.free)), 8e9);
  const planned = { ...components[0], planned: true, loaded: false };
  const empty = { ...second, free_bytes: 8e9, stored_bytes: 0, others_bytes: 0 };
  const then = plannedPart(empty, planned, say);
  assert.deepEqual([then.parts.stored, then.parts.resident, then.ceiling], [planned.plan.peer_bytes, 0, null]);
  assert.equal(Math.round(then.free + then.parts.stored), 8e9);
  assert.equal(plannedPart(first, planned, say).parts.stored, 0);
});

test('the other device is named where layers lie on it', () => {
  const { components: [dit, encoder] } = fixture.report();
  assert.equal(storedLine(say, dit), 'explain.stored 3.98 GB cuda:1');
  assert.equal(storedLine(say, { ...dit, summary: { ...dit.summary, peer_bytes: 0 } }), null, 'planned, and given up since');
  const { components: [planned] } = fixture.ahead();
  assert.equal(storedLine(say, planned), `explain.stored ${format.bytes(planned.plan.peer_bytes)} cuda:1`);
  assert.equal(storedLine(say, { ...encoder, summary: undefined, plan: { ...encoder.plan, peer_device: null, peer_bytes: 0 } }), null);
  const [mapped, , , , , , peer] = dit.plan.layers;
  assert.equal(cellText(say, dit, peer, 'offloaded').split(' · ').at(-1), 'memory.peer cuda:1');
  assert.ok(cellText(say, dit, mapped, 'offloaded').includes('memory.mapped'));
  assert.ok(!cellText(say, dit, dit.plan.layers[1], 'resident').includes('memory.'), 'a resident waits nowhere');
});

test('bars add up', () => {
  const { devices, host } = fixture.report();
  const part = devicePart(devices[0]);
  assert.ok(Object.values(part.parts).reduce((sum, one) => sum + one, part.free) <= part.total);
  assert.ok(Math.abs(hostPart(host, say).parts.others - 4.9e9) < 1);
});

test('states come from the plan where nothing else is known', () => {
  const [dit] = fixture.report().components;
  assert.equal(statesOf({ ...dit, layer_states: '' }).slice(0, 4), 'ORO' + 'O');
  assert.equal(statesOf({ ...dit, layer_states: '', loaded: false })[1], 'O');
});

test('a node says what auto came to, and on whose word', () => {
  const resolved = { component: 'dit', placement: 'layerwise', source: 'policy', reason: 'why', budget_bytes: 6e9, budget_source: 'graph', device_bytes: 5e9, warnings: [] };
  const auto = line(say, node('LayerwiseOffloadLoader', { dit_placement: 'auto' }), resolved);
  assert.equal(auto.placement, 'auto → layerwise');
  assert.equal(auto.rest, 'source.policy · node.used_of 5.00 GB 6.00 GB');
  for (const budget_source of ['policy', null, undefined]) {
    assert.equal(line(say, node('LayerwiseOffloadLoader'), { ...resolved, budget_source }).rest, 'source.policy · 5.00 GB', 'no budget was set');
  }
  const stored = line(say, node('LayerwiseOffloadLoader'), { ...resolved, peer_bytes: 3e9, peer_device: 'cuda:1' });
  assert.equal(stored.rest, `${auto.rest} · node.stored 3.00 GB cuda:1`);
  assert.ok(auto.title.includes(auto.rest) && auto.title.includes('why'), 'what a narrow node cuts is in its tooltip');
  const set = line(say, node('LayerwiseOffloadLoader', { dit_placement: 'resident' }), { ...resolved, placement: 'resident', source: 'node' });
  assert.equal(set.placement, 'resident');
  assert.equal(line(say, node('LayerwiseOffloadVAELoader', { placement: 'whole' }), { ...resolved, component: 'audio_vae_2' }).placement, 'layerwise');
});

test('a node finds itself in the report', () => {
  const loader = node('LayerwiseOffloadLoader', { dit_placement: 'auto', vae_placement: 'cpu' });
  const found = fromReport(fixture.report(), loader, (component) => isOfNode(component, '1'));
  assert.deepEqual(found.map((one) => [one.component, one.placement, one.source]), [
    ['dit', 'layerwise', 'policy'], ['text_encoder', 'layerwise', 'policy'], ['vae', 'cpu', 'node'],
  ]);
  assert.deepEqual(found.map((one) => one.budget_source), ['graph', 'policy', undefined], 'who set the budget');
  assert.deepEqual(found.map((one) => one.peer_device), ['cuda:1', 'cuda:1', undefined], 'where its layers wait');
  assert.equal(line(say, node('LayerwiseOffloadLoader', { vae_placement: 'auto' }), { ...found[2], placement: 'whole', source: null }).rest, '');
  assert.deepEqual(fromReport(fixture.report(), loader, (component) => isOfNode(component, '2')), []);
});

test('what a gigabyte more or less would do', () => {
  const [dit, encoder] = fixture.report().components;
  assert.deepEqual(whatIfLines(say, dit).map((one) => one.text), ['explain.what_if 1.04 s  (−14 %) 23', 'explain.what_if 1.37 s  (+13 %) 14']);
  assert.deepEqual(whatIfLines(say, dit).map((one) => one.delta), ['+1 GB', '−1 GB']);
  assert.ok(whatIfLines(say, encoder)[1].bad);
  assert.equal(whatIfLines(say, encoder)[1].text, 'why.budget_too_small 0.40 GB 1.36 GB', 'in the language of the page');
  assert.equal(whatIfLines(say, encoder)[0].text, 'explain.what_if 1.21 s  10', 'nothing to compare with');
});

test('what a pass waits for before its first layer belongs to it', () => {
  const events = [0, 100].flatMap((at) => [['stall', 'dit-1', 0, at, at + 30, 0], ['visit', 'dit-1', 0, at + 30, at + 60, 0], ['visit', 'dit-1', 1, at + 60, at + 100, 0]]);
  const shown = lastPasses(events, 'dit-1');
  assert.deepEqual([shown.start_ns, shown.end_ns], [0, 200]);
  assert.deepEqual(shown.events, events);
});

test('whether figures are of measured times', () => {
  const [dit, encoder] = fixture.report().components;
  assert.deepEqual([dit, encoder].map((component) => timesLine(say, component)), ['explain.measured', 'explain.assumed 24']);
  assert.equal(timesLine(say, { ...dit, assumed_times: null }), null, 'it has been loaded, and its plan is gone');
});

test('a layer that has come ahead of its use is called that, as in the picture of the report', () => {
  const words = ['en', 'zh', 'ja'].map((language) => JSON.parse(readFileSync(new URL(`../../web/words/${language}.json`, import.meta.url))));
  assert.deepEqual(words.map((table) => table['state.in_flight']), ['Fetched ahead', '已提前取入', '先読み済み']);
});

test('words fall back to English, languages to the nearest', () => {
  assert.equal(languageFor('zh-TW'), 'zh');
  assert.equal(languageFor('fr'), 'en');
  assert.equal(speaker({}, { hello: 'Hello {name}' })('hello', { name: 'you' }), 'Hello you');
});

test('a sentence whose code is known is said in the language, any other as the server wrote it', () => {
  const table = (language) => JSON.parse(readFileSync(new URL(`../../web/words/${language}.json`, import.meta.url)));
  const zh = speaker(table('zh'), table('en'));
  const fits = { code: 'does_not_fit', values: { size: '9.80 GB', sum: { code: 'memory_sum', values: { needed: '22.22 GB', free: '23.00 GB', headroom: '2.40 GB' } } } };
  assert.equal(sentence(zh, fits, 'english'), '它的 9.80 GB 无法与其余部分一起放下：需要 22.22 GB，空闲 23.00 GB，其中留出余量 2.40 GB');
  assert.equal(sentence(speaker(table('en')), fits, ''), 'its 9.80 GB do not fit beside the rest: 22.22 GB needed, 23.00 GB free less 2.40 GB of headroom');
  assert.equal(sentence(zh, { code: 'of_tomorrow', values: { size: '1 GB' } }, 'new to {size}'), 'new to {size}');
  assert.equal(sentence(zh, { ...fits, values: { ...fits.values, sum: { code: 'of_tomorrow', values: {} } } }, 'english'), 'english', 'no sentence of two languages');
  assert.equal(sentence(zh, null, 'english'), 'english');
  assert.equal(sentence(zh, undefined, 'english'), 'english', 'a report of before');

  const notices = [
    { component: '', code: 'loaded_twice', values: {}, do: { code: 'do_load_once', values: {} } }, { component: '', code: 'of_tomorrow', values: {}, do: null },
    { component: '', code: 'loaded_twice', values: {}, do: { code: 'of_tomorrow', values: {} } },
  ];
  const lines = noticeLines(zh, notices, ['a; b', 'c', 'a; d', 'e']);
  assert.deepEqual(lines, [`${table('zh')['why.loaded_twice']}；${table('zh')['why.do_load_once']}`, 'c', 'a; d', 'e']);
  assert.deepEqual(noticeLines(zh, undefined, undefined), []);

  const resolved = { component: 'dit', placement: 'layerwise', source: null, why: fits, reason: 'english', warnings: ['a; b', 'c'], notices };
  const { title, warned } = line(zh, node('LayerwiseOffloadLoader'), resolved);
  assert.ok(warned && title.includes('无法与其余部分一起放下') && title.includes(lines[0]) && title.endsWith('\nc') && !title.includes('english'));
  assert.equal(leftToApp(zh, { reason: 'english', why: { code: 'seen_later', values: {} } }), `交给 ComfyUI： ${table('zh')['why.seen_later']}`);

  const report = fixture.report();
  report.components[0].settings.placement.why = fits;
  Object.assign(report.components[0], { warnings: ['a; b'], notices: [notices[0]] });
  report.bystanders[0].why = { code: 'manual_mode', values: {} };
  const [dit, , vae] = fromReport(report, node('LayerwiseOffloadLoader', { vae_placement: 'cpu' }), () => true).map((one) => line(zh, node('LayerwiseOffloadLoader'), one).title);
  assert.ok(dit.includes('无法与其余部分一起放下') && dit.endsWith(lines[0]) && vae.endsWith(table('zh')['why.manual_mode']), 'after a reload too');
});

test('before the first run the plan is shown, after it what has been loaded', () => {
  const planned = fixture.ahead();
  let state = withAhead(withReport(emptyState(), { components: [], bystanders: [] }), planned);
  assert.deepEqual(state.components.map((one) => [one.component, one.planned, one.loaded]), [['dit', true, false], ['text_encoder', true, false]]);
  assert.equal(state.bystanders.length, 1);
  assert.equal(statesOf(state.components[0]).slice(0, 3), 'OrO', 'who will stay is told from who will not');
  assert.equal(focused(state, null).component, 'dit');
  const [device] = planned.devices;
  const { title, parts, ceiling, free } = plannedPart(device, state.components[0], say);
  assert.equal(free, Math.max(0, device.total_bytes - parts.others - parts.ring - parts.loose - parts.resident));
  const larger = plannedPart({ ...device, total_bytes: 48e9, free_bytes: 40e9 }, state.components[0], say);
  assert.equal(larger.parts.others, 8e9);
  assert.equal(larger.free + Object.values(larger.parts).reduce((sum, one) => sum + one, 0), 48e9, 'all of it is somewhere');
  assert.ok(title.includes('dit') && parts.ring === planned.components[0].plan.ring_bytes && ceiling === 6e9);
  const shown = lastPasses(state.components[0].events, state.components[0].id);
  assert.ok(shown.events.length > 57, 'a predicted pass can be drawn');
  state = withReport(state, fixture.report());
  assert.ok(state.components.every((one) => !one.planned) && state.components.length === 2, 'the same, but real');
  state = withReport(state, { components: [], bystanders: [] });
  assert.equal(state.components.length, 2, 'unloaded again: as planned');
  state = withAhead(state, { schema: 1, error: 'no such file' });
  assert.deepEqual([state.components, state.bystanders, state.problem], [[], [], 'no such file']);
  assert.equal(withAhead(state, null).problem, null);
  const budget = { component: 'dit', source: 'graph', widgets: [], smallest_gb: 1.21 };
  state = withAhead(state, { schema: 1, error: 'too small', budget });
  assert.deepEqual([state.problem, state.budget], ['too small', budget]);
  assert.deepEqual([withAhead(state, planned).problem, withAhead(state, planned).budget], [null, null], 'it is gone with the error');
});

test('another file under the same name is another component; one taken over from another loader is not', () => {
  const planned = fixture.ahead();
  const report = fixture.report();
  const [dit] = report.components;
  const other = { ...report, components: [{ ...dit, model: 'other.safetensors' }] };
  assert.deepEqual(withAhead(withReport(emptyState(), other), planned).components.map((one) => !!one.planned), [false, true, true]);
  const wrapped = { ...report, components: [{ ...dit, model: 'Flux', nodes: ['1'] }] };
  assert.deepEqual(withAhead(withReport(emptyState(), wrapped), planned).components.map((one) => !!one.planned), [false, true]);
});

test('a page that comes late finds the events of the last run, once each', () => {
  const { events } = fixture.live();
  let state = withStored(withReport(emptyState(), fixture.report()), events);
  assert.ok(lastPasses(state.events, 'dit-1'));
  const count = state.events.length;
  state = withLive(state, fixture.live());
  state = withStored(state, events);
  const visits = (list) => list.filter(([kind]) => kind === 'visit').length;
  assert.ok(visits(state.events) <= 2 * visits(events) && state.events.length <= 2 * count);
  const again = withStored(withStored(emptyState(), events), events);
  assert.equal(again.events.length, events.length);
});

test('passes that do not follow one another are not drawn as if they did', () => {
  const pass = (start) => [0, 1, 2].map((layer) => ['visit', 'a', layer, start + layer * 10, start + layer * 10 + 9, 0]);
  const near = [...pass(0), ...pass(35)], far = [...pass(0), ...pass(500)];
  assert.equal(lastPasses(near, 'a').start_ns, 0);
  assert.equal(lastPasses(far, 'a').start_ns, 500);
});

test('the prompt of a graph has our nodes, the loaders and the links, and nothing else of anybody', () => {
  const from = (origin_id) => ({ origin_id, origin_slot: 0 });
  const graph = {};
  const active = [
    { id: '5:1', graph, node: node('UNETLoader', { unet_name: 'a.safetensors' }) },
    { id: '5:2', graph, node: node('Secret', { password: 'x' }, [{ name: 'model', link: from(1) }]) },
    { id: '5:3', graph, node: node('LayerwiseOffloadApply', { placement: 'auto', layerwise_offload_text: '' }, [{ name: 'model', link: from(2) }, { name: 'clip', link: null }]) },
  ];
  assert.deepEqual(promptOf(active, '{}'), {
    '5:1': { class_type: 'UNETLoader', inputs: { unet_name: 'a.safetensors' } },
    '5:2': { class_type: 'Secret', inputs: { model: ['5:1', 0] } },
    '5:3': { class_type: 'LayerwiseOffloadApply', inputs: { placement: 'auto', model: ['5:2', 0], graph_options: '{}' } },
  });
  assert.equal(promptOf(active.slice(0, 2)), null);
});

test('wires that go in a circle through nodes that do not run lead nowhere', () => {
  const link = { origin_id: 9, origin_slot: 0 };
  const reroute = { isVirtualNode: true, type: 'Reroute', inputs: [{}], getInputLink: () => link };
  const graph = { getNodeById: () => reroute };
  const apply = { id: '1', graph, node: node('LayerwiseOffloadApply', { placement: 'auto' }, [{ name: 'model', link }]) };
  assert.deepEqual(promptOf([apply])['1'].inputs, { placement: 'auto', graph_options: '' });
});

test('a budget is set where it was said, and a constant or a subgraph in front of the widget is where that is', () => {
  const from = (origin_id, origin_slot = 0) => ({ origin_id, origin_slot });
  const constant = node('PrimitiveFloat', { value: 0.1 });
  const graph = { getNodeById: (id) => (id === 8 ? constant : { type: 'Other' }) };
  const plain = node('LayerwiseOffloadDiffusionModelLoader', { budget_gb: 0.1, ring_gb: 0 });
  const wired = node('LayerwiseOffloadDiffusionModelLoader', { budget_gb: 0 }, [{ name: 'budget_gb', link: from(8) }]);
  const computed = node('LayerwiseOffloadDiffusionModelLoader', { budget_gb: 0 }, [{ name: 'budget_gb', link: from(9) }]);
  const inside = node('LayerwiseOffloadDiffusionModelLoader', { budget_gb: 0 }, [{ name: 'budget_gb', link: from('-10') }]);
  const outside = { ...node('Group', { budget: 0.2 }), subgraph: {}, inputs: [{ widget: { name: 'budget' } }] };
  const parent = { id: '5', graph: { links: new Map() }, node: outside };
  const active = [
    { id: '3', graph, node: plain }, { id: '4', graph, node: wired }, { id: '6', graph, node: computed }, parent,
    { id: '5:1', graph, parent, node: inside },
  ];
  assert.deepEqual(widgetOf(active, 3, 'budget_gb'), { node: plain, widget: plain.widgets[0] });
  assert.deepEqual(widgetOf(active, '4', 'budget_gb'), { node: constant, widget: constant.widgets[0] });
  assert.deepEqual(widgetOf(active, '5:1', 'budget_gb'), { node: outside, widget: outside.widgets[0] });
  assert.equal(widgetOf(active, '6', 'budget_gb'), null, 'another node computes it');
  assert.equal(widgetOf(active, '3', 'no_such_widget'), null);
  assert.equal(widgetOf(active, '77', 'budget_gb'), null, 'no such node');

  const budget = (source, smallest_gb, ...ids) => ({ component: 'dit_2', setting: 'budget_gb', source, smallest_gb, widgets: ids.map((id) => ({ node: id, widget: 'budget_gb' })) });
  assert.deepEqual(placeOf(budget('node', 1.21, '3'), active), { widgets: [{ node: plain, widget: plain.widgets[0] }] });
  assert.equal(placeOf(budget('options', 1.21, '3', '4'), active).widgets.length, 2);
  assert.equal(placeOf(budget('options', 1.21, '3', '6'), active), null, 'one of them alone would contradict the other');
  assert.deepEqual(placeOf(budget('graph', 1.21), active), { options: 'dit_2' });
  assert.deepEqual(placeOf(budget('settings', 1.21), active), { options: 'dit_2' }, 'the settings are about every workflow');
  assert.equal(placeOf(budget('node', null, '3'), active), null, 'the device is too small');
  assert.equal(placeOf(budget(null, null), active), null);
  assert.equal(placeOf(null, active), null);
});
