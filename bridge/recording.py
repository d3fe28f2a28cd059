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
        self.trace.watched = False
        self.trace.forget()


@functools.cache
def recording() -> Recording:
    return Recording()


def progress_bar(total: int) -> Callable[[int], None]:
    """The app's progress on the node that runs now: call it with how much of `total` is done.

    The app raises its interrupt from there when somebody wants to stop: whoever reports must clean up in `finally`.
    """
    bar = comfy.utils.ProgressBar(total)
    return lambda done: bar.update_absolute(done)
