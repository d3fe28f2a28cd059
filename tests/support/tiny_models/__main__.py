"""Makes the small model files: python -m tests.support.tiny_models --app TREE --out FOLDER [--all] [NAME ...]

Without names, the default set. `--blocks` prints, for each file, how large its repeated blocks are: tests of streaming
need several blocks of at least 1 MB per family.
"""

import argparse
import collections
import os
import re
import statistics
import sys
import time
from pathlib import Path

from . import RECIPES

MIB = 2**20


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tiny_models", description="make small random-weight model files")
    parser.add_argument("names", nargs="*", help="which files; default: all that are not made on demand")
    parser.add_argument("--app", type=Path, help="the ComfyUI tree whose classes give names and shapes")
    parser.add_argument("--out", type=Path, help="the models folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="also those made on demand")
    parser.add_argument("--list", action="store_true", help="list the files and stop")
    parser.add_argument("--blocks", action="store_true", help="print block sizes")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in RECIPES]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}")
    if not arguments.list and not (arguments.app and arguments.out):
        parser.error("--app and --out are needed")
    return arguments


def import_app(tree: Path):
    """The app's classes, on the CPU. Its folder goes first and ours goes away: our `nodes` would hide the app's."""
    root = os.path.realpath(os.getcwd())
    sys.path[:] = [str(tree)] + [entry for entry in sys.path if os.path.realpath(entry or ".") != root]
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()


def block_sizes(tensors: dict) -> dict[str, list[int]]:
    """Bytes of every member of every numbered list, by the list's name; innermost lists only within themselves."""
    sizes = collections.defaultdict(collections.Counter)
    for key, tensor in tensors.items():
        match = re.match(r"(.+?)\.(\d+)\.", key)
        if match:
            sizes[match.group(1)][int(match.group(2))] += tensor.nbytes
    return {name: list(counter.values()) for name, counter in sizes.items()}


def print_blocks(tensors: dict):
    for name, sizes in block_sizes(tensors).items():
        large = sum(size >= MIB for size in sizes)
        median = statistics.median(sizes) / MIB
        print(f"    {name}: {len(sizes)} blocks, {large} of 1 MiB and more, median {median:.2f} MiB")


def make(name: str, arguments) -> int:
    from safetensors.torch import save_file

    started = time.perf_counter()
    recipe = RECIPES[name]
    tensors, metadata = recipe.make(arguments.seed)
    target = arguments.out / recipe.path
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    # one metadata entry at most: safetensors writes several in no fixed order, and files must be the same byte for byte
    assert len(metadata) <= 1
    save_file({key: value.contiguous() for key, value in tensors.items()}, unfinished, metadata=metadata or None)
    os.replace(unfinished, target)
    size = target.stat().st_size
    print(
        f"{name:22s} {recipe.kind:5s} {size / 1e6:7.1f} MB {time.perf_counter() - started:5.2f} s  {recipe.path}",
        flush=True,
    )
    if arguments.blocks:
        print_blocks(tensors)
    return size


def main():
    arguments = parse_arguments()
    names = arguments.names or [name for name, r in RECIPES.items() if arguments.all or not r.on_demand]
    if arguments.list:
        for name in names:
            print(f"{name:22s} {RECIPES[name].kind:5s} {RECIPES[name].path:52s} {RECIPES[name].note}")
        return
    import_app(arguments.app)
    total = sum(make(name, arguments) for name in names)
    print(f"{len(names)} files, {total / 1e6:.0f} MB")


main()
