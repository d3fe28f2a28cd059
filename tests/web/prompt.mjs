// The part of a graph that the panel asks about, against the prompt that the app itself makes of the same graph.
import { scenario } from './page.mjs';

// Run in the page: graphs in which the app takes something out, or puts a value in, when it makes its prompt.
function installGraphs([model]) {
  const input = (node, name) => node.inputs.findIndex((one) => one.name === name);
  const start = () => {
    app.graph.clear();
    const unet = verbs.add('UNETLoader', [0, 0]);
    verbs.setWidget(unet, 'unet_name', model);
    const apply = verbs.add('LayerwiseOffloadApply', [900, 0]);
    apply.connect(0, verbs.add('PreviewAny', [1300, 0]), 0);
    return { unet, apply };
  };
  const chain = (...nodes) => nodes.slice(1).forEach((node, index) => nodes[index].connect(0, node, Math.max(0, input(node, 'model'))));
  const set = (node, value) => {
    const [widget] = node.widgets;
    widget.value = value;
    widget.callback?.(value);
  };
  const loaderInSubgraph = () => {
    app.graph.clear();
    const loader = verbs.add('LayerwiseOffloadDiffusionModelLoader', [0, 0]);
    verbs.setWidget(loader, 'model_name', model);
    loader.connect(0, verbs.add('PreviewAny', [900, 0]), 0);
    const { node } = app.graph.convertToSubgraph(new Set([loader]));
    return { outside: node, inside: node.subgraph.nodes.find((one) => one.comfyClass === loader.comfyClass) };
  };
  window.graphs = {
    reroute() {
      const { unet, apply } = start();
      chain(unet, verbs.add('Reroute', [300, 0]), verbs.add('Reroute', [600, 0]), apply);
    },
    'a bypassed LoRA'() {
      const { unet, apply } = start();
      const lora = verbs.add('LoraLoaderModelOnly', [300, 0]);
      chain(unet, lora, apply);
      lora.mode = 4;
    },
    'a bypassed Apply before another'() {
      const { unet, apply } = start();
      const first = verbs.add('LayerwiseOffloadApply', [300, 0]);
      chain(unet, first, apply);
      first.mode = 4;
    },
    'a muted loader'() {
      const { unet, apply } = start();
      chain(unet, apply);
      unet.mode = 2;
    },
    'primitives on widgets'() {
      const { unet, apply } = start();
      chain(unet, apply);
      for (const [name, value] of [['placement', 'layerwise'], ['budget_gb', 0.05]]) {
        const primitive = verbs.add('PrimitiveNode', [300, 300]);
        primitive.connect(0, apply, input(apply, name));
        set(primitive, value);
      }
    },
    'Apply in a subgraph'() {
      const { unet, apply } = start();
      chain(unet, apply);
      app.graph.convertToSubgraph(new Set([apply]));
    },
    'the loader in a subgraph'() {
      const { unet, apply } = start();
      chain(unet, apply);
      app.graph.convertToSubgraph(new Set([unet]));
    },
    'a widget of the subgraph'() {
      const { outside, inside } = loaderInSubgraph();
      outside.subgraph.addInput('placement', 'COMBO').connect(inside.inputs[input(inside, 'placement')], inside);
      verbs.setWidget(outside, 'placement', 'whole');
    },
    'a primitive outside the subgraph'() {
      const { outside, inside } = loaderInSubgraph();
      outside.subgraph.addInput('budget_gb', 'FLOAT').connect(inside.inputs[input(inside, 'budget_gb')], inside);
      const primitive = verbs.add('PrimitiveNode', [300, 300]);
      primitive.connect(0, outside, input(outside, 'budget_gb'));
      set(primitive, 0.07);
    },
    'a constant'() {
      const { unet, apply } = start();
      chain(unet, apply);
      const constant = verbs.add('PrimitiveFloat', [300, 300]);
      constant.connect(0, apply, input(apply, 'budget_gb'));
      set(constant, 0.1); // the frontend rounds it to a tenth
    },
  };
}

await scenario(async (page, task) => {
  await page.evaluate(installGraphs, [task.model]);
  const seen = await page.evaluate(async () => {
    const { promptOf } = await import('/extensions/layerwise-offload/prompt.js');
    const { activeNodes } = await import('/extensions/layerwise-offload/app_contact.js');
    const found = {};
    for (const [name, make] of Object.entries(window.graphs)) {
      make();
      found[name] = { asked: promptOf(activeNodes()), apps: await verbs.apiForm() };
    }
    return found;
  });
  return { seen };
});
