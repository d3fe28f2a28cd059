"""Places the components that no source placed, from their real sizes and the device's free bytes.

``docs/policy.md`` has the modes, and what counts against the free bytes. A streamed diffusion model counts with all its
bytes unless a budget was set for it: it walks its layers once per step, so what it can hold is worth more to it than to
an encoder, which walks them once per prompt.

A placement that was set is never changed here. Knows nothing about who set it, about selections, layers or ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..errors import SettingsError, shown
from ..notices import Notice
from ..sentences import Sentence, sentence
from ..units import format_bytes
from .groups import DIT, IMAGE_ENCODER, TEXT_ENCODER, VAE, group_of, numbered_base, sort_key

MODES: Final[tuple[str, ...]] = ("auto", "memory", "speed", "manual")

# Share of the device left for activations and the app, and its ceiling. What is resident gives way layer by layer when
# the app needs room, so this decides how often that happens, not whether things work.
_HEADROOM_PERMILLE: Final = {"auto": 100, "speed": 50}
_MAX_HEADROOM_BYTES: Final = 4 * 10**9
# A ring of three layers and the parameters outside layers, where they were not measured: a tenth of the component.
_STREAMED_SHARE: Final = 10
_GIVES_WAY: Final = (TEXT_ENCODER, IMAGE_ENCODER, VAE, DIT)
INSIDE_DIT: Final = "inside the diffusion model's step"
"""The role of what runs inside each step of the diffusion model."""
_RUN_INSIDE_DIT: Final = ("controlnet", "model_patch")


@dataclass(frozen=True, slots=True)
class Component:
    """What the policy may know about a component.

    ``smallest_bytes``: the least device memory it runs in when streamed (ring, loose parameters), None if not measured.
    ``layers_bytes``: its layers as they lie on the host, without what a device rounds up; None: as ``bytes``.
    ``streamable`` False: its layers cannot be streamed, for the reason ``why_not``.
    """

    name: str
    bytes: int
    smallest_bytes: int | None = None
    streamable: bool = True
    why_not: str = ""
    layers_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A device. ``free_bytes`` as if no component were on it; None where that is not known."""

    kind: str
    total_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A component and what is settled about it before the policy speaks; None where nothing is."""

    component: Component
    placement: str | None = None
    budget_bytes: int | None = None
    ring_bytes: int | None = None
    may_stream: bool = True  # False: there is a list of what to stream, and this is not on it

    @property
    def name(self) -> str:
        return self.component.name

    @property
    def streaming_bytes(self) -> int:
        """Device bytes it needs to be streamed: the ring that was asked for, what was measured, or a tenth of it."""
        needed_bytes = self.component.smallest_bytes
        if needed_bytes is None:
            needed_bytes = -(-self.component.bytes // _STREAMED_SHARE)
        return min(self.component.bytes, max(needed_bytes, self.ring_bytes or 0))

    def turn_bytes(self, placement: str, least: bool) -> int:
        """Device bytes during its own use when it is not resident: the least it runs in, or what it can make use of."""
        if placement == "cpu":
            return 0
        if placement == "whole":
            return self.component.bytes
        if self.budget_bytes is not None:
            return max(min(self.budget_bytes, self.component.bytes), self.streaming_bytes)
        return self.component.bytes if group_of(self.name) == DIT and not least else self.streaming_bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """What one component got, each with its reason. ``budget_bytes`` None: a ring and nothing more.

    ``reason`` None: the placement was set before the policy spoke.
    """

    placement: str
    reason: Sentence | None = None
    budget_bytes: int | None = None
    budget_reason: Sentence | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice for every component (one that was placed keeps its placement), and a notice for each fallback."""

    choices: Mapping[str, Choice]
    notices: tuple[Notice, ...]


def check_mode(mode: object) -> str:
    """The mode, or SettingsError naming what is allowed."""
    if not isinstance(mode, str) or mode not in MODES:
        raise SettingsError(f"asked mode = {shown(mode)}; found no such mode; do choose one of: {', '.join(MODES)}")
    return mode


def headroom_bytes(mode: str, device: Device) -> int:
    """Bytes of the device that ``auto`` and ``speed`` keep free: a tenth, or a twentieth, of it; 4 GB at most."""
    size_bytes = device.total_bytes if device.total_bytes is not None else device.free_bytes or 0
    return min(size_bytes * _HEADROOM_PERMILLE.get(mode, 0) // 1000, _MAX_HEADROOM_BYTES)


def decide(mode: str, device: Device, host_bytes: int | None, placed: Iterable[Placed]) -> Decision:
    """One decision over all components of a graph. Deterministic; the order of ``placed`` does not matter.

    ``host_bytes``: memory available to this process, None if not known. Raises SettingsError for an unknown mode.
    """
    work = _Work(check_mode(mode), device, host_bytes, tuple(sorted(placed, key=lambda entry: sort_key(entry.name))))
    work.place()
    work.share_budgets()
    return Decision(work.choices, tuple(work.notices))


class _Work:
    """The state of one decision."""

    def __init__(self, mode: str, device: Device, host_bytes: int | None, placed: tuple[Placed, ...]) -> None:
        self.mode = mode
        self.device = device
        self.host_bytes = host_bytes
        self.placed = placed
        self.choices: dict[str, Choice] = {}
        self.notices: list[Notice] = []
        self.headroom_bytes = headroom_bytes(mode, device)
        self.usable_bytes = max(0, (device.free_bytes or 0) - self.headroom_bytes)

    def place(self) -> None:
        undecided: list[Placed] = []
        for placed in self.placed:
            choice = self._settled(placed) if placed.placement is None else Choice(placed.placement)
            if choice is None:
                undecided.append(placed)
            else:
                self.choices[placed.name] = choice
        if undecided:
            self._balance(undecided)

    def _settled(self, placed: Placed) -> Choice | None:
        """The choice where the sizes of the others do not matter; None where they do."""
        size = format_bytes(placed.component.bytes)
        if placed.budget_bytes is not None and placed.budget_bytes < placed.component.bytes:
            budget = format_bytes(placed.budget_bytes)
            return self._stream(placed, sentence("given_less", size=size, budget=budget))
        if self.mode == "manual":
            return Choice("whole", sentence("manual_mode"))
        if group_of(placed.name) is None and placed.budget_bytes is not None:
            return self._stream(placed, sentence("given_enough", size=size, budget=format_bytes(placed.budget_bytes)))
        if group_of(placed.name) is None:
            return Choice("whole", sentence("no_group", component=placed.name))
        if self.device.kind == "cpu":
            if self.host_bytes is not None and placed.component.bytes > self.host_bytes and placed.may_stream:
                return self._stream(placed, sentence("beyond_host", size=size, memory=format_bytes(self.host_bytes)))
            return Choice("whole", sentence("all_on_cpu"))
        if self.mode == "memory":
            return self._stream(placed, sentence("memory_mode"), sentence("memory_mode_not_selected"))
        if self.device.free_bytes is None:
            notice = Notice("", sentence("free_memory_unknown"))
            if notice not in self.notices:
                self.notices.append(notice)
            return self._stream(placed, sentence("free_unknown"), sentence("free_unknown_not_selected"))
        return None

    def _stream(self, placed: Placed, reason: Sentence, not_selected: Sentence | None = None) -> Choice:
        """Streamed; or the app's way: where it is `not_selected`, and, with a notice, where the component cannot be."""
        if not_selected is not None and not placed.may_stream:
            return Choice("whole", not_selected)
        if placed.component.streamable:
            return Choice("layerwise", reason)
        why = placed.component.why_not or sentence("layers_cannot_stream")
        what = sentence("cannot_be_streamed", component=placed.name, reason=reason, why=why)
        self.notices.append(Notice(placed.name, what))
        return Choice("whole", sentence("cannot_stream", why=why))

    def _balance(self, undecided: list[Placed]) -> None:
        """Everything resident, then out with what gives way first, until the rest fits beside the headroom."""
        for placed in undecided:
            self.choices[placed.name] = Choice("resident")
        for placed in sorted(undecided, key=lambda placed: gives_way_key(placed.name, placed.component.bytes)):
            need_bytes = self._need_bytes()
            if need_bytes <= self.usable_bytes:
                break
            self._give_way(placed, need_bytes)
        need_bytes = self._need_bytes()
        for placed in undecided:
            if self.choices[placed.name].placement == "resident":
                size = format_bytes(placed.component.bytes)
                reason = sentence("resident_fits", size=size, sum=self._sum(need_bytes))
                self.choices[placed.name] = Choice("resident", reason)
        need_bytes = self._need_bytes(least=True)
        if need_bytes > self.usable_bytes:
            self.notices.append(Notice("", sentence("not_everything_fits", sum=self._sum(need_bytes))))

    def _give_way(self, placed: Placed, need_bytes: int) -> None:
        size = format_bytes(placed.component.bytes)
        reason = sentence("does_not_fit", size=size, sum=self._sum(need_bytes))
        choice = self._stream(placed, reason, sentence("both", first=reason, second=sentence("not_selected")))
        self.choices[placed.name] = choice
        if self.mode == "speed":
            what = sentence("speed_gives_way", component=placed.name, reason=reason, placement=choice.placement)
            self.notices.append(Notice(placed.name, what))

    def share_budgets(self) -> None:
        """What residents and headroom leave goes to the streamed diffusion models: they walk their layers N times."""
        if self.mode not in ("auto", "speed") or self.device.free_bytes is None or self.device.kind == "cpu":
            return
        residents_bytes = self._residents_bytes()
        left_bytes = self.usable_bytes - residents_bytes - self._in_step_bytes()
        for placed in self.placed:
            choice = self.choices[placed.name]
            is_streamed_dit = choice.placement == "layerwise" and group_of(placed.name) == DIT
            if not is_streamed_dit or placed.budget_bytes is not None or not placed.component.bytes:
                continue
            if left_bytes < max(1, placed.streaming_bytes):
                what = sentence("ring_only", component=placed.name, left=format_bytes(max(0, left_bytes)))
                self.notices.append(Notice(placed.name, what))
                continue
            reason = sentence(
                "budget_left",
                free=format_bytes(self.device.free_bytes),
                residents=format_bytes(residents_bytes),
                headroom=format_bytes(self.headroom_bytes),
            )
            budget_bytes = min(left_bytes, placed.component.bytes)
            self.choices[placed.name] = replace(choice, budget_bytes=budget_bytes, budget_reason=reason)

    def _need_bytes(self, least: bool = False) -> int:
        """Residents, and the most that the others take while in use."""
        alone_bytes = max(self._turns(None, least), default=0)
        dit_bytes = max(self._turns(DIT, least), default=0)
        return self._residents_bytes() + max(alone_bytes, dit_bytes + self._in_step_bytes())

    def _residents_bytes(self) -> int:
        residents = (placed for placed in self.placed if self.choices[placed.name].placement == "resident")
        return sum(placed.component.bytes for placed in residents)

    def _in_step_bytes(self) -> int:
        """What runs inside the diffusion model's step needs beside it, residents not counted."""
        return sum(self._turns(INSIDE_DIT, least=True))

    def _turns(self, role: str | None, least: bool) -> list[int]:
        """Device bytes of each component of a role during its own use, residents not counted."""
        placements = (
            (placed, self.choices[placed.name].placement) for placed in self.placed if role_of(placed.name) == role
        )
        return [placed.turn_bytes(placement, least) for placed, placement in placements if placement != "resident"]

    def _sum(self, need_bytes: int) -> Sentence:
        """The arithmetic behind a choice, in numbers."""
        return sentence(
            "memory_sum",
            needed=format_bytes(need_bytes),
            free=format_bytes(self.device.free_bytes or 0),
            headroom=format_bytes(self.headroom_bytes),
        )


def role_of(name: str) -> str | None:
    """`DIT`, or `INSIDE_DIT`; None for what takes turns with the diffusion model."""
    if numbered_base(name)[0] in _RUN_INSIDE_DIT:
        return INSIDE_DIT
    return DIT if group_of(name) == DIT else None


def gives_way_key(name: str, nbytes: int) -> tuple[int, int, int, str]:
    """Sort key of who gives way first: encoders, then VAE, then diffusion model; in a group the largest first, numbered
    variants before the base. What is in no group counts as a VAE, a ControlNet as a diffusion model."""
    group = DIT if role_of(name) is not None else group_of(name)
    return (_GIVES_WAY.index(group or VAE), -nbytes, -numbered_base(name)[1], name)
