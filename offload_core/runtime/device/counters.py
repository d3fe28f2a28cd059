"""Counts and times of what happened. Incremented on the hot path, read by reports and tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class RunCounters:
    """Totals since the component was attached."""

    passes: int = 0  # completed walks over the layers
    visits: int = 0  # entries into a layer, residents included
    copies: int = 0  # copies issued, the first ones of residents included
    bytes_copied: int = 0  # to the device
    early_copies: int = 0  # of `copies`: issued while the component before was running its last pass
    prefetch_hits: int = 0  # visits of streamed layers whose copy had been issued before
    demand_loads: int = 0  # visits of streamed layers whose copy was issued on entry: correct, slower
    resident_visits: int = 0  # visits of layers that stay on the device
    unplaced_visits: int = 0  # visits in a temporary buffer, for which the ring had no room
    order_misses: int = 0  # visits that were not the expected ones
    aborted_passes: int = 0  # passes that ended in an exception or interrupt
    retried_visits: int = 0  # visits repeated, with more room, after the device had run out of memory
    revised_layers: int = 0  # arrivals of layers that were patched on the device (a LoRA)
    copied_back: int = 0  # bytes of patched layers that were copied to the host, each once
    timed_visits: int = 0  # visits whose times were measured
    stall_ns: int = 0  # in these, time for which compute waited for copies
    compute_ns: int = 0  # in these, time of the layers without stalls
    timed_copies: int = 0  # copies whose times were measured
    timed_copy_bytes: int = 0  # bytes of those from the host
    copy_ns: int = 0  # time of those from the host
    timed_peer_bytes: int = 0  # bytes of those from another device
    peer_copy_ns: int = 0  # time of those from another device

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
