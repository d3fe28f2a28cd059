// Finds the task's template in the app's template browser, as a user would, opens it, and takes pictures of both.
import { scenario } from './page.mjs';

await scenario(async (page, task) => {
  await page.evaluate(() => app.extensionManager.command.execute('Comfy.BrowseTemplates'));
  const search = page.getByRole('dialog').getByPlaceholder(/search/i).first();
  await search.waitFor({ timeout: 20000 });
  await search.fill(task.query);
  await page.waitForTimeout(1500);
  const titles = await page.locator('[data-testid^="template-workflow-"] h3').allInnerTexts();
  const pictures = await page.locator('[data-testid^="template-workflow-"] img').evaluateAll((all) => all.map((img) => img.naturalWidth));
  await page.screenshot({ path: task.screenshot });
  await page.getByText(task.open, { exact: true }).first().click();
  await page.waitForFunction((title) => document.title.includes(title), task.open, { timeout: 20000 });
  const opened = await page.evaluate(() => app.graph.nodes.length);
  return { titles, pictures, opened };
});
