"""Plans made without the planner, for tests and benches of the engine alone."""

from __future__ import annotations

from collections.abc import Sequence

from offload_core.planning.plan import HostTier, Plan, PlannedLayer, Prediction
from offload_core.runtime import OffloadController


def hand_plan(
    controller: OffloadController,
    ring_bytes: int,
    residents: Sequence[int] = (),
    offsets: Sequence[int] | None = None,
    tiers: HostTier | None = None,
) -> Plan:
    """A plan without a planner: given offsets, or one layer after the other, cyclically. In the tier `peer`, streamed
    layers lie on another device; residents never do."""
    layers, end = [], 0
    tier: HostTier = tiers or getattr(controller.queue.port, "tier", "pinned")
    for index, layer in enumerate(controller.inventory.layers):
        if index in residents:
            layers.append(PlannedLayer(layer.name, layer.bytes, "resident", None, "mapped" if tier == "peer" else tier))
            continue
        if offsets is not None:
            offset = offsets[index]
        else:
            offset = end if end + layer.bytes <= ring_bytes else 0
            end = -(-(offset + layer.bytes) // 256) * 256
        assert offset + layer.bytes <= ring_bytes
        layers.append(PlannedLayer(layer.name, layer.bytes, "streamed", offset, tier))
    inventory = controller.inventory
    resident_bytes = sum(inventory.reserved(layer.bytes) for layer in layers if layer.placement == "resident")
    if len(residents) == len(layers):
        ring_bytes = 0
    return Plan(
        "toy", "cpu", tuple(layers), tuple(range(len(layers))), ring_bytes, resident_bytes,
        inventory.reserved(inventory.loose_bytes), Prediction(0, 0, 0, 0, 0), segment_bytes=inventory.segment_bytes,
        peer_device="peer:1" if tier == "peer" else None,
    )  # fmt: skip
