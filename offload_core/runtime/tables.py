"""Embedding tables that stay on the host, where rows are looked up, unless they are used as a whole as well.

The output projection of a language model is often its embedding table, taken as it is when a token's logits are
computed. Copied for every token that is most of what crosses the link. So the first use of a table as a whole asks for
it to come to the device, and where the plan that this leads to has room for it, it stays there until the component
leaves: the modules then hold it like any other weight, and rows are looked up there too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn

from .device_port import DevicePort
from .discovery import FoundLayer
from .host_parameter import OutsideTouches, adopt, leaves_of_master, no_copy, release
from .layout import copy_span, span_bytes
from .parts import is_plain, parts_of, plain
from .weight_file import dtype_of, slice_of

AskForTable = Callable[[str], None]
"""The name of a table that is about to be used as a whole. It may be on the device when this returns."""


class HostTable:
    """One table, and the modules that look something up in it."""

    __slots__ = ("_modules", "_on_device", "name", "parameter", "touches")

    def __init__(self, found: FoundLayer, modules: Sequence[nn.Module]) -> None:
        self.name = found.name
        self.parameter = found.parameters[0]
        self.touches = OutsideTouches()
        self._modules = modules
        self._on_device: nn.Parameter | None = None

    @property
    def on_device(self) -> nn.Parameter | None:
        """What the modules hold while the table is on the device; None while it is not."""
        return self._on_device

    def load(self, port: DevicePort) -> None:
        """Copy the table to the device and hang it into its modules. All of it or nothing.

        Raises FileReadError, and what an allocation raises. A table that another tensor stands for is left alone: it
        is changed by a patch.
        """
        if self._on_device is not None or not self._hangs_everywhere(self.parameter):
            return
        (leaf,) = leaves_of_master(self.parameter)
        with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            part = slice_of(leaf)
            master = plain(leaf).data if part is None else part.in_memory(dtype_of(leaf))
            buffer = port.empty(span_bytes(master))
            whole = buffer.view(master.dtype).as_strided(master.shape, master.stride())
            copy_span(whole, master)
            self._on_device = nn.Parameter(whole, requires_grad=False)
        self._hang(self._on_device)

    def take_off(self) -> None:
        """The modules hold the host's table again, and the device memory is free. Idempotent."""
        if self._on_device is not None:
            if self._hangs_everywhere(self._on_device):
                self._hang(self.parameter)
            self._on_device = None

    def _hangs_everywhere(self, parameter: nn.Parameter) -> bool:
        return all(module._parameters.get("weight") is parameter for module in self._modules)

    def _hang(self, parameter: nn.Parameter) -> None:
        for module in self._modules:
            module._parameters["weight"] = parameter


class HostTables:
    """The tables of one component. `lend` and `stop_lending` bracket its being loaded."""

    def __init__(self, found: Sequence[FoundLayer], port: DevicePort) -> None:
        self._port = port
        modules: dict[int, list[nn.Module]] = {}
        first: dict[int, FoundLayer] = {}
        for entry in found:
            key = id(entry.parameters[0])
            modules.setdefault(key, []).append(entry.module)
            first.setdefault(key, entry)
        self._tables = {key: HostTable(entry, modules[key]) for key, entry in first.items()}
        self._modules = [entry.module for entry in found]

    def of(self, found: FoundLayer) -> HostTable:
        """The table that an entry of the discovery stands for."""
        return self._tables[id(found.parameters[0])]

    def parameter_ids(self) -> set[int]:
        return {id(parameter) for module in self._modules for parameter in module.parameters()}

    def touches(self) -> dict[str, int]:
        """How often each table was used as a whole, by name. Each time cost a copy."""
        return {table.name: table.touches.count for table in self._tables.values()}

    # ------------------------------------------------------------------ on the host

    def lend(self, ask: AskForTable) -> None:
        """From now on a use of a table as a whole on the device calls `ask`, and gets a copy if that brings nothing."""
        for table in self._tables.values():
            table.touches.copy_on_device = _asking(ask, table)
        for module in self._modules:
            for parameter in module.parameters():
                if is_plain(parameter) and isinstance(parameter, nn.Parameter) and parameter.device.type == "cpu":
                    table_of = self._tables.get(id(parameter))
                    touches = OutsideTouches() if table_of is None else table_of.touches
                    adopt(parameter, touches, parts_of(parameter))

    def stop_lending(self) -> None:
        """Tables are ordinary parameters on the host again."""
        self.take_off()
        for table in self._tables.values():
            table.touches.copy_on_device = no_copy
        for module in self._modules:
            for parameter in module.parameters():
                release(parameter)

    # ------------------------------------------------------------------ on the device

    def on_device(self) -> list[str]:
        """The names of the tables that are on the device."""
        return [table.name for table in self._tables.values() if table.on_device is not None]

    def load(self, names: Collection[str]) -> None:
        """Bring these tables to the device, those that are not there yet. Raises what `HostTable.load` raises."""
        for table in self._tables.values():
            if table.name in names:
                table.load(self._port)

    def take_off(self, all_but: Collection[str] = ()) -> None:
        """Take all tables off the device, but those of these names. Idempotent."""
        for table in self._tables.values():
            if table.name not in all_but:
                table.take_off()

    @contextlib.contextmanager
    def off_device(self) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """For a moment the modules hold the host's tables; what was on the device is copied there anew afterwards.

        Gives a function from what the modules held before to what they hold meanwhile.
        """
        names = self.on_device()
        hosts = {id(table.on_device): table.parameter for table in self._tables.values() if table.on_device is not None}
        self.take_off()
        try:
            yield lambda tensor: hosts.get(id(tensor), tensor)
        finally:
            self.load(names)


def _asking(ask: AskForTable, table: HostTable) -> Callable[[torch.device], torch.Tensor | None]:
    def copy_on_device(device: torch.device) -> torch.Tensor | None:
        if table.on_device is None:
            ask(table.name)
        there = table.on_device
        if there is None or there.device.type != device.type or device.index not in (None, there.device.index):
            return None
        return there

    return copy_on_device
