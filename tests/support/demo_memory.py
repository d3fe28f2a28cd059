"""The demo on the CPU: a model larger than the memory it may take, streamed from its file, in a real ComfyUI.

Run by `python3 dev.py demo --device cpu`. The same workflow runs with the app's loaders and with ours, each in a server
of its own that is warm and has given back what it does not need. It fails if the pictures differ, or if the server
grows by more than the limit with ours, weights, work space and mapped pages included.
"""

from pathlib import Path

from tests.support import memory_use, tiny_models, workflows
from tests.support.app_server import AppServer
from tests.support.demo_parts import (
    DemoFailed,
    collect,
    describe,
    differences,
    read_report,
    run_one,
    show,
    sum_up,
    versions,
    write_json,
)

FAMILY, CLIP = "flux_large", "clip_l"
SIZE, STEPS = 64, 2
MEMORY_MB = 200
SMALLEST_MB = 144
ELSE_MB = 96
"""Of the limit, for all but the diffusion model's weights: VAE and encoder, a ring each, work space, mapped pages."""
CLIP_GB = 0.03


def settings_of(memory_mb: int) -> dict:
    """The widgets of our loader for a limit."""
    budget_gb = round((memory_mb - ELSE_MB) * 2**20 / 1e9, 3)
    return {
        **{"dit_placement": "layerwise", "dit_budget_gb": budget_gb},
        **{"clip_placement": "layerwise", "clip_budget_gb": CLIP_GB, "vae_placement": "layerwise"},
    }


def workflow(name: str, settings: dict) -> dict:
    prompt = workflows.build(FAMILY, loader="app", clip=CLIP, size=SIZE, steps=STEPS)
    return prompt if name == "app" else workflows.all_in_one(prompt, **settings)


def files_bytes() -> int:
    names = (FAMILY, CLIP, workflows.FAMILIES[FAMILY].vae)
    tiny_models.ensure(*names)
    return sum((tiny_models.models_folder() / tiny_models.RECIPES[name].path).stat().st_size for name in names)


class Run:
    """The workflow with one loader, in a warm server of its own, and how much this grew by it."""

    def __init__(self, name: str, prompt: dict, out: Path):
        server = AppServer("cpu", env=memory_use.GIVES_BACK).start()
        try:
            server.run(workflows.build("flux", loader="app", size=SIZE, steps=1)).check()
            server.free()
            if memory_use.can_measure():
                with memory_use.Growth(server.pid) as growth:
                    self.result = run_one(server, name, prompt)
                self.growth: memory_use.Growth | None = growth
            else:
                self.result, self.growth = run_one(server, name, prompt), None
            self.found = collect(server, {name: self.result}, out)[name]
            self.components = [] if name == "app" else read_report(server)
            self.versions = versions(server)
        finally:
            server.stop()


def judge(found: dict, runs: dict[str, Run], summary: dict, limit_bytes: int) -> list[str]:
    """Everything that is wrong; empty if the demo succeeded."""
    wrong = differences(found)
    if not summary["bytes_copied"]:
        wrong.append("no layer was streamed")
    grown = runs["layerwise"].growth
    if grown is not None and grown.peak_bytes > limit_bytes:
        wrong.append(f"the server grew by {mb(grown.peak_bytes)} with ours, over the limit of {mb(limit_bytes)}")
    return wrong


def demo(memory_mb: int, out: Path, json_file: Path | None):
    if memory_mb < SMALLEST_MB:
        raise DemoFailed(f"asked for --memory-mb {memory_mb}; the workflow needs {SMALLEST_MB} at least; give it more")
    limit_bytes = memory_mb * 2**20
    print(f"device: cpu; limit {mb(limit_bytes)} for files of {mb(files_bytes())}; ComfyUI is starting", flush=True)
    runs = {name: Run(name, workflow(name, settings_of(memory_mb)), out) for name in ("app", "layerwise")}
    results, found = {n: run.result for n, run in runs.items()}, {n: run.found for n, run in runs.items()}
    components = runs["layerwise"].components
    summary = sum_up(components, 0)
    show(found, results, components, summary)
    show_memory(runs, limit_bytes)
    wrong = judge(found, runs, summary, limit_bytes)
    same = not differences(found)
    content = describe(runs["app"].versions, "cpu", found, results, components, summary, same)
    grown = {name: run.growth.as_dict() if run.growth else None for name, run in runs.items()}
    write_json(json_file, {**content, "memory": {"limit_bytes": limit_bytes, "growth": grown}})
    if wrong:
        raise DemoFailed("; ".join(wrong))


def show_memory(runs: dict[str, Run], limit_bytes: int):
    print(f"\nthe server's memory at its peak, beyond what it held before; limit {mb(limit_bytes)}")
    for name, run in runs.items():
        if run.growth is None:
            print(f"{name:10s} not measured: needs Linux's /proc")
            continue
        own, pages = mb(run.growth.anonymous_bytes), mb(run.growth.file_bytes)
        print(f"{name:10s} {mb(run.growth.peak_bytes):>8s}   its own up to {own}, pages of mapped files up to {pages}")


def mb(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"
