"""Under `--cache-none` a finished model goes by itself: the app finds nothing to collect, and no component is left.

The app looks for models that outlive their patchers. If it finds one it says "Potential memory leak" and collects all
of the process's garbage, which takes seconds. Python's own collections are off in these servers: they would hide it.
"""

import pytest

from tests.app.conftest import EXTENSION_PACK, GGUF_PACK, PROBE_PACK
from tests.app.test_gguf import STREAMED, gguf
from tests.app.test_weight_hooks import hooked
from tests.support.workflows import CLIP, MODEL, VAE, all_in_one, build, with_our_loaders

pytestmark = pytest.mark.app

LEAK = "Potential memory leak"
BUDGET_GB = 0.03


@pytest.fixture
def server(app_server_factory, tmp_path):
    """On the simulated accelerator, with nothing cached and no garbage collection but the app's."""
    pack = tmp_path / "no_collection"
    pack.mkdir()
    (pack / "__init__.py").write_text("import gc\n\ngc.disable()\nNODE_CLASS_MAPPINGS = {}\n")
    packs = (PROBE_PACK, EXTENSION_PACK, GGUF_PACK, pack)
    return app_server_factory("sim", extra_packs=packs, extra_args=("--cache-none",))


def all_ours(prompt: dict, **widgets) -> dict:
    return with_our_loaders(prompt, {MODEL: widgets, CLIP: {"placement": "layerwise"}, VAE: {"placement": "layerwise"}})


STREAMED_FLUX = {"placement": "layerwise", "budget_gb": BUDGET_GB}

WORKFLOWS = {
    "streamed": lambda seed: all_ours(build("flux", seed=seed), **STREAMED_FLUX),
    "on the device": lambda seed: all_ours(build("flux", seed=seed)),
    "left to the app": lambda seed: all_ours(build("flux", seed=seed), placement="whole"),
    "only the model is ours": lambda seed: build("flux", "layerwise", seed=seed, **STREAMED_FLUX),
    "with a LoRA": lambda seed: all_ours(build("flux", lora=0.8, seed=seed), **STREAMED_FLUX),
    "with a LoRA, on the device": lambda seed: all_ours(build("flux", lora=0.8, seed=seed)),
    "with Apply": lambda seed: build("flux", "apply", lora=0.8, seed=seed, **STREAMED_FLUX),
    "with a scheduled LoRA": lambda seed: hooked(
        build("flux", "apply", seed=seed, **STREAMED_FLUX), 0.9, scheduled=True
    ),
    "one loader for all": lambda seed: all_in_one(build("flux", seed=seed), dit_budget_gb=BUDGET_GB),
    "quantised": lambda seed: build("flux_fp8_scaled", "layerwise", seed=seed, **STREAMED_FLUX),
    "GGUF": lambda seed: gguf("apply", lora=0.8, seed=seed, **STREAMED),
}


def test_no_finished_model_is_left(server):
    """A model that outlives its prompt is found by the app when the next prompt loads one."""
    left = {}
    for seed, (name, workflow) in enumerate([*WORKFLOWS.items(), *WORKFLOWS.items()][: len(WORKFLOWS) + 2]):
        server.run(workflow(seed)).check()
        if components := server.report()["components"]:
            left[name] = [f"{component['component']} of {component['model']}" for component in components]
    assert not left
    log = server.log()
    assert log.count("Requested to load Flux") > len(WORKFLOWS), "the app has looked for leaks"
    assert LEAK not in log
