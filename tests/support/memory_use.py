"""How much memory another process takes while something runs, as Linux counts it.

The peak is the kernel's own (`VmHWM`, put back through /proc/PID/clear_refs), so nothing between two looks is missed;
how it divides into the process's own memory and pages of mapped files is sampled. A mapped page counts while it is in
memory and mapped, though the kernel may take it away at any time.
"""

import contextlib
import threading
from pathlib import Path

LOOK_EVERY_S = 0.01

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Environment of a process whose memory is to be measured: what it frees goes back at once, not to be used unseen."""


def can_measure() -> bool:
    return Path("/proc/self/clear_refs").exists()


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names of /proc/PID/status: VmRSS, VmHWM, RssAnon, RssFile, VmData."""
    wanted = ("VmRSS", "VmHWM", "RssAnon", "RssFile", "VmData")
    entries = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {entry[0][:-1]: int(entry[1]) * 1024 for entry in entries if entry[0][:-1] in wanted}


class Growth:
    """What a process takes at most inside the `with` block, beyond what it held before. Read it afterwards."""

    def __init__(self, pid: int):
        self.pid = pid
        self.peak_bytes = self.anonymous_bytes = self.file_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Growth":
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self._before = memory_of(self.pid)
        self._thread.start()
        return self

    def _look(self):
        while not self._done.wait(LOOK_EVERY_S):
            with contextlib.suppress(OSError):  # the process has ended
                self._note(memory_of(self.pid))

    def _note(self, now: dict[str, int]):
        self.anonymous_bytes = max(self.anonymous_bytes, now["RssAnon"] - self._before["RssAnon"])
        self.file_bytes = max(self.file_bytes, now["RssFile"] - self._before["RssFile"])

    def as_dict(self) -> dict[str, int]:
        names = ("peak_bytes", "anonymous_bytes", "file_bytes")
        return {name: getattr(self, name) for name in names}

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()
        now = memory_of(self.pid)
        self._note(now)
        self.peak_bytes = now["VmHWM"] - self._before["VmRSS"]
