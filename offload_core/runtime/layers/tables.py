"""Embedding tables that stay on the host for row lookups, unless they are also used as a whole.

The output projection of a language model is often its embedding table, and copying it for every token would be most of
the traffic. So its first use as a whole asks for a plan with the table on the device; if there is room, the modules
hold it there like any other weight until the component is unloaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn

from ..device.device_port import DevicePort
from ..files.weight_file import dtype_of, slice_of
from ..host.host_parameter import OutsideTouches, adopt, release
from ..tensors.layout import copy_span, span_bytes
from ..tensors.parts import is_plain, parts_of, plain
from .discovery import DiscoveredTable

AskForTable = Callable[[str], None]
"""Called with the name of a table about to be used as a whole. The table may be on the device afterwards."""


class HostTable(OutsideTouches):
    """One table and its uses as a whole, and the modules that look up rows in it."""

    __slots__ = ("_ask", "modules", "name", "on_device", "parameter")

    def __init__(self, discovered: DiscoveredTable) -> None:
        super().__init__()
        self.name, self.parameter, self.modules = discovered.name, discovered.weight, discovered.modules
        self.on_device: nn.Parameter | None = None
        """The parameter that the modules hold while the table is on the device."""
        self._ask: AskForTable | None = None

    def ask_before_use(self, ask: AskForTable | None) -> None:
        """Set what is called before a use of the table as a whole while it is not on the device; None: nothing."""
        self._ask = ask

    def load(self, port: DevicePort) -> None:
        """Copy the table to the device and put it into its modules. All of it or nothing. Raises FileReadError, and
        errors of allocation. A table that a patch has replaced is left alone."""
        if self.on_device is not None or not self._is_in_all_modules(self.parameter):
            return
        leaf = self.parameter  # a table is plain: it is its own only part
        with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            part = slice_of(leaf)
            master = plain(leaf).data if part is None else part.in_memory(dtype_of(leaf))
            buffer = port.empty(span_bytes(master))
            whole = buffer.view(master.dtype).as_strided(master.shape, master.stride())
            copy_span(whole, master)
            self.on_device = nn.Parameter(whole, requires_grad=False)
        self._put_into_modules(self.on_device)

    def take_off(self) -> None:
        """Put the host's table back and free the device memory. Idempotent."""
        if self.on_device is not None:
            if self._is_in_all_modules(self.on_device):
                self._put_into_modules(self.parameter)
            self.on_device = None

    def copy_on_device(self, device: torch.device) -> torch.Tensor | None:
        """The table's copy on `device`; None: its value is copied. Without one, calls what `ask_before_use` has set,
        which may bring it there."""
        if self._ask is not None and self.on_device is None:
            self._ask(self.name)
        copy = self.on_device
        if copy is None or copy.device.type != device.type or device.index not in (None, copy.device.index):
            return None
        return copy

    def _is_in_all_modules(self, parameter: nn.Parameter) -> bool:
        return all(module._parameters.get("weight") is parameter for module in self.modules)

    def _put_into_modules(self, parameter: nn.Parameter) -> None:
        for module in self.modules:
            module._parameters["weight"] = parameter


class HostTables:
    """The tables of one component. They lend between `lend` and `stop_lending`, while it is loaded."""

    def __init__(self, discovered: Sequence[DiscoveredTable], port: DevicePort) -> None:
        self._port = port
        self.tables = {id(table.weight): HostTable(table) for table in discovered}
        """By the id of the parameter."""

    def _parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the modules that look up rows: the tables, and what a module has beside its table."""
        for table in self.tables.values():
            for module in table.modules:
                yield from module.parameters()

    def parameter_ids(self) -> set[int]:
        return {id(parameter) for parameter in self._parameters()}

    def touches(self) -> dict[str, int]:
        """Number of uses of each table as a whole, by name. Each cost a copy."""
        return {table.name: table.count for table in self.tables.values()}

    # ------------------------------------------------------------------ on the host

    def lend(self, ask: AskForTable) -> None:
        """Make tables call `ask` when used as a whole; they lend a copy if `ask` does not place them on the device."""
        for table in self.tables.values():
            table.ask_before_use(ask)
        for parameter in self._parameters():
            if is_plain(parameter) and isinstance(parameter, nn.Parameter) and parameter.device.type == "cpu":
                adopt(parameter, self.tables.get(id(parameter)) or OutsideTouches(), parts_of(parameter))

    def stop_lending(self) -> None:
        """Make the tables ordinary host parameters again."""
        self.take_off()
        for table in self.tables.values():
            table.ask_before_use(None)
            release(table.parameter)  # other code may have put another one into the modules
        for parameter in self._parameters():
            release(parameter)

    # ------------------------------------------------------------------ on the device

    def on_device(self) -> list[str]:
        """Names of the tables on the device."""
        return [table.name for table in self.tables.values() if table.on_device is not None]

    def load(self, names: Collection[str]) -> None:
        """Copy these tables to the device, if not there yet. Raises what `HostTable.load` raises."""
        for table in self.tables.values():
            if table.name in names:
                table.load(self._port)

    def take_off(self, all_but: Collection[str] = ()) -> None:
        """Take all tables but these off the device. Idempotent."""
        for table in self.tables.values():
            if table.name not in all_but:
                table.take_off()

    @contextlib.contextmanager
    def off_device(self) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Inside the block the modules hold the host's tables; those on the device are copied there again afterwards.
        Yields a function from a parameter that the modules held before to the one that they hold inside."""
        names = self.on_device()
        hosts = {id(table.on_device): table.parameter for table in self.tables.values() if table.on_device is not None}
        self.take_off()
        try:
            yield lambda tensor: hosts.get(id(tensor), tensor)
        finally:
            self.load(names)
