"""What a person may want to know of a component, and is no error: a budget cut to the device, a setting without effect.

Plain data, so that what is shown, and to whom, is never decided by the wording. Knows nothing about who shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Notice", "concerning", "lines"]


@dataclass(frozen=True, slots=True)
class Notice:
    """One remark.

    component  the component that it is about; empty: the whole graph
    code       what it says, for programs: one word for each sentence that there is
    text       the sentence, in one line, with its numbers
    do         what the user can do about it; empty where there is nothing to do
    """

    component: str
    code: str
    text: str
    do: str = ""

    @property
    def line(self) -> str:
        """The sentence and what to do."""
        return f"{self.text}; {self.do}" if self.do else self.text


def concerning(notices: Iterable[Notice], component: str) -> tuple[Notice, ...]:
    """Those about a component, and those about the whole graph."""
    return tuple(notice for notice in notices if notice.component in ("", component))


def lines(notices: Iterable[Notice]) -> tuple[str, ...]:
    """The sentences alone."""
    return tuple(notice.text for notice in notices)
