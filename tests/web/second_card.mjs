// A user of two cards: finds them in the options node, the form and the settings, has layers of a model lie on the second,
// and sees there where they are, before and after the run.
import { scenario } from './page.mjs';

await scenario(async (page, task) => {
  const inPage = (body, argument) => page.evaluate(body, argument);
  const picture = (name) => page.screenshot({ path: task.screenshot.replace('.png', `-${name}.png`) });
  await inPage((prompt) => verbs.build(prompt), task.prompt);
  const seen = await inPage(() => {
    const node = verbs.add('LayerwiseOffloadOptions', [0, 900]);
    const options = node.widgets.find((widget) => widget.name === 'host_tier').options.values;
    app.graph.remove(node);
    return { onNode: [...options] };
  });
  await inPage(() => app.extensionManager.bottomPanel.toggleBottomPanelTab('layerwise-offload'));
  await page.waitForSelector('.lwo-map-row');
  await page.click('#lwo-tab-options');
  const row = page.locator('tr[data-selector="dit"]');
  const tier = row.getByLabel('dit: Layers wait in');
  seen.inForm = await tier.locator('option').allInnerTexts();
  await tier.selectOption(task.peer);
  await picture('options');
  await page.click('#lwo-tab-overview');
  await page.locator('.lwo-memory', { hasText: task.peer }).waitFor();
  const bars = async () => Object.fromEntries(await page.locator('.lwo-track').evaluateAll((tracks) => tracks.map((track) => track.getAttribute('aria-label').split(': '))));
  seen.planned = await bars();
  await picture('planned');
  seen.cells = await page.locator('.lwo-strip .lwo-cell').evaluateAll((cells) => cells.map((cell) => cell.getAttribute('aria-label')));
  seen.run = (await inPage((ms) => verbs.run(ms), task.timeoutMs)).status;
  await page.waitForFunction(() => ![...document.querySelectorAll('.lwo-status')].some((one) => one.textContent === 'planned'));
  await page.waitForTimeout(700);
  seen.after = await bars();
  seen.numbers = await page.locator('.lwo-tiles').innerText();
  seen.lines = await page.locator('.lwo-node-line').evaluateAll((lines) => lines.map((line) => line.title));
  await picture('after');
  await page.click('#lwo-tab-explain');
  seen.why = await page.locator('.lwo-cards').innerText();
  return seen;
});
