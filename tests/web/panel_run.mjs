// A user with the real server: opens the panel, runs, reads node and panel, sets options of the graph, asks why, saves,
// reloads, copies, puts the loader into a subgraph. Says what was to be seen at each step; the test judges.
import { scenario, settle } from './page.mjs';

const PANEL = 'layerwise-offload';

// Runs in the page: more verbs, about our nodes and our panel.
function installOurs() {
  Object.assign(verbs, {
    textOf: (node) => node.widgets.find((one) => one.name === 'layerwise_offload_text').element.innerText,
    report: async () => (await app.api.fetchApi('/layerwise_offload/report')).json(),
    async sourcesOf(name) {
      const { components } = await this.report();
      const { placement, budget_bytes } = components.find((one) => one.component === name).settings;
      return { placement: [placement.value, placement.source], budget: budget_bytes && [budget_bytes.value, budget_bytes.source] };
    },
    carried: async (id) => (await app.graphToPrompt()).output[id].inputs.graph_options,
  });
  window.liveMessages = [];
  app.api.addEventListener('layerwise_offload.live', (event) => window.liveMessages.push(event.detail));
}

const lines = (text) => text.split('\n').map((one) => one.trim()).filter(Boolean);

await scenario(async (page, task) => {
  const loader = await page.evaluate(async ({ prompt, id }) => (await verbs.build(prompt))[id], { prompt: task.prompt, id: task.loader });
  await page.evaluate(installOurs);
  const inPage = (body, argument) => page.evaluate(body, argument);
  const picture = (name) => page.screenshot({ path: task.screenshot.replace('.png', `-${name}.png`) });
  const run = async () => (await inPage((ms) => verbs.run(ms), task.timeoutMs)).status;
  const toggle = () => inPage((id) => app.extensionManager.bottomPanel.toggleBottomPanelTab(id), PANEL);
  const onNode = (id) => inPage((one) => verbs.textOf(verbs.node(one)), id);
  const seen = { widgets: [await inPage(() => verbs.savedWidgets())] };

  // before the first run
  seen.nodeBefore = await onNode(loader);
  await toggle();
  await page.waitForSelector('.lwo-map-row');
  seen.idle = await page.locator('.lwo-panel').innerText();
  seen.idleTimeline = await page.locator('.lwo-canvas').isVisible();
  await page.click('#lwo-tab-explain');
  seen.idleWhy = await page.locator('.lwo-cards').innerText();
  await page.click('#lwo-tab-overview');
  await picture('idle');
  const model = await inPage(async (id) => {
    const before = verbs.node(id).widgets.find((one) => one.name === 'model_name').value;
    verbs.setWidget(verbs.node(id), 'model_name', 'gone.safetensors');
    app.api.dispatchEvent(new CustomEvent('graphChanged')); // as after a click of the user's
    return before;
  }, loader);
  await page.waitForSelector('.lwo-problem');
  seen.problem = await page.locator('.lwo-panel').innerText();
  await picture('problem');
  await inPage(([id, name]) => {
    verbs.setWidget(verbs.node(id), 'model_name', name);
    app.api.dispatchEvent(new CustomEvent('graphChanged'));
  }, [loader, model]);
  await page.waitForSelector('.lwo-map-row');

  // a run, watched
  const during = page.waitForSelector('.lwo-running', { timeout: 30000 }).then(() => picture('running')).then(() => true, () => false);
  seen.run = await run();
  seen.ranVisibly = await during;
  const nothingPlanned = () => ![...document.querySelectorAll('.lwo-status')].some((one) => one.textContent === 'planned');
  await page.waitForFunction(nothingPlanned, null, { timeout: 20000 }).catch(() => {}); // on a busy machine news come late
  await page.waitForSelector('.lwo-canvas', { timeout: 20000 }).catch(() => {});
  await page.waitForTimeout(700);
  seen.numbers = lines(await page.locator('.lwo-tiles').innerText());
  seen.states = await inPage(() => [...document.querySelectorAll('.lwo-strip')].map((strip) => strip.children.length));
  seen.timeline = await page.locator('.lwo-canvas').isVisible();
  seen.live = await inPage(() => window.liveMessages.length);
  seen.nodeAfter = await onNode(loader);
  await picture('after');
  await page.click('.lwo-head .lwo-button');
  await page.waitForFunction(() => document.querySelector('.lwo-told').textContent);
  seen.saved = await page.locator('.lwo-told').innerText();
  await page.click('.lwo-head .lwo-button:last-child');
  await page.waitForFunction((before) => ![before, ''].includes(document.querySelector('.lwo-told').textContent), seen.saved);
  seen.forgotten = await page.locator('.lwo-told').innerText();

  // options of the graph, by the form
  await page.click('#lwo-tab-options');
  const row = page.locator('tr[data-selector="dit"]');
  await row.getByLabel('dit: Placement').selectOption('layerwise');
  await row.locator('input').first().fill('0.03');
  await row.locator('input').first().press('Tab');
  seen.carried = JSON.parse(await inPage((id) => verbs.carried(id), loader));
  await picture('options');
  await inPage((values) => verbs.settings(values), task.defaults);
  seen.runWithOptions = await run();
  seen.dit = await inPage(() => verbs.sourcesOf('dit'));
  seen.vae = await inPage(() => verbs.sourcesOf('vae'));
  await inPage((names) => verbs.settings(Object.fromEntries(names.map((name) => [name, name.endsWith('GB') ? 0 : 'auto']))), Object.keys(task.defaults));
  seen.nodeWithOptions = await onNode(loader);

  // why
  await inPage((id) => app.canvas.selectNode(verbs.node(id)), loader);
  await inPage(() => app.extensionManager.command.execute('LayerwiseOffload.ExplainPlacement'));
  await page.waitForSelector('.lwo-card.lwo-focused');
  seen.why = await page.locator('.lwo-cards').innerText();
  await picture('why');

  // hidden: nobody listens
  await toggle();
  await page.waitForTimeout(600);
  await inPage(() => (window.liveMessages.length = 0));
  seen.runHidden = await run();
  seen.liveHidden = await inPage(() => window.liveMessages.length);
  await inPage(() => app.extensionManager.command.execute('Comfy.Canvas.FitView'));
  await page.waitForTimeout(600);
  await picture('node');

  // a copy knows nothing; saved and loaded again, in this page and in a fresh one
  seen.copy = await inPage(async (id) => {
    app.canvas.copyToClipboard([verbs.node(id)]);
    app.canvas.pasteFromClipboard();
    const copy = app.graph.nodes.find((one) => one.type === verbs.node(id).type && String(one.id) !== id);
    const found = { text: verbs.textOf(copy), widgets: copy.serialize().widgets_values };
    app.graph.remove(copy);
    return found;
  }, loader);
  seen.widgets.push(await inPage(() => verbs.savedWidgets()));
  const saved = await inPage(() => verbs.saveAndReload());
  seen.extra = saved.extra.layerwise_offload;
  seen.widgets.push(await inPage(() => verbs.savedWidgets()));
  await page.waitForTimeout(400);
  seen.nodeReloaded = await onNode(loader);
  await page.reload({ waitUntil: 'domcontentloaded' });
  await settle(page);
  await page.evaluate(installOurs);
  await inPage((workflow) => app.loadGraphData(workflow), saved);
  await page.waitForTimeout(400);
  seen.nodeInFreshPage = await onNode(loader);
  seen.widgets.push(await inPage(() => verbs.savedWidgets()));
  seen.carriedInFreshPage = JSON.parse(await inPage((id) => verbs.carried(id), loader));
  await toggle();
  seen.timelineInFreshPage = await page.waitForSelector('.lwo-canvas', { timeout: 5000 }).then(() => true, () => false);
  seen.totalsInFreshPage = await page.locator('.lwo-summary').innerText();
  await picture('reloaded');

  // in a subgraph
  seen.subgraph = await inPage(async ([id, ms]) => {
    const { node } = app.graph.convertToSubgraph(new Set([verbs.node(id)]));
    const [inner] = node.subgraph.nodes;
    const before = verbs.textOf(inner);
    const { status } = await verbs.run(ms);
    for (let wait = 0; wait < 50 && verbs.textOf(inner) === before; wait += 1) await new Promise((done) => setTimeout(done, 100));
    const { output } = await app.graphToPrompt();
    const [key] = Object.keys(output).filter((one) => one.startsWith(`${node.id}:`));
    return { status, key, text: verbs.textOf(inner), carried: output[key].inputs.graph_options };
  }, [loader, task.timeoutMs]);
  return seen;
});
