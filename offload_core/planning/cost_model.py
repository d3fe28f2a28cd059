"""Estimated compute times of layers without measured ones, from their bytes and the kind of component.

A dense layer does two floating point operations per parameter and token, so a layer of b bytes of 16-bit weights takes
b x tokens / FLOPS seconds. The kind of component gives the usual number of tokens per visit. Only the proportions
matter for choosing residents; measured times replace the estimate. All it knows of the device is whether it is the CPU.
"""

from __future__ import annotations

from ..fields import MAX_NS
from ..units import count
from .inventory import Inventory, LayerSpec

ASSUMED_FLOPS = 100e12  # floating point operations per second: a consumer card of 2023 on 16-bit weights
CPU_FLOPS = 0.4e12  # a desktop's CPU on 16-bit weights; 32-bit weights have half as many parameters per byte
_TOKENS_PER_VISIT = {
    "dit": 4096,  # a 1024 x 1024 picture in 16 x 16 patches
    "text_encoder": 512,
    "image_encoder": 729,  # 384 x 384 in patches of 14
    "vae": 65_536,  # convolutions: each weight is applied at every pixel
    "condition_image_encoder": 65_536,  # a VAE
}
_OTHER_TOKENS = 1024


def tokens_for(component: str) -> int:
    """Tokens that each weight is applied to in one visit, by the name of the component ("text_encoder_2" is a text
    encoder)."""
    kinds = [kind for kind in _TOKENS_PER_VISIT if kind in component]
    return _TOKENS_PER_VISIT[max(kinds, key=len)] if kinds else _OTHER_TOKENS


def assumed_times(inventory: Inventory) -> int | None:
    """Number of layers whose time `compute_times` assumes, as none was measured. Layers that have to stay on the device
    do not count; None if there are no others."""
    times = [layer.compute_ns for layer in inventory.layers if layer.keep is None]
    return times.count(None) if times else None


def compute_times(inventory: Inventory, on_cpu: bool = False) -> tuple[tuple[int, ...], str | None]:
    """(nanoseconds of one visit of each layer, sentence that says what was estimated or None).

    If some layers were measured, the others get the measured layers' mean time per byte; else the cost model is used.
    """
    unmeasured = sum(layer.compute_ns is None for layer in inventory.layers)
    if not unmeasured:
        return tuple(layer.compute_ns or 0 for layer in inventory.layers), None
    measured = [layer for layer in inventory.layers if layer.compute_ns is not None and _read_bytes(layer)]
    if measured:
        ns_per_byte = sum(layer.compute_ns or 0 for layer in measured) / sum(map(_read_bytes, measured))
        layers = count(unmeasured, "layer", "layers")
        note = f"compute times of {layers} were not measured: taken in proportion to the measured layers"
    else:
        tokens = tokens_for(inventory.component)
        flops = CPU_FLOPS if on_cpu else ASSUMED_FLOPS
        ns_per_byte = tokens * 1e9 / flops
        note = (
            f"no compute times were known: assumed from bytes, {tokens} tokens a visit ({inventory.component}) "
            f"and {flops / 1e12:g} TFLOPS on 16-bit weights"
        )
    # Limited: the mean time per byte of one tiny slow layer must not give large layers a time that is out of range.
    times = (
        min(round(_read_bytes(layer) * ns_per_byte), MAX_NS) if layer.compute_ns is None else layer.compute_ns
        for layer in inventory.layers
    )
    return tuple(times), note


def _read_bytes(layer: LayerSpec) -> int:
    """Bytes of the layer that one visit reads."""
    return layer.bytes if layer.touched_bytes is None else min(layer.touched_bytes, layer.bytes)
