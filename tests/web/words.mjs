// Shows one of our nodes and its help page, and takes a picture.
import { scenario } from './page.mjs';

await scenario(async (page, task) => {
  // the app's first workflow comes in late, and would take our node away
  await page.waitForFunction(() => app.graph.nodes.length > 0, null, { timeout: 60000 });
  await page.waitForTimeout(500);
  const node = await page.evaluate((type) => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    node.pos = [100, 100];
    app.graph.add(node);
    return { title: node.title, inputs: Object.fromEntries(node.inputs.map((i) => [i.name, i.localized_name])) };
  }, task.type);
  const help = page.locator('.node-help-content');
  for (let turn = 0; turn < 10 && !(await help.locator('h1').count()); turn++) { // a page that is still busy deselects
    await page.evaluate(() => app.canvas.selectNode(app.graph.nodes[0]));
    await page.getByTestId('info-button').click({ timeout: 3000 }).catch(() => {});
    await page.waitForTimeout(1000);
  }
  await page.waitForTimeout(500);
  await page.screenshot({ path: task.screenshot });
  const seen = { node, help: await help.innerText(), page: await page.evaluate(() => document.body.innerText) };
  await page.evaluate(() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog'));
  const dialog = page.getByRole('dialog').last();
  await dialog.getByText(task.category, { exact: true }).first().click({ timeout: 10000 });
  await page.waitForTimeout(500);
  seen.settings = await dialog.innerText();
  await page.screenshot({ path: task.screenshot.replace('.png', '-settings.png') });
  return seen;
});
