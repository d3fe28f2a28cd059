"""What a workflow saved as a safetensors file, by name, type, shape and digest of each tensor.

Not the file's own digest: the app writes the prompt into it, and the prompts differ.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open


def take(output: Path, prefix: str) -> dict[str, str]:
    """The newest file below `output` whose name begins with `prefix`; it is deleted."""
    path = max(output.rglob(f"{prefix}*.safetensors"), key=lambda found: found.stat().st_mtime_ns)
    digests = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            tensor = file.get_tensor(name)
            raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            digests[name] = f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw).hexdigest()}"
    path.unlink()
    return digests
