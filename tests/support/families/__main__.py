"""The commands of the family walk; see the package."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from bench import full_size as bench_full_size

from .entry import Family
from .table import chosen


def _use_app(tree: Path, on_accelerator: bool) -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    if on_accelerator:
        from tests.support import simdev

        from .tiny import DEVICE_MB

        simdev.load().configure(mb=DEVICE_MB)
    words, sys.argv = sys.argv, sys.argv[:1]  # the app reads them when it is imported
    bench_full_size.use_app(tree, cpu=not on_accelerator)
    sys.argv = words
    logging.disable(logging.WARNING)


def _row(family: Family, arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.what == "full":
        from .full_size import figures

        return figures(family).as_dict()
    from .tiny import walked

    full_bytes = arguments.full_bytes.get(family.name)
    return walked(family, full_bytes, arguments.wrong_byte, arguments.link_rate).as_dict()


def _walk(arguments: argparse.Namespace) -> int:
    """A JSON object a line: what was found, or the error; 1 if there was one."""
    failed = 0
    for family in chosen(arguments.names):
        if arguments.what == "tiny" and family.no_tiny:
            continue
        start = time.perf_counter()
        try:
            row = _row(family, arguments)
        except Exception as error:
            failed = 1
            where = traceback.format_exc().splitlines()[-12:]
            row = {"name": family.name, "error": f"{type(error).__name__}: {error}"[:400], "where": where}
        print(json.dumps({**row, "seconds": round(time.perf_counter() - start, 2)}), flush=True)
    return failed


def _write() -> int:
    import comfyui_version

    from .full_size import figures
    from .page import PAGE, page

    found = [figures(family) for family in chosen([])]
    PAGE.write_text(page(found, comfyui_version.__version__), encoding="utf-8")
    print(f"{PAGE}: {len(found)} families")
    return 0


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.families", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("full", "tiny", "list", "classes"), default="list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of `list`; all if none is given")
    parser.add_argument("--write", action="store_true", help="write docs/families.md anew")
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--full-bytes", type=json.loads, default={}, help="of `tiny`: name to bytes in full size, JSON")
    parser.add_argument("--wrong-byte", action="store_true", help="of `tiny`: streams other bytes than the model has")
    parser.add_argument("--link-rate", type=int, default=0, help="of `tiny`: bytes per second of copies (default: all)")
    arguments = parser.parse_args(words)
    if arguments.what == "list" and not arguments.write:
        for family in chosen(arguments.names):
            print(f"{family.kind:10s} {family.name}")
        return 0
    _use_app(arguments.tree or bench_full_size.default_tree(), on_accelerator=arguments.what == "tiny")
    if arguments.write:
        return _write()
    if arguments.what == "classes":
        import comfy.supported_models

        print(json.dumps([model.__name__ for model in comfy.supported_models.models]))
        return 0
    return _walk(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
