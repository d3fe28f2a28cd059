"""Compute times for layers nobody measured: from their bytes and the component's kind. A guess that says it is one.

A dense layer does two floating point operations per parameter and token, so a layer of b bytes of 16-bit weights takes
b x tokens / rate seconds. The kind of component gives the usual number of tokens that meet each weight in one visit.
Only the proportions matter for choosing residents; measured times replace the guess. Of the device it is told whether
that is the processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from .fields import MAX_NS
from .inventory import Inventory, LayerSpec

__all__ = ["ASSUMED_FLOPS", "compute_times", "tokens_for"]

ASSUMED_FLOPS = 100e12  # floating point operations a second: a consumer card of 2023 on 16-bit weights
CPU_FLOPS = 0.4e12  # a desktop's processor on 16-bit weights; on 32-bit ones it has half as many of them a byte
_TOKENS_PER_VISIT = {
    "dit": 4096,  # a 1024 x 1024 picture in 16 x 16 patches
    "text_encoder": 512,
    "image_encoder": 729,  # 384 x 384 in patches of 14
    "vae": 65_536,  # small kernels swept over a large picture: every weight meets very many pixels
    "condition_image_encoder": 65_536,  # a VAE by another name
}
_OTHER_TOKENS = 1024


def tokens_for(component: str) -> int:
    """Tokens that meet each weight in one visit of a component of this name ("text_encoder_2" is a text encoder)."""
    kinds = [kind for kind in _TOKENS_PER_VISIT if kind in component]
    return _TOKENS_PER_VISIT[max(kinds, key=len)] if kinds else _OTHER_TOKENS


def compute_times(inventory: Inventory, on_cpu: bool = False) -> tuple[tuple[int, ...], str | None]:
    """Compute nanoseconds of one visit per layer, and a sentence that says what was guessed (None: nothing was).

    Where some layers were measured, the rest get the measured layers' mean time per byte; else the cost model speaks.
    """
    unknown = [layer for layer in inventory.layers if layer.compute_ns is None]
    if not unknown:
        return tuple(layer.compute_ns or 0 for layer in inventory.layers), None
    known = [layer for layer in inventory.layers if layer.compute_ns is not None and _read_bytes(layer)]
    if known:
        ns_per_byte = sum(layer.compute_ns or 0 for layer in known) / sum(map(_read_bytes, known))
        note = f"compute times of {len(unknown)} layers were not measured: taken in proportion to the measured layers"
    else:
        tokens = tokens_for(inventory.component)
        flops = CPU_FLOPS if on_cpu else ASSUMED_FLOPS
        ns_per_byte = tokens * 1e9 / flops
        note = (
            f"no compute times were measured: assumed from bytes, {tokens} tokens a visit ({inventory.component}) "
            f"and {flops / 1e12:g} TFLOPS on 16-bit weights"
        )
    return _fill(inventory.layers, ns_per_byte), note


def _fill(layers: Sequence[LayerSpec], ns_per_byte: float) -> tuple[int, ...]:
    def guess(layer: LayerSpec) -> int:
        return min(round(_read_bytes(layer) * ns_per_byte), MAX_NS)  # one tiny slow layer must not outlaw the others

    return tuple(guess(layer) if layer.compute_ns is None else layer.compute_ns for layer in layers)


def _read_bytes(layer: LayerSpec) -> int:
    return layer.bytes if layer.touched_bytes is None else min(layer.touched_bytes, layer.bytes)
