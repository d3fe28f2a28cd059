"""The file in which measured times outlive the process, in the app's user folder (`docs/formats.md`).

It is read when a component is planned and written after its layers were measured. No error of it comes into a run: what
cannot be read is ignored and what cannot be written is not kept, each of which the log says once. It is replaced as a
whole, so that a reader finds the old text or the new one; of two processes that write at once, the last one's stays.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import torch

from ...offload_core.errors import OffloadError, PlanError
from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.measured_times import (
    MAX_DOCUMENT_BYTES,
    Entries,
    FileState,
    MeasuredTimes,
    TimesKey,
    from_text,
    layers_digest,
    to_text,
    with_entry,
)
from ..app import compat

log = logging.getLogger(__name__)

_FOLDER = "layerwise_offload"
_FILE = "measured.json"
_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


class RememberedTimes:
    """The measured times in the file at `path`. Any thread may call it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read_as: tuple[int, int] | None = None
        """Size and time of the file when it was last read; None: there was none, or it has not been read."""
        self._entries: Entries = {}
        self._told: set[str] = set()
        """What the log has been told already."""

    def times(self, key: TimesKey | None) -> MeasuredTimes | None:
        """What was measured under the key; None if nothing was."""
        if key is None:
            return None
        with self._lock:
            return self._now().get(key)

    def remember(self, key: TimesKey, times: MeasuredTimes) -> None:
        """Keep the times, in place of those that were measured under the key before."""
        with self._lock:
            try:
                self._write(with_entry(self._now(), key, times))
            except OSError as error:
                self._tell_once("measured times cannot be kept", error)

    def forget(self) -> int:
        """Forget all of them. Returns how many there were. Raises OSError if the file cannot be removed."""
        with self._lock:
            count = len(self._now())
            self._path.unlink(missing_ok=True)
            return count

    def _now(self) -> Entries:
        """The entries of the file as it is now; none if it cannot be read."""
        try:
            status = self._path.stat()
            state = status.st_size, status.st_mtime_ns
            if state != self._read_as:
                self._entries, self._read_as = {}, state
                self._entries = self._read(status.st_size)
        except FileNotFoundError:
            self._entries, self._read_as = {}, None
        except (OSError, OffloadError, UnicodeError) as error:
            self._entries = {}
            self._tell_once("measured times of earlier runs are ignored", error)
        return self._entries

    def _read(self, size: int) -> Entries:
        if size > MAX_DOCUMENT_BYTES:
            raise PlanError.bad_field("bytes of the file", size, f"at most {MAX_DOCUMENT_BYTES}")
        return from_text(self._path.read_text(encoding="utf-8"))

    def _write(self, entries: Entries) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f"{_FILE}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(to_text(entries))
                file.flush()
                status = os.fstat(file.fileno())
            os.replace(name, self._path)
            self._entries, self._read_as = entries, (status.st_size, status.st_mtime_ns)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _tell_once(self, what: str, error: Exception) -> None:
        if what not in self._told:
            self._told.add(what)
            problem = error.strerror if isinstance(error, OSError) else error
            log.warning("Layerwise Offload: %s: %s: %s", what, self._path, problem)


@functools.cache
def remembered() -> RememberedTimes:
    """The measured times of this app's user folder, in the part of it that no route of the app serves."""
    return RememberedTimes(Path(folder_paths.get_system_user_directory(_FOLDER)) / _FILE)


def states_of(paths: Sequence[str]) -> tuple[FileState, ...]:
    """The states of files now; none if one of them cannot be told."""
    try:
        statuses = [(Path(path), Path(path).stat()) for path in paths]
        return tuple(FileState(path.name, status.st_size, status.st_mtime_ns) for path, status in statuses)
    except (OSError, OffloadError):
        return ()


def key_of(
    files: tuple[FileState, ...], kind: str, device: torch.device, shape: tuple[int, ...] | None, inventory: Inventory
) -> TimesKey | None:
    """What times of a component are kept under; None where its files or its shape are not known."""
    if not files or not shape:
        return None
    try:
        return TimesKey(files, kind, name_of(device), shape, _versions(), layers_digest(inventory))
    except OffloadError:  # a shape of the app's that is not made of sizes, say
        return None


def name_of(device: torch.device) -> str:
    """The name under which times of the device are kept: the app's, with its index, which the app omits for some."""
    name = str(mm.get_torch_device_name(device))
    return name if str(device) in name else f"{device} {name}"


@functools.cache
def _versions() -> tuple[str, str, str]:
    """Of torch, of the app and of the pack."""
    try:
        version = re.search(r'^version = "(.+)"$', _PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        version = None
    return str(torch.__version__), compat.app_version(), version[1] if version else "unknown"
