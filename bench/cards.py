"""The README's table of cards and models: what `advise` predicts for full-size models, without their files.

    python -m bench.cards [--tree COMFYUI] [--write]

Prints the table; `--write` puts it into README.md between its two markers. Every figure is a prediction of
`offload_core/cli/adviser.py` from the shapes of the app's own classes; none was measured.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.full_size import BUILDERS, default_tree, give_memory, use_app
from bench.full_size_advised import tensor_infos
from offload_core.cli.adviser import GPUS, Advice, Machine, advise
from offload_core.files.model_files import ModelFile

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- made by `python -m bench.cards --write` -->", "<!-- end of what it makes -->"
CARDS = {8: "RTX 4060", 12: "RTX 3060", 16: "RTX 4080", 24: "RTX 4090"}
"""GB of a card, and which of `GPUS` stands for it."""
FOR_WEIGHTS = 0.75
"""Share of the card's memory that the weights get; the rest is for activations, the app and the desktop."""
AS_FAST = 1.005
"""A step that takes at most this many times as long as with everything resident is shown without the ratio."""

LEGEND = f"""\
**Predicted, not measured.** In each cell: GB that stay on the card + GB that are streamed in every step, the seconds
of a step and, where it takes longer than with the whole model on the card, how many times as long. Only what saves
time stays. The weights get {FOR_WEIGHTS:.0%} of the card; a step is one pass for one prompt (CFG makes two). What is
streamed waits in system memory, which has to have the room."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    title    the model, as the table calls it
    builder  its name in `BUILDERS`
    dtype    the type of its weights in the file
    tokens   tokens of one pass over a picture or a film of the size that `made` says
    """

    title: str
    builder: str
    dtype: torch.dtype
    tokens: int
    made: str


_BF16, _FP8 = torch.bfloat16, torch.float8_e4m3fn
_PICTURE = (64 * 64, "1024 × 1024")  # a token for 8 x 8 pixels of the VAE in patches of 2 x 2
_WAN = (21 * 30 * 52, "832 × 480, 81 frames")  # likewise; a latent frame for the first one and for every 4 after it
_LTX = (16 * 16 * 24, "768 × 512, 121 frames")  # a token for 32 x 32 pixels; the first frame, and every 8 after it
ROWS = (
    Row("Flux dev, bf16", "flux_dev", _BF16, *_PICTURE),
    Row("Flux dev, fp8", "flux_dev", _FP8, *_PICTURE),
    Row("Qwen-Image, bf16", "qwen_image", _BF16, *_PICTURE),
    Row("Qwen-Image, fp8", "qwen_image", _FP8, *_PICTURE),
    Row("Wan 2.2 14B, one expert, fp16", "wan22_14b", torch.float16, *_WAN),
    Row("Wan 2.2 14B, one expert, fp8", "wan22_14b", _FP8, *_WAN),
    Row("LTX-Video 13B, bf16", "ltxv_13b", _BF16, *_LTX),
)


def model_of(row: Row) -> ModelFile:
    """What the header of the model's file would say. `use_app` must have been called; takes no memory."""
    with torch.device("meta"):
        module = BUILDERS[row.builder]()
    return ModelFile(row.title, (Path(row.builder),), tuple(tensor_infos(give_memory(module, row.dtype, "meta"))))


def machine(card_gb: int, tokens: int) -> Machine:
    """The card of that size, with what its weights may take."""
    tflops, rate_gb = GPUS[CARDS[card_gb]]
    return Machine(int(card_gb * 1e9 * FOR_WEIGHTS), rate_gb * 1e9, tflops, CARDS[card_gb], tokens=tokens)


def cell(answer: Advice) -> str:
    """GB that stay, GB streamed in a step, seconds of a step and, where it is slower than resident, by how much."""
    if answer.plan is None or answer.layerwise_ns is None:
        return f"needs {answer.smallest_bytes / 1e9:.1f}"
    stays_gb = (answer.plan.resident_bytes + answer.plan.loose_bytes) / 1e9
    times = answer.layerwise_ns / answer.resident_ns
    ratio = f", **{times:.2f} ×**" if times > AS_FAST else ""
    return f"{stays_gb:.1f} + {answer.streamed_bytes / 1e9:.1f}, {answer.layerwise_ns / 1e9:.1f} s{ratio}"


def head(card_gb: int) -> str:
    tflops, rate_gb = GPUS[CARDS[card_gb]]
    return f"{card_gb} GB ({CARDS[card_gb]}: {tflops:g} TFLOPS, {rate_gb:g} GB/s)"


def table() -> str:
    """The table in Markdown, and how to read it, without a line break at its end."""
    rows = [("predicted", "a step of", *map(head, CARDS)), ("---",) * (2 + len(CARDS))]
    for row in ROWS:
        model = model_of(row)
        answers = [answer for card_gb in CARDS for answer in advise([model], machine(card_gb, row.tokens))]
        rows.append((row.title, row.made, *map(cell, answers)))
    return "\n".join((LEGEND, "", *(f"| {' | '.join(cells)} |" for cells in rows)))


def with_table(page: str, text: str) -> str:
    """The page with the text between its markers. Raises ValueError if one of them is missing."""
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:begin]}\n\n{text}\n\n{page[end:]}"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    arguments = parser.parse_args(words)
    use_app(arguments.tree or default_tree())
    text = table()
    print(text)
    if arguments.write:
        README.write_text(with_table(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
