"""The one trace of the process, and the progress bars of loading."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import comfy.utils

from ...offload_core.trace.events import Trace


@functools.cache
def recording() -> Trace:
    """The trace that all components of the process write to."""
    return Trace()


# The app's progress on the node that is running. The app raises its interrupt from these calls: callers must clean up
# in `finally`.


def step_progress(total: int) -> Callable[[int], None]:
    """For few, long steps: a callback for the number of steps done out of `total`. Every call is shown.

    The app drops updates of a bar within 0.1 s of the previous one, so each step gets a bar of its own.
    """
    return lambda done: comfy.utils.ProgressBar(total).update_absolute(done)


def bytes_progress() -> Callable[[int, int], None]:
    """For many small steps: a callback for (bytes done, total bytes). The app limits how often it shows them.

    A bar never goes back, so a callback with fewer bytes or another total starts a new one.
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
    """For `total` scattered steps: a callback for each step; calls beyond `total` are ignored."""
    show, steps = bytes_progress(), itertools.count(1)

    def count() -> None:
        if (done := next(steps)) <= total:
            show(done, total)

    return count
