"""How much host memory this process may still take: what the machine and every cgroup above the process leave over.

Pure functions over the contents of `/proc` and `/sys/fs/cgroup`; `root` is where these hang, so that a test can hand in
a tree of its own. In a container the machine's own figure is somebody else's memory: what counts is the least of it and
of each level of the cgroup chain, limit less use, where page cache that can be dropped is not use. Elsewhere than on
Linux the caller brings the figure. Knows nothing about devices, torch or the app.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HostBudget", "available_bytes", "host_budget", "is_windows", "is_wsl"]

RESERVE_SHARE = 0.05
RESERVE_BYTES = 2 << 30
"""Left for everybody else: a twentieth of what is available, 2 GiB at least, but never more than half of it."""

CAUTIOUS_SHARE = 0.5
"""Windows, WSL and AMD: page-locked memory counts as shared GPU memory there, or is slow to get."""

_NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 writes its largest page count where there is no limit."""


@dataclass(frozen=True, slots=True)
class HostBudget:
    """Bytes a component may take from the host now, and for people, why these.

    copies_bytes  anonymous memory for host masters, pinned ones included
    pins_bytes    page-locked memory, part of the above
    """

    copies_bytes: int
    pins_bytes: int
    reason: str


def available_bytes(root: Path = Path("/")) -> int | None:
    """Least of MemAvailable and what each level of the cgroup chain has left; None where there is no `/proc`."""
    found = [room for room in (_machine_bytes(root), *_cgroup_rooms(root)) if room is not None]
    return max(0, min(found)) if found else None


def host_budget(
    available: int,
    *,
    asked_pins_bytes: int | None = None,
    apps_pin_room_bytes: int | None = None,
    cautious: bool = False,
) -> HostBudget:
    """What may be taken of `available` bytes.

    asked_pins_bytes     the user's word for page-locked memory: it replaces ours, within what is available
    apps_pin_room_bytes  what the app's own ceiling for page-locked memory leaves; None: it has none
    cautious             the platform is one where page-locked memory is dear
    """
    reserve = min(max(int(available * RESERVE_SHARE), RESERVE_BYTES), available // 2)
    copies = available - reserve
    if asked_pins_bytes is not None:
        pins = min(asked_pins_bytes, copies)
        asked = f"{asked_pins_bytes / 1e9:.2f} GB page-locked, as asked"
        if pins < asked_pins_bytes:
            asked = f"{pins / 1e9:.2f} of the {asked_pins_bytes / 1e9:.2f} GB page-locked that were asked for"
        return HostBudget(copies, pins, f"{asked}; {available / 1e9:.2f} GB available")
    pins, why = copies, f"{available / 1e9:.2f} GB available less a reserve of {reserve / 1e9:.2f} GB"
    if cautious:
        pins, why = int(pins * CAUTIOUS_SHARE), f"half of {why}, for this platform"
    if apps_pin_room_bytes is not None and apps_pin_room_bytes < pins:
        pins, why = max(0, apps_pin_room_bytes), "what the app's own ceiling for page-locked memory leaves"
    return HostBudget(copies, pins, why)


def is_wsl(root: Path = Path("/")) -> bool:
    """Whether this Linux runs inside Windows."""
    return "microsoft" in (_read(root / "proc/sys/kernel/osrelease") or "").lower()


def is_windows() -> bool:
    return sys.platform == "win32" or os.name == "nt"


def _machine_bytes(root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            number = value.split()
            return int(number[0]) * 1024 if number and number[0].isdigit() else None
    return None


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """What each cgroup from the process's own up to the top has left. v1, v2 and both at once."""
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
    # Inside a container the mount shows its own cgroup as the top while /proc still gives the path from outside: levels
    # that are not there are passed over, the mount's top is always looked at.
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for depth in range(len(parts), -1, -1):
        folder = base.joinpath(*parts[:depth])
        limit, use = _number(_read(folder / limit_name)), _number(_read(folder / use_name))
        if limit is None or use is None or limit >= _NO_LIMIT_BYTES:
            continue
        yield limit - use + min(use, _stat(folder / "memory.stat", cache_name))


def _stat(file: Path, wanted: str) -> int:
    for line in (_read(file) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == wanted:
            return _number(value) or 0
    return 0


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return None
