// Opens a workflow, or makes one from the task's prompt, places and note; takes a picture of its graph and no more.
import { graphOnScreen, scenario } from './page.mjs';

const MARGIN = 30; // pixels around the graph, for the nodes' badges

await scenario(async (page, task) => {
  const workflow = task.workflow ?? (await page.evaluate(({ prompt, places, note, notePlace }) => {
    const ids = verbs.build(prompt);
    for (const [id, [x, y, width]] of Object.entries(places)) {
      const node = app.graph.getNodeById(Number(ids[id]));
      node.pos = [x, y];
      if (width) node.size = [width, node.size[1]];
    }
    const text = verbs.add('MarkdownNote', notePlace.slice(0, 2));
    text.size = notePlace.slice(2);
    verbs.setWidget(text, text.widgets[0].name, note);
    return JSON.parse(JSON.stringify(app.graph.serialize()));
  }, task));
  await page.evaluate((data) => app.loadGraphData(data, true, true, null, { openSource: 'template' }), workflow);
  await page.waitForTimeout(500);
  const apiForm = await page.evaluate(() => verbs.apiForm());
  const nodes = await page.evaluate(() => app.graph.nodes.map((n) => ({
    type: n.type, missing: Boolean(n.has_errors), inputs: n.inputs?.map((i) => i.name), outputs: n.outputs?.map((o) => o.name),
  })));
  await page.evaluate(() => app.extensionManager.command.execute('Workspace.ToggleFocusMode'));
  await page.evaluate(() => app.extensionManager.command.execute('Comfy.Canvas.FitView'));
  await page.waitForTimeout(1000);
  await page.screenshot({ path: task.screenshot, clip: await page.evaluate(graphOnScreen, MARGIN) });
  const scale = await page.evaluate(() => app.canvas.ds.scale);
  return { workflow, apiForm, nodes, scale, margin: MARGIN };
});
