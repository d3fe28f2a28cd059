// Opens a trace in Perfetto's own page and asks its trace processor what it has understood. Needs no app.
import { createRequire } from 'node:module';

const { chromium } = createRequire(`${process.env.LAYERWISE_NODE_MODULES}/`)('playwright-core');
const task = JSON.parse(process.argv[2]);
const OF_PERFETTO = /^https:\/\/storage\.cloud\.google\.com\/perfetto-ui-internal\//; // its page looks for its makers' own

// Runs in the page.
async function ask(queries) {
  const { engine } = app.trace;
  const found = {};
  for (const [name, sql] of Object.entries(queries)) {
    const result = await engine.query(sql);
    found[name] = [];
    for (const row = result.iter({}); row.valid(); row.next()) {
      found[name].push(Object.fromEntries(result.columns().map((column) => [column, typeof row.get(column) === 'bigint' ? Number(row.get(column)) : row.get(column)])));
    }
  }
  return found;
}

const browser = await chromium.launch({ executablePath: process.env.LAYERWISE_CHROMIUM, headless: true, args: ['--no-sandbox', '--disable-gpu'] });
const page = await browser.newPage({ viewport: { width: 1600, height: 800 } });
let result;
try {
  await page.route(OF_PERFETTO, (route) => route.abort());
  await page.goto(task.url);
  await page.waitForFunction(() => window.app?.trace?.engine, null, { timeout: 60000 });
  result = await page.evaluate(ask, task.queries);
  await page.getByText(/Layerwise Offload/).first().waitFor({ state: 'attached', timeout: 30000 });
  await page.evaluate(() => app.commands.runCommand('dev.perfetto.ExpandAllGroups')).catch(() => {}); // for who looks
  await page.waitForTimeout(1500);
} catch (error) {
  result = { failure: String(error.stack ?? error) };
}
await page.screenshot({ path: task.screenshot });
await browser.close();
console.log(JSON.stringify(result));
