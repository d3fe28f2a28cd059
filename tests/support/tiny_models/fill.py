"""Turns the shapes of a network into seeded random weights. Knows nothing about architectures beyond naming habits.

Networks are built from the app's own classes on the `meta` device, so names and shapes always agree with that version
of the app. Weights are noise, scaled so that outputs stay finite: matrices by fan-in, gains near one, small biases.
The same seed gives the same bytes.
"""

import math

import torch

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn


def on_meta_kwargs() -> dict:
    """What the app's diffusion model classes take to be built without memory."""
    import comfy.ops

    return {"dtype": FP32, "device": "meta", "operations": comfy.ops.disable_weight_init}


def build_on_meta(cls, **kwargs):
    with torch.device("meta"):
        return cls(**kwargs)


def shapes_of(module, prefix: str = "") -> dict:
    return {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}


def fill(shapes: dict, dtype, seed: int) -> dict:
    """Random tensors for {key: shape}; deterministic in the keys, their shapes and the seed."""
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for key in sorted(shapes):
        tensor = torch.empty(shapes[key], dtype=FP32)
        constant, mean, deviation = _distribution(key.lower(), tuple(shapes[key]))
        if constant is not None:
            tensor.fill_(constant)
        else:
            tensor.normal_(mean, deviation, generator=generator)
        filled[key] = tensor.to(dtype)
    return filled


def _distribution(key: str, shape: tuple) -> tuple[float | None, float, float]:
    """(constant, mean, deviation); the constant wins."""
    if key.endswith(("running_var", "std-of-means")):
        return 1.0, 0.0, 0.0
    if key.endswith(("running_mean", "mean-of-means", "num_batches_tracked")):
        return 0.0, 0.0, 0.0
    if key.endswith((".bias", "_bias")) or not shape:
        return None, 0.0, 0.01
    if len(shape) == 1 or key.endswith("gamma"):  # norm gains
        return None, 1.0, 0.02
    if "embed" in key and any(word in key for word in ("token", "position", "shared")):
        return None, 0.0, 0.05
    if key.endswith(("modulation", "scale_shift_table")):
        return None, 0.0, 0.02
    return None, 0.0, 1.0 / math.sqrt(max(1, math.prod(shape[1:])))
