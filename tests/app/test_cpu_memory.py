"""On the CPU a budget is one of RAM: how far the real app's process grows, by the kernel's count."""

import pytest

from tests.support import memory_use, pixels
from tests.support.workflows import CLIP, POSITIVE, build, node

BUDGET_BYTES = 50_000_000
MODEL_BYTES = 162_000_000
"""flux_tiny in the type that the app computes in here."""
ELSE_BYTES = 40_000_000
"""Work space, the VAE, a page of each mapped tensor."""

needs_proc = pytest.mark.skipif(not memory_use.can_measure(), reason="measured by Linux's /proc")


def grown_by(server, prompt):
    """The prompt's result, and what the server grew by, the text encoder left out: it has done its work before."""
    server.run({CLIP: prompt[CLIP], POSITIVE: prompt[POSITIVE], "90": node("PreviewAny", source=[POSITIVE, 0])}).check()
    with memory_use.Growth(server.pid) as growth:
        result = server.run(prompt).check()
    return result, growth


def ours(**settings):
    return build("flux", loader="layerwise", placement="layerwise", budget_gb=BUDGET_BYTES / 1e9, **settings)


@needs_proc
@pytest.mark.parametrize("lora", [None, 0.8], ids=["plain", "with a LoRA"])
def test_a_streamed_model_never_comes_into_memory_as_a_whole(cpu, lora):
    reference, whole = grown_by(cpu, build("flux", loader="app", lora=lora))
    assert whole.anonymous_bytes > MODEL_BYTES, "the measure sees a model that is loaded"
    cpu.free()
    result, growth = grown_by(cpu, ours(lora=lora))
    assert not pixels.difference(cpu.images(reference), cpu.images(result))
    assert growth.peak_bytes < BUDGET_BYTES + ELSE_BYTES, growth.as_dict()


def test_apply_on_the_cpu_leaves_the_model_to_the_app_and_says_so(cpu):
    """What the app's loader has put into memory is there: nothing would be saved by reading the file again."""
    reference = cpu.run(build("flux", loader="app", lora=0.8)).check()
    cpu.free()
    before = len(cpu.log())
    result = cpu.run(build("flux", loader="apply", placement="layerwise", budget_gb=0.05, lora=0.8)).check()
    assert not pixels.difference(cpu.images(reference), cpu.images(result))
    assert "with its weights in memory already" in cpu.log()[before:]
