"""`docs/families.md`: what was found in every family, as a page for users."""

from __future__ import annotations

from collections.abc import Iterable

from tests.support.devkit import paths

from .entry import KINDS
from .full_size import Figures
from .rules import LOW_SHARE, NO_LAYERS, USED_OUTSIDE
from .table import FAMILIES

PAGE = paths.ROOT / "docs" / "families.md"
_TITLES = {
    "diffusion": "Diffusion models, and what is loaded in their place",
    "encoder": "Text encoders",
    "vae": "VAEs",
    "other": "Vision and sound encoders, control networks, patches of models",
}
_HEAD = """\
| family | GB | layers | largest layer GB | usual GB | least GB | remark |
|---|---|---|---|---|---|---|"""
_TEXT = """\
# Families

The models that ComfyUI {version} knows, {count} of them, and what it takes to stream each. Nothing is declared per
model: the layers are found.

*GB* is what the weights take in 16 bits. *usual GB* is what a model asks ComfyUI for on the device when you set no
budget, *least GB* the smallest budget that works. Both are for weights alone: what a picture or a film needs while it
is computed comes on top, as it does without us. The least budget is slower than the usual one, and both give the same
bits. A gigabyte is 10^9 bytes.

This page is made by `python -m tests.support.families --write`. It builds each model in its published size without its
memory, in bfloat16 unless ComfyUI runs it in another type, and asks the pack what it finds; device memory is counted
in pieces of 2 MiB, as torch takes it. `tests/runtime/test_families.py` checks that the page says what is found. With
`--long` it also runs a small form of every family that can have one on the simulated accelerator, whole and streamed,
and compares the bits. There are no trained weights and no GPU behind these figures.
"""


def page(found: Iterable[Figures], version: str) -> str:
    """The whole page, for figures of ComfyUI `version`."""
    rows = list(found)
    parts = [_TEXT.format(version=version, count=len(rows))]
    for kind in KINDS:
        lines = "\n".join(_row(figures) for figures in rows if figures.kind == kind)
        parts.append(f"## {_TITLES[kind]}\n\n{_HEAD}\n{lines}\n")
    return "\n".join(parts)


def _row(found: Figures) -> str:
    sizes = (found.largest_bytes, found.usual_bytes, found.least_bytes)
    cells = (found.name, _gigabytes(found.total_bytes), str(found.layers), *map(_gigabytes, sizes), _remark(found))
    return f"| {' | '.join(cells)} |"


def _gigabytes(nbytes: int) -> str:
    """With two digits after the point, three where there is less than one."""
    return f"{nbytes / 1e9:.2f}" if nbytes >= 1e9 else f"{nbytes / 1e9:.3f}"


def _remark(found: Figures) -> str:
    said = []
    if found.table_bytes:
        said.append(f"{_gigabytes(found.table_bytes)} GB of tables stay on the host")
    said += [exceptions[found.name] for exceptions in (NO_LAYERS, LOW_SHARE, USED_OUTSIDE) if found.name in exceptions]
    if FAMILIES[found.name].no_tiny:
        said.append(f"no small form: {FAMILIES[found.name].no_tiny}")
    return "; ".join(said)
