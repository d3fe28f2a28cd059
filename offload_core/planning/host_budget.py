"""How much host memory this process may still allocate, by the machine's figures and those of its cgroups.

Pure functions of the contents of `/proc` and `/sys/fs/cgroup` below `root`, which tests replace. Available memory is
the minimum of the machine's MemAvailable and, for each level of the cgroup chain, of limit less usage, where inactive
page cache is not counted as usage. On other systems than Linux the caller brings the figure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RESERVE_SHARE = 0.05
RESERVE_BYTES = 2 << 30
"""Left for other processes: a twentieth of the available bytes, at least 2 GiB, at most half of them."""

CAUTIOUS_SHARE = 0.5
"""On Windows, WSL and AMD page-locked memory counts as shared GPU memory, or takes long to allocate."""

_NO_LIMIT_BYTES = 1 << 60
"""A cgroup v1 without a limit shows its largest page count, in bytes."""


@dataclass(frozen=True, slots=True)
class HostBudget:
    """Host bytes that a component may allocate now.

    copies_bytes  anonymous memory for host masters, pinned ones included
    pins_bytes    page-locked memory, part of `copies_bytes`
    reason        where the figures come from, for display
    """

    copies_bytes: int
    pins_bytes: int
    reason: str


def available_bytes(root: Path = Path("/")) -> int | None:
    """Available host bytes by machine and cgroups; None where neither `/proc` nor cgroups give a figure."""
    kilobytes = _entry(root / "proc/meminfo", "MemAvailable:")
    limits = [*_cgroup_rooms(root)] if kilobytes is None else [kilobytes * 1024, *_cgroup_rooms(root)]
    return max(0, min(limits)) if limits else None


def host_budget(
    available: int,
    *,
    asked_pins_bytes: int | None = None,
    apps_pin_room_bytes: int | None = None,
    cautious: bool = False,
) -> HostBudget:
    """The budget for `available` bytes of host memory.

    asked_pins_bytes     the user's setting for page-locked memory: replaces the default, within the available bytes
    apps_pin_room_bytes  bytes left below the app's own ceiling for page-locked memory; None: it has none
    cautious             the platform is one of those of `CAUTIOUS_SHARE`
    """
    reserve = min(max(int(available * RESERVE_SHARE), RESERVE_BYTES), available // 2)
    copies = available - reserve
    if asked_pins_bytes is not None:
        pins = min(asked_pins_bytes, copies)
        why = f"{asked_pins_bytes / 1e9:.2f} GB page-locked, as asked"
        if pins < asked_pins_bytes:
            why = f"{pins / 1e9:.2f} of the {asked_pins_bytes / 1e9:.2f} GB page-locked that were asked for"
        return HostBudget(copies, pins, f"{why}; {available / 1e9:.2f} GB available")
    pins, why = copies, f"{available / 1e9:.2f} GB available less a reserve of {reserve / 1e9:.2f} GB"
    if cautious:
        pins, why = int(pins * CAUTIOUS_SHARE), f"half of {why}, for this platform"
    if apps_pin_room_bytes is not None and apps_pin_room_bytes < pins:
        pins, why = max(0, apps_pin_room_bytes), "what the app's own ceiling for page-locked memory leaves"
    return HostBudget(copies, pins, why)


def is_wsl(root: Path = Path("/")) -> bool:
    """Whether this is the Windows Subsystem for Linux."""
    return "microsoft" in (_read(root / "proc/sys/kernel/osrelease") or "").lower()


def is_windows() -> bool:
    return sys.platform == "win32" or os.name == "nt"


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Bytes left in each limited cgroup from the process's own up to the top, in hierarchies of version 1 and 2."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for base in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"):
                yield from _rooms(base, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            yield from _rooms(base, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _rooms(base: Path, path: str, limit_name: str, use_name: str, cache_name: str) -> Iterator[int]:
    # In a container the mount's top is the container's own cgroup, while /proc gives the path outside the container:
    # levels that do not exist are skipped, and the top is always read.
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for depth in range(len(parts), -1, -1):
        folder = base.joinpath(*parts[:depth])
        limit, use = _number(_read(folder / limit_name)), _number(_read(folder / use_name))
        if limit is None or use is None or limit >= _NO_LIMIT_BYTES:
            continue
        yield limit - use + min(use, _entry(folder / "memory.stat", cache_name) or 0)


def _entry(file: Path, name: str) -> int | None:
    """The number after `name` in a file with lines of name, number and perhaps a unit."""
    for line in (_read(file) or "").splitlines():
        key, *values = line.split() or [""]
        if key == name:
            return _number(values[0]) if values else None
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return None
