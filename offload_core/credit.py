"""Which layers stay: the credit rule over bytes and compute, and the simpler rules it is compared with.

The link is a token bucket. While a layer computes, the link can bring `rate x compute` bytes; that is credit, and a
streamed layer spends its bytes. A layer that comes when the bucket is too low would stall the compute, so it stays
resident. Raising the rate above the link's makes the rule more lenient: bisecting it finds the choice whose residents
just fit, spread where the bucket runs dry instead of heaped at the front. Keeping the first k layers, as most engines
do, leaves the link idle while they compute and the compute idle afterwards.

Knows nothing about ring addresses; the planner lets the simulator judge what comes out of here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["credit_residents", "first_layers", "last_layers", "spread_layers"]

_BISECTIONS = 16


def credit_residents(
    visits: Sequence[int],
    sizes: Sequence[int],
    link_ns: Sequence[int],
    compute_ns: Sequence[int],
    keep: Collection[int],
    ring_bytes: int,
    room_bytes: int,
    reserved: Sequence[int],
) -> frozenset[int]:
    """The layers to keep besides `keep`: no more of the device than `room_bytes`, nor than the credit rule asks for.

    sizes     of the layers, in bytes
    reserved  what each takes of the device

    Credit is counted in link nanoseconds, so the link's own rate is 1. If its residents fit, streaming is free and no
    more is kept than that takes. Otherwise the least lenient rate whose residents fit is found by bisection. The bucket
    holds one ring of look-ahead: what does not fit there cannot have been fetched early.
    """
    candidates = [layer for layer in dict.fromkeys(visits) if layer not in keep and sizes[layer]]
    ns_per_byte = sum(link_ns[layer] for layer in candidates) / max(1, sum(sizes[layer] for layer in candidates))
    bucket = ring_bytes * ns_per_byte

    def at(rate: float) -> frozenset[int]:
        return _walk(visits, link_ns, compute_ns, keep, rate, bucket)

    def fits(chosen: frozenset[int]) -> bool:
        return sum(reserved[layer] for layer in chosen) <= room_bytes

    chosen = at(1.0)
    if fits(chosen):
        return chosen
    low, high = 1.0, 2.0
    while not fits(best := at(high)):
        if high > 1e12:
            return frozenset()  # some layer never earns its bytes, and they do not fit
        low, high = high, high * 4.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        chosen = at(middle)
        if fits(chosen):
            high, best = middle, chosen
        else:
            low = middle
    return best


def _walk(
    visits: Sequence[int],
    link_ns: Sequence[int],
    compute_ns: Sequence[int],
    keep: Collection[int],
    rate: float,
    bucket: float,
) -> frozenset[int]:
    """One choice at one rate. Two rounds: the first fills the bucket, as the pass before would have."""
    credit = 0.0
    resident: set[int] = set()
    for _ in range(2):
        resident = set()
        streamed: set[int] = set()
        for layer in visits:
            need = link_ns[layer]
            if need and layer not in keep and layer not in resident:
                if credit >= need or layer in streamed:
                    credit = max(0.0, credit - need)
                    streamed.add(layer)
                else:
                    resident.add(layer)
            credit = min(bucket, credit + rate * compute_ns[layer])
    return frozenset(resident)


def first_layers(order: Sequence[int], sizes: Sequence[int], room_bytes: int) -> frozenset[int]:
    """The leading layers of `order` that fit: what most engines do."""
    chosen: set[int] = set()
    for layer in order:
        room_bytes -= sizes[layer]
        if room_bytes < 0:
            break
        chosen.add(layer)
    return frozenset(chosen)


def last_layers(order: Sequence[int], sizes: Sequence[int], room_bytes: int) -> frozenset[int]:
    """The trailing layers of `order` that fit."""
    return first_layers(list(reversed(order)), sizes, room_bytes)


def spread_layers(order: Sequence[int], sizes: Sequence[int], room_bytes: int) -> frozenset[int]:
    """As many layers as fit, evenly spaced by count (at the midpoints of equal stretches)."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(sizes[layer] for layer in _spaced(order, middle)) <= room_bytes:
            low = middle
        else:
            high = middle - 1
    return frozenset(_spaced(order, low))


def _spaced(order: Sequence[int], count: int) -> list[int]:
    return [order[(2 * step + 1) * len(order) // (2 * count)] for step in range(count)]
