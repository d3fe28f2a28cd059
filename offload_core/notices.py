"""What a person may want to know of a component, and is no error: a budget cut to the device, a setting without effect.

Plain data, so that what is shown, and to whom, is never decided by the wording.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .sentences import Sentence, sentence


@dataclass(frozen=True, slots=True)
class Notice:
    """One remark.

    component  the component that it is about; empty: the whole graph
    what       what there is to say, in one line, with its numbers
    do         what the user can do about it; None where there is nothing to do
    """

    component: str
    what: Sentence
    do: Sentence | None = None

    @property
    def code(self) -> str:
        return self.what.code

    @property
    def text(self) -> str:
        """What there is to say, in English."""
        return self.what.text

    @property
    def line(self) -> str:
        """What there is to say and what to do, in English."""
        return self.text if self.do is None else sentence("both", first=self.what, second=self.do).text

    def to_json(self) -> dict[str, Any]:
        """``{"component", "code", "values", "do"}``; `do` is a sentence or None."""
        do = None if self.do is None else self.do.to_json()
        return {"component": self.component, **self.what.to_json(), "do": do}


def concerning(notices: Iterable[Notice], component: str) -> tuple[Notice, ...]:
    """Those about a component, and those about the whole graph."""
    return tuple(notice for notice in notices if notice.component in ("", component))


def notices_json(notices: Iterable[Notice]) -> dict[str, Any]:
    """The members of a document that have them: `warnings`, lines in English, and `notices`, the same as data."""
    notices = list(notices)
    return {"warnings": [notice.line for notice in notices], "notices": [notice.to_json() for notice in notices]}
