// Opens the app's page in a headless browser and gives scenarios a few verbs for its graph. Knows nothing about our nodes.
//
// playwright-core is not in this folder's reach: the environment says where set-up has put it.
import { createRequire } from 'node:module';

const { chromium } = createRequire(`${process.env.LAYERWISE_NODE_MODULES}/`)('playwright-core');

const BROWSER_ARGUMENTS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

// What the app itself writes to the console of a page without our pack.
const OF_THE_APP = [
  /legacy queue\/history menu/, /ComfyApp\.open_maskeditor is deprecated/, /graph accessed before initialization/,
  /^Error loading (fuse options|core workflow templates)/, // its template index, which set-up leaves out
  /^\[subgraphNavigation\] subgraph not found/, // its own address bar, after a workflow with a subgraph was left
  /^\[Jobs API\] Error fetching jobs: ZodError/, // the frontend that ComfyUI 0.16.3 names, about that version's job list
  /^Failed to load resource/, // which one is seen by its answer, see below
];
const OF_THE_NEWEST = [/^WARNING: Invalid layout total size: [\d.]+%/]; // its side panels, with or without the pack

// Runs in the page before the app: its LiteGraph names each use of something deprecated, which the app itself does too.
// What our files caused is an error, once for each road to it; the app's own is not said.
function watchDeprecated() {
  Error.stackTraceLimit = 50;
  const told = new Set();
  const ours = (text) => {
    const { stack } = new Error(text);
    if (!stack.includes('/extensions/layerwise-offload/') || told.has(stack)) return;
    told.add(stack);
    console.error(`deprecated, and used by us: ${stack}`);
  };
  let liteGraph;
  Object.defineProperty(window, 'LiteGraph', {
    configurable: true,
    get: () => liteGraph,
    set(made) {
      liteGraph = made;
      made.alwaysRepeatWarnings = true;
      made.onDeprecationWarning = [ours];
    },
  });
}

// Runs inside the page. Verbs throw with a sentence that says what was missing.
function installVerbs() {
  const clone = (value) => JSON.parse(JSON.stringify(value ?? null));
  window.verbs = {
    add(type, position) {
      const node = LiteGraph.createNode(type);
      if (!node) throw new Error(`the app has no node type ${type}`);
      node.pos = position;
      app.graph.add(node);
      return node;
    },
    setWidget(node, name, value) {
      const widget = node.widgets?.find((w) => w.name === name);
      if (!widget) throw new Error(`${node.type} has no widget ${name}; it has ${node.widgets?.map((w) => w.name)}`);
      widget.value = value;
      widget.callback?.(value); // dynamic combos and other dependants listen here
    },
    connect(from, output, to, name) {
      const input = to.inputs.findIndex((i) => i.name === name);
      if (input < 0) throw new Error(`${to.type} has no input ${name}`);
      from.connect(output, to, input);
    },
    // A workflow in API form, built node by node as a user would: create, set widgets, connect.
    build(prompt) {
      app.graph.clear();
      const nodes = {};
      let top = 60;
      Object.entries(prompt).forEach(([id, { class_type, inputs }], index) => {
        if (index % 3 === 0) top = 60;
        nodes[id] = this.add(class_type, [40 + 440 * Math.floor(index / 3), top]);
        top += Math.max(270, nodes[id].size[1]) + 60;
        for (const [name, value] of Object.entries(inputs)) {
          if (!Array.isArray(value)) this.setWidget(nodes[id], name, value);
        }
      });
      for (const [id, { inputs }] of Object.entries(prompt)) {
        for (const [name, value] of Object.entries(inputs)) {
          if (Array.isArray(value)) this.connect(nodes[value[0]], value[1], nodes[id], name);
        }
      }
      return Object.fromEntries(Object.entries(nodes).map(([id, node]) => [id, String(node.id)]));
    },
    async apiForm() {
      return clone((await app.graphToPrompt()).output);
    },
    uiForm() {
      return clone(app.graph.serialize());
    },
    // Ends as success, error, invalid or timeout. queuePrompt's own result differs between versions of the frontend.
    async run(timeoutMs) {
      const ended = new Promise((resolve) => {
        app.api.addEventListener('execution_success', () => resolve({ status: 'success' }), { once: true });
        app.api.addEventListener('execution_error', (e) => resolve({ status: 'error', detail: clone(e.detail) }), { once: true });
        setTimeout(() => resolve({ status: 'timeout' }), timeoutMs);
      });
      await app.queuePrompt(0, 1);
      const invalid = app.lastNodeErrors ?? app.extensionManager.lastNodeErrors;
      if (invalid && Object.keys(invalid).length) return { status: 'invalid', detail: clone(invalid) };
      const result = await ended;
      await new Promise((resolve) => setTimeout(resolve, 300)); // the last node's output message may come after the end
      return { ...result, outputs: clone(app.nodeOutputs) };
    },
    node(id) {
      return app.graph.getNodeById(Number(id));
    },
    settings: (values) => Promise.all(Object.entries(values).map(([id, value]) => app.extensionManager.setting.set(id, value))),
    // What a user has put into the nodes, as far as it is saved: to compare before and after.
    savedWidgets: () => Object.fromEntries(
      clone(app.graph.serialize()).nodes.filter((node) => node.widgets_values?.length).map((node) => [node.id, node.widgets_values]),
    ),
    async saveAndReload() {
      const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
      app.graph.clear();
      await app.loadGraphData(saved);
      return saved;
    },
  };
}

// Makes the app believe that these files are in its model folders.
async function pretend(page, files) {
  await page.route('**/object_info', async (route) => {
    const response = await route.fetch();
    const nodes = await response.json();
    for (const { input } of Object.values(nodes)) {
      for (const [kind, options] of [...Object.values(input?.required ?? {}), ...Object.values(input?.optional ?? {})]) {
        const choices = Array.isArray(kind) ? kind : options?.options;
        if (choices?.some((choice) => String(choice).endsWith('.safetensors'))) choices.push(...files);
      }
    }
    await route.fulfill({ response, json: nodes });
  });
}

const SETTINGS = { 'Comfy.ColorPalette': 'dark', 'Comfy.Locale': 'en' };

const isReady = () => window.app?.vueAppReady && window.app.graph && window.app.extensionManager;

/** Waits until the app is there, and gives the page its verbs: after opening and after a reload. */
export async function settle(page) {
  await page.waitForFunction(isReady, null, { timeout: 60000 });
  await page.keyboard.press('Escape');
  await page.evaluate(installVerbs);
}

export async function openApp(url, { frontend = 'own', vueNodes = false, files, width = 1600, viewport = { width, height: 1000 }, settings = {}, faults = {}, routes = async () => {} }) {
  const executablePath = process.env.LAYERWISE_CHROMIUM;
  const browser = await chromium.launch({ executablePath, headless: true, args: BROWSER_ARGUMENTS });
  const context = await browser.newContext({ viewport, reducedMotion: 'reduce' });
  const page = await context.newPage();
  const seen = { errors: [], external: [] };
  page.on('pageerror', (error) => seen.errors.push(error.message));
  const ofTheApp = frontend === 'newest' ? [...OF_THE_APP, ...OF_THE_NEWEST] : OF_THE_APP;
  page.on('console', (message) => {
    const text = message.text();
    if (['error', 'warning'].includes(message.type()) && !ofTheApp.some((pattern) => pattern.test(text))) seen.errors.push(text);
  });
  page.on('response', (answer) => {
    if (answer.status() >= 400 && /layerwise/.test(answer.url())) seen.errors.push(`${answer.status()} ${answer.url()}`);
  });
  page.on('request', (request) => {
    const address = request.url();
    if (!/^(data|blob):/.test(address) && !address.startsWith(url)) seen.external.push(address);
  });
  // Before the page is opened, for some of them take effect only then; the server keeps them from one scenario to the next.
  await context.request.post(`${url}/settings`, { data: { ...SETTINGS, 'Comfy.VueNodes.Enabled': vueNodes, ...settings } });
  if (files) await pretend(page, files);
  for (const [file, text] of Object.entries(faults)) { // files of ours, as a test wants them to be
    const contentType = file.endsWith('.css') ? 'text/css' : 'text/javascript';
    await page.route(`**/extensions/layerwise-offload/${file}*`, (route) => route.fulfill({ contentType, body: text }));
  }
  await routes(page);
  await page.addInitScript(watchDeprecated);
  await page.goto(url, { waitUntil: 'domcontentloaded' });
  await settle(page);
  return { browser, page, seen };
}

/** Runs in the page: what the graph covers of the screen, in pixels. */
export function graphOnScreen(margin) {
  const { scale, offset } = app.canvas.ds;
  const boxes = app.graph.nodes.map((node) => node.boundingRect);
  const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]));
  const right = Math.max(...boxes.map((box) => box[0] + box[2])), bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
  const { x, y } = app.canvas.canvas.getBoundingClientRect();
  return {
    x: x + (left + offset[0]) * scale - margin,
    y: y + (top + offset[1]) * scale - margin,
    width: (right - left) * scale + 2 * margin,
    height: (bottom - top) * scale + 2 * margin,
  };
}

// A scenario is a function of (page, task); its result and what the page saw are printed as one JSON line.
// `options.routes(page)` may answer requests in the server's place.
export async function scenario(body, options = {}) {
  const task = JSON.parse(process.argv[2]);
  const { browser, page, seen } = await openApp(task.url, { ...task, ...options });
  let result;
  try {
    result = await body(page, task);
  } catch (error) {
    result = { failure: String(error.stack ?? error) };
    await page.screenshot({ path: task.screenshot }).catch(() => {});
  }
  await browser.close();
  console.log(JSON.stringify({ ...result, ...seen }));
}
