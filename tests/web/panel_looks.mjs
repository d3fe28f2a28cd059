// The panel over a made-up large model in the middle of a run, in themes, renderers and widths; a picture of each view.
// What the server would answer comes from fixture.mjs, so that every look is there on any machine.
import * as fixture from './fixture.mjs';
import { graphOnScreen, scenario } from './page.mjs';

const PANEL = 'layerwise-offload';
const NODE_TOP = 0.62; // of a node, what its picture for the README leaves out

let reported = fixture.report();

const routes = async (page) => {
  await page.route('**/layerwise_offload/report', (route) => route.fulfill({ json: reported }));
  await page.route('**/layerwise_offload/subscribe', (route) => route.fulfill({ json: {} }));
  await page.route('**/layerwise_offload/events', (route) => route.fulfill({ json: { schema: 1, events: [] } }));
  await page.route('**/layerwise_offload/expect', (route) => route.fulfill({ json: fixture.ahead() }));
};

// Runs in the page: what does not fit into the panel, and what has no name for a screen reader.
function faults() {
  const root = document.querySelector('.lwo-panel');
  const found = [];
  if (root.scrollWidth > root.clientWidth) found.push(`the panel is ${root.scrollWidth} wide in ${root.clientWidth}`);
  for (let at = root.parentElement; at; at = at.parentElement) {
    if (/auto|scroll/.test(getComputedStyle(at).overflowY) && at.scrollHeight > at.clientHeight) found.push('the app scrolls in our place');
  }
  for (const one of root.querySelectorAll('.lwo-number, .lwo-tab, .lwo-button, .lwo-bar-title, .lwo-source, th')) {
    if (one.offsetParent && one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline') found.push(`cut: ${one.textContent}`);
  }
  for (const one of root.querySelectorAll('button, select, input, [role=img], [role=tabpanel], [role=group]')) {
    const named = one.textContent.trim() || one.getAttribute('aria-label') || one.getAttribute('aria-labelledby');
    if (one.offsetParent && !named) found.push(`no name: ${one.outerHTML.slice(0, 80)}`);
  }
  return found;
}

// Runs in the page: contrast of texts with what is behind them, by the formula of WCAG 2.
function paleTexts() {
  const number = (text) => (text.match(/[\d.]+/g) ?? []).map((one, index) => Number(one) * (text.startsWith('color(') && index < 3 ? 255 : 1));
  const light = ([red, green, blue]) => {
    const [r, g, b] = [red, green, blue].map((one) => (one / 255 <= 0.03928 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = number(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll('.lwo-panel *, .lwo-node *')) {
    const text = [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!text || !one.offsetParent || one.disabled || one.closest(':disabled')) continue;
    const [a, b] = [light(number(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(1)}: ${one.className} ${one.textContent.slice(0, 30)}`);
  }
  return found;
}

await scenario(async (page, task) => {
  await page.evaluate(async () => {
    app.graph.clear();
    verbs.add('LayerwiseOffloadLoader', [60, 60]).setSize([420, 640]);
    await verbs.saveAndReload();
  });
  const send = (kind, detail) => page.evaluate(([name, content]) => app.api.dispatchEvent(new CustomEvent(`layerwise_offload.${name}`, { detail: content })), [kind, detail]);
  const pathOf = (name) => task.screenshot.replace('.png', `-${name}.png`);
  const picture = (name) => page.screenshot({ path: pathOf(name) });
  const onNode = await page.locator('.lwo-node').innerText();
  await page.evaluate(() => app.extensionManager.command.execute('Comfy.Canvas.FitView'));
  for (const [component, placement, source, budget_bytes, warnings, to_do] of [ // the budget of the same source
    ['dit', 'layerwise', 'policy', 6e9, [], []],
    ['text_encoder', 'layerwise', 'graph', 1.4e9, ['less than planned: using what there is'], ['too large; set less']],
    ['vae', 'whole', 'settings', null, [], ['copies are slower; close other programs']],
  ]) {
    const device_bytes = budget_bytes && budget_bytes - 0.07e9;
    await send('resolved', { schema: 1, node: '1', id: null, component, placement, source, reason: 'a reason', budget_bytes, budget_source: budget_bytes && source, device_bytes, warnings: [...warnings, ...to_do], to_do });
  }
  const shown = page.getByRole('alert').filter({ hasText: 'Layerwise Offload' });
  await shown.first().waitFor();
  await page.waitForTimeout(300);
  const wide = (all) => all.filter((one) => one.offsetWidth > 99).map((one) => one.innerText); // without the copy that is for screen readers
  const toasts = await shown.evaluateAll(wide);
  const resolved = (await page.locator('.lwo-node-line').allInnerTexts()).map((one) => one.replace(/\s*\n\s*/g, ' '));
  await picture('node');
  const cut = await page.evaluate(graphOnScreen, 12);
  const top = cut.height * NODE_TOP;
  await page.screenshot({ path: pathOf('node-cut'), clip: { ...cut, y: cut.y + top, height: cut.height - top } });
  await page.evaluate((id) => app.extensionManager.bottomPanel.toggleBottomPanelTab(id), PANEL);
  await page.waitForSelector('.lwo-map-row');
  await picture('after');
  await send('live', fixture.live());
  const found = [];
  let reasons, quiet;
  for (const view of ['overview', 'explain', 'options']) {
    await page.click(`#lwo-tab-${view}`);
    await page.waitForTimeout(100);
    found.push(...(await page.evaluate(faults)), ...(await page.evaluate(paleTexts)));
    await picture(view);
    if (view === 'explain') {
      reasons = await page.locator('.lwo-reason, .lwo-card .lwo-warning, .lwo-bystander .lwo-quiet').allInnerTexts();
      quiet = await page.locator('.lwo-card:not(.lwo-bystander) > .lwo-quiet').allInnerTexts();
    }
    if (view !== 'overview') continue;
    await send('live', { ...fixture.live(), devices: fixture.live().devices.slice(0, 1) }); // all views in one picture: of one card
    await page.locator('.lwo-memory', { hasText: 'cuda:1' }).waitFor({ state: 'detached' });
    await page.locator('.lwo-panel').screenshot({ path: pathOf('panel-cut') });
    await send('live', fixture.live());
  }
  await page.focus('#lwo-tab-options');
  await page.keyboard.press('Home');
  const keyboard = { tab: await page.evaluate(() => document.activeElement.id), view: await page.isVisible('#lwo-view-overview') };
  const topOfLastRow = () => page.evaluate(() => { // from the map's head: to focus a cell may scroll
    const topOf = (one) => one.getBoundingClientRect().top;
    return topOf([...document.querySelectorAll('.lwo-strip')].at(-1)) - topOf(document.querySelector('.lwo-readout').parentElement);
  });
  const before = await topOfLastRow();
  await page.focus('.lwo-strip .lwo-cell');
  await page.keyboard.press('ArrowRight');
  keyboard.movedPx = (await topOfLastRow()) - before;
  keyboard.readout = await page.locator('.lwo-readout').innerText();
  keyboard.outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  const states = await page.evaluate(() => [...document.querySelectorAll('.lwo-strip')[0].children].map((one) => one.className.split('lwo-is-')[1]));
  const drawn = await page.evaluate(() => {
    const canvas = document.querySelector('.lwo-canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) colours.add(`${data[at]},${data[at + 1]},${data[at + 2]}`);
    return [...colours];
  });
  await page.click('.lwo-map-row:nth-child(2) .lwo-pick');
  const numbers = page.locator('.lwo-numbers');
  await numbers.filter({ hasText: 'text_encoder' }).waitFor(); // the panel draws in the next frame
  const focusedNumbers = await numbers.innerText();
  reported = fixture.reportOfWorkflowBudget();
  await send('live', { ...fixture.live(), events: [['plan', 'dit-1', null, 0, 0, 0]] });
  await page.waitForSelector('.lwo-share-1');
  found.push(...(await page.evaluate(faults)), ...(await page.evaluate(paleTexts)));
  await picture('workflow-budget');
  const shades = await page.evaluate(() => [0, 1, 2, 3].map((index) => {
    const segment = document.createElement('span');
    segment.className = `lwo-segment lwo-resident lwo-share-${index}`;
    document.querySelector('.lwo-track').append(segment);
    const { backgroundColor, boxShadow } = getComputedStyle(segment);
    segment.remove();
    return [backgroundColor, boxShadow];
  }));
  const shares = await page.locator('.lwo-memory > div:nth-child(2)').innerText();
  return { shares, shades, onNode, resolved, toasts, found, reasons, quiet, keyboard, states, drawn, focusedNumbers };
}, { routes });
