"""The planner's input. Plain data, checked on construction; knows nothing about how plans are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import PlanError
from ..fields import as_bytes, as_int, as_name, as_rate
from .inventory import Inventory
from .plan import HostTier

ALIGNMENT_BYTES = 512
"""Offsets in a ring are multiples of this."""

_ASSUMED_LINK = "assumed: PCIe 4.0 x16"
FILE_BYTES_PER_S = 2e9
FILE_SOURCE = "assumed: a file on a solid state disk"
"""The default link in place, where streamed layers are read from their file."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A request for a plan.

    budget_bytes      device bytes that the component may use in all; None: no budget
    ring_bytes        the ring that the user asked for, used unchanged; None: the planner chooses
    h2d_bytes_per_s   link rate from pinned host memory; in place the default is a disk's rate
    link_source       where `h2d_bytes_per_s` comes from, for display
    passes            passes in one use of the component (sampler steps x model calls; 1 for an encoder)
    placement         "layerwise": layers that are not resident are streamed; "resident": all layers are resident, and a
                      budget below that is an error
    alignment         offsets in the ring are multiples of this many bytes
    keep_residents    whether layers may be resident beside the ring; None: if a use visits layers more than once
    hold_spare        whether budget that saves no time is used for residents too, so that less is copied
    pin_budget_bytes  page-locked host bytes that the component may use; None: enough for every streamed layer
    copies_budget_bytes  host bytes for copies of layers that lie in a file; None: enough for every streamed layer
    host_tier         the host tier that the user asked for; None: as the budgets allow
    host_source       where the host budgets come from, for display
    in_place          the device shares memory with the host: residents are used where they are
    peer_device       another device whose memory may have copies of streamed layers; None: there is none
    peer_budget_bytes  bytes of that memory which these copies may take, rounded up to segments
    peer_bytes_per_s  measured rate of copies from there; None: not measured, taken as `h2d_bytes_per_s`
    peer_source       where that rate comes from, if it is known

    Raises PlanError naming the field, its value and what is allowed.
    """

    inventory: Inventory
    device: str
    budget_bytes: int | None
    ring_bytes: int | None = None
    h2d_bytes_per_s: float = 25e9
    link_source: str = _ASSUMED_LINK
    passes: int = 1
    placement: Literal["layerwise", "resident"] = "layerwise"
    alignment: int = ALIGNMENT_BYTES
    keep_residents: bool | None = None
    hold_spare: bool = False
    pin_budget_bytes: int | None = None
    copies_budget_bytes: int | None = None
    host_tier: HostTier | None = None
    host_source: str = ""
    in_place: bool = False
    peer_device: str | None = None
    peer_budget_bytes: int = 0
    peer_bytes_per_s: float | None = None
    peer_source: str = "measured"

    def __post_init__(self) -> None:
        if self.in_place and self.link_is_assumed:
            object.__setattr__(self, "h2d_bytes_per_s", FILE_BYTES_PER_S)
            object.__setattr__(self, "link_source", FILE_SOURCE)
        as_name("device", self.device)
        as_name("link_source", self.link_source)
        for field in ("budget_bytes", "ring_bytes", "pin_budget_bytes", "copies_budget_bytes"):
            value = getattr(self, field)
            if value is not None:
                as_bytes(field, value)
        as_rate("h2d_bytes_per_s", self.h2d_bytes_per_s)
        as_int("passes", self.passes, 1, 1_000_000)
        as_int("alignment", self.alignment, 1, 1 << 30)
        if self.placement not in ("layerwise", "resident"):
            raise PlanError.bad_field("placement", self.placement, "layerwise or resident")
        if not isinstance(self.hold_spare, bool):
            raise PlanError.bad_field("hold_spare", self.hold_spare, "true or false")
        if self.host_tier not in (None, "pinned", "pageable", "mapped"):
            raise PlanError.bad_field("host_tier", self.host_tier, "pinned, pageable, mapped or nothing")
        if self.keep_residents is not None and not isinstance(self.keep_residents, bool):
            raise PlanError.bad_field("keep_residents", self.keep_residents, "true, false or nothing")
        self._check_peer()

    def _check_peer(self) -> None:
        if self.peer_device is not None and as_name("peer_device", self.peer_device) == self.device:
            raise PlanError.bad_field("peer_device", self.peer_device, f"another device than {self.device}")
        if as_bytes("peer_budget_bytes", self.peer_budget_bytes) and self.peer_device is None:
            raise PlanError.bad_field("peer_budget_bytes", self.peer_budget_bytes, "0 without a peer_device")
        if self.peer_bytes_per_s is not None:
            as_rate("peer_bytes_per_s", self.peer_bytes_per_s)

    @property
    def link_is_assumed(self) -> bool:
        """Whether `h2d_bytes_per_s` is the default, not measured or given."""
        return self.link_source == _ASSUMED_LINK

    def bytes_per_s(self, tier: HostTier) -> float:
        """The rate of copies of a layer in this tier."""
        measured = self.peer_bytes_per_s if tier == "peer" else None
        return self.h2d_bytes_per_s if measured is None else measured
