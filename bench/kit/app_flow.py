"""The parts `app-...`: one way of running a model as ComfyUI's nodes would, in one process.

    python -m bench.kit.app_flow --way ours|ours-whole|dynamic|legacy|full --model flux --folder DIR [--tree COMFYUI]
                                 [--device cuda|sim|cpu] [--pixels 1024,1536] [--steps 4] [--lora]

ours        the pack's own loaders, nothing asked for: the policy decides by what is free
ours-whole  the same, with the encoders placed whole
dynamic     the app's default: Dynamic VRAM, by comfy-aimdo (on the simulated device by the tests' stand-in)
legacy      the app with --disable-dynamic-vram: its partial load
full        legacy on a card that has room for all: the step that is compute alone, and the latents of reference

Per way: loading to the first step; new prompts; the same prompt again; a LoRA in several strengths; steady steps at
each size. Latents are hashed. `r` is the compute of a step over the time that copying the diffusion model takes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.kit.app_models import MODELS
from bench.kit.dynamic_library import NoDynamicVram, start_library
from bench.kit.rows import Rows, open_rows

WAYS = ("ours", "ours-whole", "dynamic", "legacy", "full")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--model", choices=tuple(MODELS), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where app_files has written")
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--device", choices=("cuda", "sim", "cpu"), default="cuda")
    parser.add_argument("--pixels", default="1024", help="comma-separated; prompts and LoRAs at the first")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--out", type=Path, help="append rows to this file")
    arguments = parser.parse_args(words)
    arguments.pixels = [int(word) for word in arguments.pixels.split(",")]
    rows = open_rows(f"app-{arguments.way}", arguments.out)
    try:
        library = start_library(arguments.device == "sim") if arguments.way == "dynamic" else None
        return run(arguments, rows, library)
    except NoDynamicVram as reason:
        rows.write("not run", reason=str(reason))
        return 1


def run(arguments: argparse.Namespace, rows: Rows, library: Any) -> int:
    """With the library started, or none: torch may be imported now."""
    import torch

    from bench.full_size import default_tree
    from bench.kit.app_ways import Flow

    arguments.tree = arguments.tree or default_tree()
    with torch.inference_mode():
        Flow(arguments, rows, library).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
