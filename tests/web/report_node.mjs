// The Report node's text: before a run, after it, in another tab and back, in a subgraph, saved and loaded.
import { scenario } from './page.mjs';

await scenario(async (page, task) => {
  const inPage = (body, argument) => page.evaluate(body, argument);
  const id = await inPage(([prompt, report]) => {
    verbs.textOf = (node) => node.widgets.find((one) => one.name === 'layerwise_offload_text').element.innerText;
    verbs.report = () => app.graph.nodes.find((one) => one.type === 'LayerwiseOffloadReport');
    return verbs.build(prompt)[report];
  }, [task.prompt, task.report]);
  const text = () => inPage(() => verbs.textOf(verbs.report()));
  const seen = { before: await text() };
  seen.sizeBefore = await inPage(() => [...verbs.report().size]);
  seen.run = await inPage((ms) => verbs.run(ms), task.timeoutMs);
  seen.said = seen.run.outputs[id].text.join('\n');
  seen.after = await text();
  seen.sizeAfter = await inPage(() => [...verbs.report().size]);
  await inPage(() => app.extensionManager.command.execute('Comfy.Canvas.FitView'));
  await page.waitForTimeout(800);
  await page.screenshot({ path: task.screenshot });
  const area = page.locator('.lwo-report');
  seen.visible = [await area.count(), await area.isVisible(), await area.boundingBox()];
  // a report with many lines scrolls in its node, by the wheel too, and moves neither node nor graph
  await inPage((node) => app.api.dispatchEvent(new CustomEvent('executed', {
    detail: { node, display_node: node, prompt_id: '', output: { text: [Array(200).fill('a line').join('\n')] } },
  })), id);
  await page.waitForTimeout(300);
  const box = await area.boundingBox();
  const view = () => inPage(() => [app.canvas.ds.scale, ...app.canvas.ds.offset, ...verbs.report().pos, ...verbs.report().size]);
  const viewBefore = await view();
  await page.mouse.click(box.x + 50, box.y + 20);
  await page.mouse.wheel(0, 120);
  await page.waitForTimeout(300);
  seen.long = { box, scrolled: await area.evaluate((one) => one.scrollTop), moved: JSON.stringify(await view()) !== JSON.stringify(viewBefore) };
  seen.last = await text();
  seen.saved = await inPage(async () => JSON.stringify([verbs.uiForm(), await verbs.apiForm()]));

  await inPage(() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow'));
  await page.waitForFunction(() => !verbs.report());
  await inPage(() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow'));
  await page.waitForFunction(() => verbs.report());
  await page.waitForTimeout(500);
  seen.otherTabAndBack = await text();

  await inPage(() => verbs.saveAndReload());
  seen.reloaded = await text();
  seen.subgraph = await inPage(async (ms) => {
    const { node } = app.graph.convertToSubgraph(new Set([verbs.report()]));
    const [inner] = node.subgraph.nodes;
    const before = verbs.textOf(inner);
    const { status, outputs } = await verbs.run(ms);
    return { before, status, said: outputs[`${node.subgraph.id}:${inner.id}`].text.join('\n'), text: verbs.textOf(inner) };
  }, task.timeoutMs);
  return seen;
});
