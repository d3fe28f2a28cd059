"""Which component runs next on a device, after how many passes of the one that runs now.

Consecutive passes of one component in one use are a run. A prompt is a sequence of runs, which the next prompt repeats:
an encoder twice, the diffusion model for twenty passes, the autoencoder once. A run is expected to have the passes, and
the follower, that it had after the same run before; so two samplers in one graph are told apart. After a run that it
has not followed yet, it is expected to be like its other runs. Every answer is a guess, and may be wrong. Components
are numbers, 0 or more. Standard library only.
"""

from __future__ import annotations

from .forecasts import Forecasts

KEPT = 64
"""Pairs of runs whose continuation is kept."""

_ANY = -1
"""In place of the component of the run before."""


class Succession:
    """The runs on one device."""

    def __init__(self) -> None:
        self._before: int | None = None
        """The component of the run before this one."""
        self._component: int | None = None
        """The component of the run under way, or of the last one."""
        self._passes = 0
        """Passes of this run that have begun."""
        self._used_again = False
        """The component's next pass begins another run of it."""
        self._forecasts: Forecasts[tuple[int | None, int], tuple[int, int]] = Forecasts()
        """(component of a run, of the next) -> (passes of the latter, component after it)."""

    def use_begins(self, component: int) -> None:
        """A new use of the component begins: its next pass belongs to another run than its last one."""
        self._used_again = self._used_again or component == self._component

    def pass_begins(self, component: int) -> int | None:
        """A pass begins. Returns the component that is expected to make the next pass, if that is another one; None: it
        is this one, or not known."""
        if component != self._component or self._used_again:
            self._begin_run(component)
        self._passes += 1
        known = self._forecasts
        forecast = known.expected((self._before, component)) or known.expected((_ANY, component))
        if forecast is None or forecast[0] != self._passes or forecast[1] == component:
            return None
        return forecast[1]

    def _begin_run(self, component: int) -> None:
        if self._component is not None:
            for before in (self._before, _ANY):
                self._forecasts.learn((before, self._component), (self._passes, component))
            self._forecasts.keep_newest(KEPT)
        self._before, self._component = self._component, component
        self._passes, self._used_again = 0, False
