// A budget that is too small, in each place where it can be said: the error, its button, and what the button does.
import { scenario } from './page.mjs';

const PANEL = 'layerwise-offload';
const SETTING = 'LayerwiseOffload.Dit.BudgetGB';

await scenario(async (page, task) => {
  const inPage = (body, argument) => page.evaluate(body, argument);
  const picture = (name) => page.screenshot({ path: task.screenshot.replace('.png', `-${name}.png`) });
  const button = page.locator('.lwo-panel .lwo-primary').filter({ hasText: ' GB' }).locator('visible=true');
  const build = (prompt) => inPage(async (given) => {
    const ids = await verbs.build(given);
    changed();
    return ids;
  }, prompt);
  await inPage(() => {
    window.changed = () => {
      const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
      if (tracker.captureCanvasState) tracker.captureCanvasState();
      else tracker.checkState();
    };
    window.valueOf = ([id, name]) => verbs.node(id).widgets.find((one) => one.name === name).value;
  });
  const valueOf = (id, name) => inPage(([node, widget]) => window.valueOf([node, widget]), [id, name]);
  const planned = () => page.waitForFunction(() => {
    const shown = (one) => one.offsetParent !== null;
    return [...document.querySelectorAll('.lwo-map-row')].some(shown) && ![...document.querySelectorAll('.lwo-refused, .lwo-problem')].some(shown);
  }, null, { timeout: 20000 });
  /** What the button says, and that a plan is there after it was pressed. */
  const press = async () => {
    await button.waitFor({ timeout: 20000 });
    const said = { text: await button.innerText(), title: await button.getAttribute('title'), panel: await page.locator('.lwo-panel').innerText() };
    await button.click();
    await planned();
    return { ...said, left: await button.count() };
  };
  const graphOptions = () => inPage(() => app.graph.extra.layerwise_offload ?? null);
  const seen = {};

  // queued without the panel; it is opened after the run has failed
  await inPage(() => app.loadGraphData(verbs.uiForm())); // now there is a workflow, which can be undone
  let ids = await build(task.loader);
  await inPage(() => app.extensionManager.workflow.activeWorkflow.changeTracker.reset());
  const toggle = () => inPage((id) => app.extensionManager.bottomPanel.toggleBottomPanelTab(id), PANEL);
  await toggle(); // once before anything has been loaded, when the error is all there is
  await page.locator('.lwo-empty .lwo-primary').filter({ hasText: ' GB' }).waitFor({ timeout: 20000 });
  await picture('empty');
  seen.empty = { text: await button.innerText(), panel: await page.locator('.lwo-panel').innerText() };
  await toggle();
  seen.failed = await inPage(() => verbs.run(60000));
  await page.keyboard.press('Escape');
  await toggle();
  await button.waitFor({ timeout: 20000 });
  await page.waitForTimeout(500);
  await picture('failed');
  seen.loader = await press();
  seen.loader.value = await valueOf(ids[1], 'dit_budget_gb');
  seen.loader.modified = await inPage(() => app.extensionManager.workflow.activeWorkflow.isModified);
  await page.waitForTimeout(300);
  await picture('planned');
  await inPage(() => app.extensionManager.command.execute('Comfy.Undo'));
  await button.waitFor({ timeout: 20000 });
  seen.loader.undone = await valueOf(ids[1], 'dit_budget_gb');
  await press();
  seen.ran = await inPage(() => verbs.run(60000));

  // beside what an earlier run has loaded, where the error stands above the views
  await inPage(([id, gb]) => {
    verbs.setWidget(verbs.node(id), 'dit_budget_gb', gb);
    changed();
  }, [ids[1], task.small]);
  await button.waitFor({ timeout: 20000 });
  await page.waitForTimeout(300);
  await picture('beside');
  seen.beside = await press();

  // an options node, a constant, a widget inside a subgraph
  ids = await build(task.options);
  seen.options = await press();
  seen.options.value = await valueOf(ids[90], 'dit_budget_gb');
  ids = await build(task.constant);
  await inPage(([id, gb]) => {
    verbs.node(id).widgets[0].value = gb;
    changed();
  }, [ids[95], task.small]);
  seen.constant = await press();
  seen.constant.value = await valueOf(ids[95], 'value');
  ids = await build(task.loader);
  await inPage((id) => {
    app.graph.convertToSubgraph(new Set([verbs.node(id)]));
    changed();
  }, ids[1]);
  seen.inside = await press();
  seen.inside.value = await inPage(() => app.graph.nodes.find((one) => one.subgraph).subgraph.nodes.map((one) => one.widgets.find(({ name }) => name === 'dit_budget_gb').value));
  seen.inside.sent = await inPage(async () => Object.values(await verbs.apiForm()).find((one) => one.class_type === 'LayerwiseOffloadLoader').inputs.dit_budget_gb);

  // the options of the graph, then the user's settings
  await build(task.plain);
  await inPage(async ([gb]) => {
    const { writeGraphOptions } = await import('/extensions/layerwise-offload/app_contact.js');
    writeGraphOptions({ schema: 1, components: { dit: { placement: 'layerwise', budget_gb: gb }, vae: { placement: 'whole' } } });
  }, [task.small]);
  seen.graph = await press();
  seen.graph.options = await graphOptions();
  await page.click('#lwo-tab-options');
  seen.graph.form = await page.locator('tr[data-selector="dit"] input').first().inputValue();
  await page.click('#lwo-tab-overview');
  await inPage(async () => {
    const { writeGraphOptions } = await import('/extensions/layerwise-offload/app_contact.js');
    writeGraphOptions(null);
  });
  await inPage(([name, gb]) => verbs.settings({ [name]: gb }), [SETTING, task.small]);
  seen.settings = await press();
  seen.settings.options = await graphOptions();
  seen.settings.kept = await inPage((name) => app.extensionManager.setting.get(name), SETTING);
  await inPage((name) => verbs.settings({ [name]: 0 }), SETTING);

  // where no budget is enough, there is nothing to press
  await inPage(async () => {
    const { writeGraphOptions } = await import('/extensions/layerwise-offload/app_contact.js');
    writeGraphOptions(null);
  });
  await page.route('**/layerwise_offload/expect', (route) => route.fulfill({ json: task.hopeless }));
  await build(task.loader);
  await page.waitForFunction(() => document.querySelector('.lwo-panel').innerText.includes('hopeless'));
  seen.hopeless = await button.count();
  return seen;
});
