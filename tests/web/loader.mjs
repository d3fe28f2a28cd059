// Builds the task's workflow in the page, runs it, saves and reloads it, and takes a picture of the result.
import { scenario } from './page.mjs';

await scenario(async (page, task) => {
  const ids = await page.evaluate((prompt) => verbs.build(prompt), task.prompt);
  const built = await page.evaluate(() => verbs.apiForm());
  const uiBuilt = await page.evaluate(() => verbs.uiForm());
  const run = await page.evaluate((ms) => verbs.run(ms), task.timeoutMs);
  await page.evaluate(() => app.canvas.ds && app.extensionManager.command.execute('Comfy.Canvas.FitView'));
  await page.waitForTimeout(800);
  await page.screenshot({ path: task.screenshot });
  const beforeReload = await page.evaluate(() => verbs.apiForm()); // the app draws a new seed after each run
  const uiAfterRun = await page.evaluate(() => verbs.uiForm());
  // What nodes show: as text of the page, or as widgets of the app's that a renderer draws.
  const shown = await page.evaluate(() => document.body.innerText + JSON.stringify(app.graph.nodes.map((n) => n.widgets?.map((w) => w.value))));
  // Which widgets the canvas would draw, and what the elements of the other renderer say, by node.
  const seen = await page.evaluate(() => Object.fromEntries(
    app.graph.nodes.map((n) => [n.id, (n.widgets ?? []).filter((w) => n.isWidgetVisible(w)).map((w) => w.name)]),
  ));
  const elements = await page.evaluate(() => Object.fromEntries(
    [...document.querySelectorAll('[data-node-id]')].map((element) => [element.dataset.nodeId, element.innerText]),
  ));
  const vueElements = await page.locator('[data-node-id]').count();
  await page.evaluate(() => verbs.saveAndReload());
  const afterReload = await page.evaluate(() => verbs.apiForm());
  return { seen, elements, ids, built, uiBuilt, uiAfterRun, beforeReload, afterReload, run, shown, vueElements };
});
