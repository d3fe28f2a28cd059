"""The part `app-files`: writes the model files of one model of the app's flow, full of noise.

    python -m bench.kit.app_files --model flux --folder DIR [--tree COMFYUI] [--device cuda|sim|cpu]

The noise is drawn on the device, tensor by tensor, and written as it comes. A file that is there already stays; where
there is no room for the new ones, those of other models go first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench import full_size
from bench.device import KINDS, Device
from bench.full_size_advised import SAFETENSORS
from bench.kit.app_models import MODELS, FileOf
from bench.kit.rows import open_rows

ROOM_GB = 3.0
"""To be left free beside the files."""


def shapes_of(file: FileOf) -> dict[str, torch.Tensor]:
    """Name to tensor on `meta`, named as public files name them."""
    with torch.device("meta"):
        module = full_size.BUILDERS[file.builder](**dict(file.changes))
    state = getattr(module, "transformer", module).state_dict()
    if not file.builder.startswith("flux"):
        return dict(state)
    return {k.removesuffix(".weight") + ".scale" if k.endswith("_norm.weight") else k: v for k, v in state.items()}


def dtype_of(file: FileOf, tensor: torch.Tensor) -> torch.dtype:
    """What the file has the tensor in."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return getattr(torch, file.matrices if file.matrices and tensor.ndim == 2 else file.dtype)


def header_of(file: FileOf, shapes: dict[str, torch.Tensor]) -> tuple[bytes, int]:
    """The file's first bytes, and how many follow."""
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in shapes.items():
        dtype = dtype_of(file, tensor)
        start, end = end, end + tensor.numel() * dtype.itemsize
        entries[name] = {"dtype": SAFETENSORS[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def noise_of(file: FileOf, shapes: dict[str, torch.Tensor], device: str) -> Iterator[torch.Tensor]:
    """The tensors' bytes on the host, in order: small enough that a deep model stays finite, norms around one."""
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in shapes.items():
        if not tensor.is_floating_point():
            yield torch.zeros(tensor.shape, dtype=tensor.dtype).view(-1).view(torch.uint8)
            continue
        noise = torch.empty(tensor.shape, dtype=torch.float32, device=device)
        noise.normal_(0.0, 0.5 / max(1, tensor[0].numel() if tensor.ndim else 1) ** 0.5, generator=generator)
        if tensor.ndim == 1 and ("norm" in name or name.endswith("scale")):
            noise += 1.0
        yield noise.to(dtype_of(file, tensor)).cpu().contiguous().view(-1).view(torch.uint8)


def write(file: FileOf, folder: Path, device: str) -> int:
    """Write the file if it is not there. Its bytes."""
    shapes = shapes_of(file)
    header, nbytes = header_of(file, shapes)
    target, begun = folder / file.file, folder / f"{file.file}.begun"
    if not target.is_file():
        with begun.open("wb") as out:
            out.write(header)
            for tensor in noise_of(file, shapes, device):
                out.write(memoryview(tensor.numpy()))
        begun.rename(target)
    return nbytes


def make_room(model: str, folder: Path, needed: int) -> list[str]:
    """Remove files of other models while `needed` bytes do not fit. The names of those that went."""
    own, gone = {file.file for file in MODELS[model].files}, []
    for path in sorted(folder.iterdir()):
        if shutil.disk_usage(folder).free > needed + ROOM_GB * 1e9:
            break
        if path.name not in own:
            path.unlink()
            gone.append(path.name)
    return gone


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--device", choices=KINDS, default="cuda")
    arguments = parser.parse_args(words)
    rows = open_rows("app-files")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    full_size.use_app(arguments.tree or full_size.default_tree(), cpu=True)
    drawn_on = "cuda" if Device(arguments.device).kind == "cuda" else "cpu"
    files = MODELS[arguments.model].files
    wanted = [file for file in files if not (arguments.folder / file.file).is_file()]
    needed = sum(header_of(file, shapes_of(file))[1] for file in wanted)
    gone = make_room(arguments.model, arguments.folder, needed)
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:  # copying and writing leave Python to the other
        sizes = list(pool.map(lambda file: write(file, arguments.folder, drawn_on), files))
    bytes_of = {file.file: nbytes for file, nbytes in zip(files, sizes)}
    rows.write("files", time.monotonic() - start, model=arguments.model, bytes=bytes_of, made=len(wanted), removed=gone)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
