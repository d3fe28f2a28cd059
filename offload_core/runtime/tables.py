"""Embedding tables that stay on the host: lookups go there, and whoever uses the weight itself borrows it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .discovery import FoundLayer
from .host_parameter import OutsideTouches, adopt, release
from .parts import is_plain, parts_of


class HostTables:
    """The tables of one component. `lend` and `stop_lending` bracket its being loaded."""

    def __init__(self, found: Sequence[FoundLayer]) -> None:
        self._found = found
        self._touches = [OutsideTouches() for _ in found]

    def parameter_ids(self) -> set[int]:
        return {id(parameter) for table in self._found for parameter in table.module.parameters()}

    def touches(self) -> dict[str, int]:
        """How often each table was used as a whole, by name. Each time cost a copy."""
        return {table.name: touched.count for table, touched in zip(self._found, self._touches)}

    def lend(self) -> None:
        for table, touches in zip(self._found, self._touches):
            for parameter in table.module.parameters():
                if is_plain(parameter) and isinstance(parameter, nn.Parameter) and parameter.device.type == "cpu":
                    adopt(parameter, touches, parts_of(parameter))

    def stop_lending(self) -> None:
        for table in self._found:
            for parameter in table.module.parameters():
                release(parameter)
