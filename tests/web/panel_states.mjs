// What panel and nodes say after something went another way than planned. Says what was to be seen; the test judges.
import * as fixture from './fixture.mjs';
import { scenario } from './page.mjs';

let reported = null; // what the server is made to have loaded

const routes = (page) => page.route('**/layerwise_offload/report', (route) => (reported ? route.fulfill({ json: reported }) : route.continue()));

await scenario(async (page, task) => {
  const inPage = (body, argument) => page.evaluate(body, argument);
  const seen = {};
  let loader = await inPage(async ([prompt, id]) => (await verbs.build(prompt))[id], [task.prompt, task.loader]);
  const text = () => inPage((id) => verbs.node(id).widgets.find((one) => one.name === 'layerwise_offload_text').element.innerText, loader);
  const told = async (component, more = {}) => {
    const detail = { schema: 1, node: loader, component, placement: 'layerwise', source: 'policy', reason: '', warnings: [], to_do: [], ...more };
    await inPage((message) => app.api.dispatchEvent(new CustomEvent('layerwise_offload.resolved', { detail: message })), detail);
  };
  const set = (name, value) => inPage(([id, ...pair]) => {
    verbs.setWidget(verbs.node(id), ...pair);
    app.api.dispatchEvent(new CustomEvent('graphChanged'));
  }, [loader, name, value]);

  // the same node: a component that has another name now, one that has been taken out, one of another workflow
  await told('dit_2');
  await told('image_encoder');
  seen.first = await text();
  await set('clip_vision_name', 'none');
  await told('dit', { model: task.model });
  seen.renamed = await text();
  await told('dit', { model: 'anothers.safetensors', placement: 'resident' });
  seen.anothers = await text();

  // a component that the app found in its cache: no message in this run, yet it is in the report
  const [dit, encoder] = fixture.report().components;
  const here = { nodes: [loader], warnings: [] };
  reported = { ...fixture.report(), components: [{ ...dit, ...here, model: task.model, budget_bytes: 1 }, { ...encoder, ...here, model: task.encoder }], bystanders: [] };
  await inPage(() => app.api.dispatchEvent(new CustomEvent('execution_success', { detail: {} })));
  await page.waitForTimeout(500);
  seen.cached = await text();
  reported = null;

  // the server does not answer, then it does
  await inPage(() => app.extensionManager.bottomPanel.toggleBottomPanelTab('layerwise-offload'));
  await page.waitForSelector('.lwo-map-row');
  const status = page.locator('.lwo-told');
  await page.route('**/layerwise_offload/expect', (route) => route.abort());
  await set('dit_placement', 'layerwise');
  await page.waitForFunction(() => document.querySelector('.lwo-told').textContent);
  await page.unroute('**/layerwise_offload/expect');
  await set('dit_placement', 'auto');
  await page.waitForFunction(() => !document.querySelector('.lwo-told').textContent, null, { timeout: 5000 }).catch(() => {});
  seen.status = await status.innerText();

  // a user's default changes, and nothing in the graph
  await page.click('#lwo-tab-explain');
  await page.waitForTimeout(1000); // what was changed in the graph has had its plan
  await inPage(() => verbs.settings({ 'LayerwiseOffload.Dit.Placement': 'resident' }));
  await page.waitForSelector('.lwo-by-settings', { timeout: 5000 }).catch(() => {});
  seen.byDefault = await page.locator('.lwo-cards').innerText();
  await inPage(() => verbs.settings({ 'LayerwiseOffload.Dit.Placement': 'auto' }));
  await page.click('#lwo-tab-overview');

  // a workflow that would not run, while an earlier one is still loaded
  reported = fixture.report();
  await set('model_name', 'gone.safetensors');
  await inPage(() => app.api.dispatchEvent(new CustomEvent('execution_error', { detail: { exception_type: 'ValueError', exception_message: 'refused' } })));
  await page.waitForFunction(() => document.querySelectorAll('.lwo-map-row').length > 1);
  await page.waitForSelector('.lwo-refused', { timeout: 5000 }).catch(() => {});
  await page.screenshot({ path: task.screenshot });
  seen.refused = await page.locator('.lwo-panel').innerText();
  reported = null;

  // options that came with a workflow in API form
  loader = await inPage(async ([prompt, id, graph_options]) => {
    prompt[id].inputs.graph_options = graph_options;
    await app.loadApiJson(prompt, 'from-the-api.json');
    return String(app.graph.nodes.find((one) => one.type === prompt[id].class_type).id);
  }, [task.prompt, task.loader, task.options]);
  const carried = () => inPage(async (id) => (await app.graphToPrompt()).output[id].inputs.graph_options, loader);
  await page.click('#lwo-tab-options');
  const placement = page.getByLabel('dit: Placement');
  await page.waitForTimeout(600);
  seen.form = await placement.inputValue();
  seen.carried = await carried();
  await page.click('#lwo-tab-explain');
  await page.waitForFunction(() => document.querySelector('.lwo-bystander'), null, { timeout: 5000 }).catch(() => {});
  seen.why = await page.locator('.lwo-cards').innerText();
  await page.click('#lwo-tab-options');
  await placement.selectOption('resident');
  seen.changed = await carried();
  await placement.selectOption('auto');
  seen.cleared = [await carried(), await inPage(() => app.extensionManager.bottomPanel.bottomPanelVisible), await placement.inputValue()];
  return seen;
}, { routes });
