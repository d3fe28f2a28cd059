"""Counts and times of what happened. Incremented on the hot path, read by reports and tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class RunCounters:
    """Totals since the component was attached.

    passes           completed walks over the layers
    visits           entries into a layer, residents included
    copies           copies issued, residents' first ones included
    bytes_copied     host to device, in bytes
    prefetch_hits    visits of streamed layers whose copy had been issued before
    demand_loads     visits of streamed layers whose copy had to be issued on entry: correct, slower
    resident_visits  visits of layers that stay on the device
    unplaced_visits  visits for which the ring had no room; the layer got memory of its own for the visit
    order_misses     visits that came in another order than the recorded one
    aborted_passes   passes that ended in an exception or interrupt
    retried_visits   visits tried a second time, with more room, after the device had run out of memory
    revised_layers   arrivals of layers whose weights were changed on the device (a LoRA applied)
    copied_back      bytes of changed layers that were copied to the host, each once
    timed_visits     visits whose times were measured
    stall_ns         how long compute waited for copies in these visits
    compute_ns       how long the layers took in these visits, without stalls
    timed_copies     copies whose times were measured
    timed_copy_bytes their bytes
    copy_ns          how long these took
    """

    passes: int = 0
    visits: int = 0
    copies: int = 0
    bytes_copied: int = 0
    prefetch_hits: int = 0
    demand_loads: int = 0
    resident_visits: int = 0
    unplaced_visits: int = 0
    order_misses: int = 0
    aborted_passes: int = 0
    retried_visits: int = 0
    revised_layers: int = 0
    copied_back: int = 0
    timed_visits: int = 0
    stall_ns: int = 0
    compute_ns: int = 0
    timed_copies: int = 0
    timed_copy_bytes: int = 0
    copy_ns: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
