"""Names the components that our nodes bring in a prompt in API form. Our nodes are those in `node_table.py`.

The first component of a kind, in the order of node ids, has the kind's name; the second has the suffix `_2`, and so on:
two experts are `dit` and `dit_2`, so that settings can distinguish them. A component that an Apply node takes over from
one of our loaders keeps the loader's name.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...offload_core.errors import SettingsError
from ...offload_core.settings.groups import match, numbered_base, select, sort_key
from ...offload_core.settings.node_table import APP_LOADERS, APPLY, DECLARED_AS, NODES, Slot
from .requested import SourceRequest

_NUMBER = re.compile(r"[0-9]{1,18}")
"""The parts of a node id that are sorted as numbers; an id may be any text that a client sends."""

Place = tuple[str, str]
"""A node's id and the kind of a component that it brings."""


def slots_of(node: Mapping[str, Any]) -> tuple[Slot, ...]:
    """The slots of a node of ours; empty for any other node."""
    return NODES.get(node.get("class_type", ""), ())


def names_in(prompt: Mapping[str, Any]) -> dict[Place, str]:
    """Component names by node id and kind."""
    names: dict[Place, str] = {}
    names_taken_over: dict[Place, str] = {}
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
    taken_over = []
    for node_id in sorted(prompt, key=_natural):
        node = prompt[node_id]
        for slot in slots_of(node):
            if not slot.is_brought(node.get("inputs", {})):
                continue
            if node["class_type"] == APPLY:
                taken_over.append((node_id, slot))
            else:
                names[node_id, slot.kind] = numbered(slot.kind, next(numbers[slot.kind]))
    for node_id, slot in taken_over:
        source = [node_id, *(source for source, _ in sources_before(prompt, node_id, slot))][-1]
        name = names.get((source, slot.kind)) or numbered(slot.kind, next(numbers[slot.kind]))
        names_taken_over[node_id, slot.kind] = name
    return names | names_taken_over


def numbered(kind: str, number: int) -> str:
    return kind if number == 1 else f"{kind}_{number}"


def sources_before(prompt: Mapping[str, Any], node_id: str, slot: Slot) -> Iterator[tuple[str, Slot]]:
    """The nodes from which an Apply node gets its component, with their slots, nearest first: Apply nodes, and a loader
    of ours or the app's. Other nodes between them are passed. In a circle the last one is there a second time."""
    seen: set[str] = set()
    while node_id not in seen:
        seen.add(node_id)
        wire = wire_of(prompt, node_id, slot.needs)
        if wire is None:
            return
        node_id, output = wire
        node = prompt[node_id]
        if slots := slots_of(node) or APP_LOADERS.get(node.get("class_type", ""), ()):
            if output >= len(slots) or slots[output].kind != slot.kind:
                return
            yield node_id, slots[output]
            if node["class_type"] != APPLY:
                return


def wire_of(prompt: Mapping[str, Any], node_id: str, name: str) -> tuple[str, int] | None:
    """(node id, output index) that an input is connected to; None if that is no output of a node of the prompt."""
    wire = prompt[node_id].get("inputs", {}).get(name)
    if not (isinstance(wire, list) and len(wire) == 2 and str(wire[0]) in prompt):
        return None
    return (str(wire[0]), int(wire[1])) if isinstance(wire[1], int) and wire[1] >= 0 else None


def what_runs(prompt: Mapping[str, Any], outputs: Iterable[str]) -> set[str]:
    """Ids of the nodes that the nodes `outputs` depend on, those included."""
    run: set[str] = set()
    to_see = [str(node_id) for node_id in outputs]
    while to_see:
        node_id = to_see.pop()
        if node_id in prompt and node_id not in run:
            run.add(node_id)
            names = prompt[node_id].get("inputs", {})
            to_see += [wire[0] for name in names if (wire := wire_of(prompt, node_id, name)) is not None]
    return run


def _natural(node_id: str) -> tuple[tuple[int, str], ...]:
    """Sort key: numeric parts as numbers, before text. Ids in subgraphs have several parts, joined by colons."""
    parts = re.split(r"[:.]", str(node_id))
    return tuple((int(part), "") if _NUMBER.fullmatch(part) else (10**9, part) for part in parts)


def check_known(request: SourceRequest, names: list[str], where: str) -> None:
    """Raise SettingsError if `request` names a component that is not in `names` and cannot be one of them once loaded.

    `where`: the source of the word, for the error.
    """
    possible = [*names, *_names_once_loaded(names)]
    select(request.selection_text, possible)
    for selector in request.names():
        if selector not in possible and not match(selector, possible):
            known = ", ".join(sorted(names, key=sort_key)) or "no component at all"
            raise SettingsError(
                f"asked something of {selector} in {where}; found that the nodes it speaks to bring {known}; "
                f"do name one of those, connect it to the node that brings {selector}, or set it back to auto"
            )


def _names_once_loaded(names: list[str]) -> Iterator[str]:
    """Names that components get if their file turns out to be of another kind than declared (an audio VAE)."""
    for name in names:
        base, number = numbered_base(name)
        for kind, declared in DECLARED_AS.items():
            if declared == base:
                yield numbered(kind, number)


def check_options(options: SourceRequest, prompt: Mapping[str, Any] | None, node_id: str | None) -> None:
    """Raise SettingsError if an options node names a component that none of the nodes connected to it brings."""
    if not prompt or node_id is None or node_id not in prompt:
        return  # a node that another node expanded to at run time: its connections are not in the prompt
    wires = {user: wire_of(prompt, user, "options") for user in prompt}
    connected = {user for user, wire in wires.items() if wire is not None and wire[0] == node_id}
    names = {name for (user, _), name in names_in(prompt).items() if user in connected}
    check_known(options, sorted(names), "Layerwise Offload Options")
