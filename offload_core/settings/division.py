"""Divides one number of bytes among the components of a workflow: VRAM by turns, host memory by passes.

A part of the VRAM is what a component may take while it runs. Components take turns; a ControlNet or a model patch runs
in the turn of each diffusion model. Idle components give back what is missing, but for those that were asked to be
resident. Parts depend on sizes alone, not on the order in which components are given or loaded, and none becomes
smaller when the number grows. Decision 186 has the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import BudgetError
from ..units import format_bytes, gb_at_least
from .component_settings import Setting
from .groups import DIT
from .policy import INSIDE_DIT, gives_way_key, role_of


@dataclass(frozen=True, slots=True)
class Sharer:
    """A component that takes part in a division of VRAM.

    bytes           device bytes with every layer resident
    smallest_bytes  the least device bytes that it can be streamed in
    usual_bytes     the same with a ring of the usual size
    budget_bytes    its own budget; None: it has none
    stays           it was asked to be resident: it gives nothing back while others run
    """

    name: str
    bytes: int
    smallest_bytes: int
    usual_bytes: int
    budget_bytes: int | None = None
    stays: bool = False

    @property
    def most_bytes(self) -> int:
        """What it can make use of, within its own budget."""
        return self.bytes if self.budget_bytes is None else min(self.bytes, self.budget_bytes)

    @property
    def least_bytes(self) -> int:
        """What it gets in any case. A budget of its own below what it needs is an error of that budget."""
        return min(self.smallest_bytes, self.most_bytes)


def divide(number_bytes: int, sharers: Iterable[Sharer]) -> dict[str, int]:
    """The bytes that each component may take in its turn, by name. `number_bytes`: for all that are on the device then.

    Raises BudgetError, with the smallest number that works, if a turn needs more.
    """
    ordered = sorted(sharers, key=lambda sharer: gives_way_key(sharer.name, sharer.bytes))
    staying = [sharer for sharer in ordered if sharer.stays]
    kept_bytes = sum(sharer.bytes for sharer in staying)
    taking_turns = [sharer for sharer in ordered if not sharer.stays]
    turns = _turns(taking_turns)
    _check(number_bytes, kept_bytes, staying, turns)
    left_bytes = number_bytes - kept_bytes
    parts = {sharer.name: sharer.bytes for sharer in staying}
    for turn in turns:
        if len(turn) == 1 and role_of(turn[0].name) is None:
            sharer = turn[0]
            after = taking_turns[taking_turns.index(sharer) + 1 :]
            parts[sharer.name] = _alone(sharer, left_bytes, sum(other.most_bytes for other in after))
            continue
        for name, part_bytes in _in_step(turn, left_bytes).items():
            # What runs inside several steps has one part, within each of them.
            parts[name] = min(part_bytes, parts.get(name, part_bytes))
    return parts


def _turns(sharers: Sequence[Sharer]) -> list[list[Sharer]]:
    """Who runs at the same time. ControlNets of a workflow whose diffusion model has no turn run together."""
    in_step = [sharer for sharer in sharers if role_of(sharer.name) == INSIDE_DIT]
    models = [sharer for sharer in sharers if role_of(sharer.name) == DIT]
    alone = [[sharer] for sharer in sharers if role_of(sharer.name) is None]
    together = [[model, *in_step] for model in models] or ([in_step] if in_step else [])
    return alone + together


def _check(number_bytes: int, kept_bytes: int, staying: Sequence[Sharer], turns: Sequence[Sequence[Sharer]]) -> None:
    needed = [(sum(sharer.least_bytes for sharer in turn), turn) for turn in turns]
    turn_bytes, turn = max(needed, key=lambda need: need[0], default=(0, ()))
    smallest_bytes = kept_bytes + turn_bytes
    if number_bytes >= smallest_bytes:
        return
    parts = [f"{sharer.name} needs {format_bytes(sharer.least_bytes)}" for sharer in turn]
    parts += [f"{sharer.name}, asked to be resident, {format_bytes(sharer.bytes)}" for sharer in staying]
    raise BudgetError(
        f"asked {format_bytes(number_bytes)} for the weights of the workflow; found that at one time "
        f"{' and '.join(parts)}; give at least {gb_at_least(smallest_bytes)}",
        asked_bytes=number_bytes,
        smallest_bytes=smallest_bytes,
        setting=Setting.WORKFLOW_BUDGET_BYTES,
    )


def _alone(sharer: Sharer, left_bytes: int, after_bytes: int) -> int:
    """The part of what has a turn of its own. `after_bytes`: all that gives way after it, whole."""
    if sharer.budget_bytes is not None:
        return min(sharer.most_bytes, left_bytes)
    wanted = max(sharer.least_bytes, sharer.usual_bytes, left_bytes - after_bytes)
    return min(sharer.most_bytes, left_bytes, wanted)


def _in_step(turn: Sequence[Sharer], left_bytes: int) -> dict[str, int]:
    """The parts of what runs at the same time, in rounds: what each wants to have by then, as far as there is some."""
    rounds = [(sharer, sharer.least_bytes) for sharer in turn]
    rounds += [(sharer, sharer.most_bytes) for sharer in turn if sharer.budget_bytes is not None]
    inside = [sharer for sharer in turn if role_of(sharer.name) == INSIDE_DIT]
    rounds += [(sharer, min(sharer.usual_bytes, sharer.most_bytes)) for sharer in inside]
    rounds += [(sharer, sharer.most_bytes) for sharer in turn if sharer not in inside]
    rounds += [(sharer, sharer.most_bytes) for sharer in inside]
    parts = dict.fromkeys((sharer.name for sharer in turn), 0)
    for sharer, wanted_bytes in rounds:
        more_bytes = min(max(0, wanted_bytes - parts[sharer.name]), left_bytes)
        parts[sharer.name] += more_bytes
        left_bytes -= more_bytes
    return parts


@dataclass(frozen=True, slots=True)
class HostSharer:
    """A component that takes part in a division of host memory.

    passes        passes in one use, from which the worth of a copy follows
    copies_bytes  of layers that lie in a file and may be streamed: what copies of all of them would take
    memory_bytes  of layers that lie in no file, and so are in memory anyway
    """

    name: str
    passes: int
    copies_bytes: int
    memory_bytes: int = 0


def divide_host(number_bytes: int, sharers: Iterable[HostSharer]) -> Mapping[str, int]:
    """The bytes that copies of layers in a file may take, for each component by name. What has more passes comes
    first; of as many, each gets a share in proportion to what it could use.

    Raises BudgetError, with the smallest number that works, if what lies in no file is more.
    """
    sharers = sorted(sharers, key=lambda sharer: sharer.name)
    memory_bytes = sum(sharer.memory_bytes for sharer in sharers)
    if number_bytes < memory_bytes:
        names = ", ".join(sharer.name for sharer in sharers if sharer.memory_bytes)
        raise BudgetError(
            f"asked {format_bytes(number_bytes)} of system memory for the layers of the workflow; found "
            f"{format_bytes(memory_bytes)} of layers that lie in no file ({names}); give at least "
            f"{gb_at_least(memory_bytes)}, or load them by Layerwise Offload loaders",
            asked_bytes=number_bytes,
            smallest_bytes=memory_bytes,
            setting=Setting.WORKFLOW_HOST_BYTES,
        )
    left_bytes = number_bytes - memory_bytes
    parts = {}
    for passes in sorted({sharer.passes for sharer in sharers}, reverse=True):
        equals = [sharer for sharer in sharers if sharer.passes == passes]
        wanted_bytes = sum(sharer.copies_bytes for sharer in equals)
        here_bytes = min(left_bytes, wanted_bytes)
        for sharer in equals:
            parts[sharer.name] = here_bytes * sharer.copies_bytes // max(1, wanted_bytes)
        left_bytes -= here_bytes
    return parts
