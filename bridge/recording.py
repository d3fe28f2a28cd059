"""The one trace into which all components write, for as long as the process lives, and the progress bars of loading.

It is made when the first component is attached or the first browser looks, not at import.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import comfy.utils

from ..offload_core.trace import Trace


class Recording:
    """Owner of the trace. `close` forgets what was recorded; components that are alive go on writing."""

    def __init__(self) -> None:
        self.trace = Trace()

    def close(self) -> None:
        self.trace.watch(False)
        self.trace.forget()


@functools.cache
def recording() -> Recording:
    return Recording()


# The app's progress on the node that runs now. The app raises its interrupt from these calls when somebody wants to
# stop: whoever reports must clean up in `finally`.


def step_progress(total: int) -> Callable[[int], None]:
    """For a few steps that take long: call it with how many of `total` are done. Each one is shown.

    The app leaves out what a bar says within a tenth of a second of what it has said before, so each step gets a bar.
    """
    return lambda done: comfy.utils.ProgressBar(total).update_absolute(done)


def bytes_progress() -> Callable[[int, int], None]:
    """For many small steps: call it with how many of how many are done. The app shows as many as make sense.

    A bar says nothing less than it has said, so what begins anew gets a new one.
    """
    bar, last = None, 0

    def show(done: int, of: int) -> None:
        nonlocal bar, last
        if bar is None or done <= last or of != bar.total:
            bar = comfy.utils.ProgressBar(of)
        last = done
        bar.update_absolute(done)

    return show


def count_progress(total: int) -> Callable[[], None]:
    """For what happens here and there, `total` times: call it each time. What comes after that is not shown."""
    show, done = bytes_progress(), 0

    def count() -> None:
        nonlocal done
        done += 1
        if done <= total:
            show(done, total)

    return count
