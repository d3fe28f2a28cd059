"""JSON from a stream, with one line that says what is wrong, and JSON to stdout."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from ..errors import PlanError
from ..fields import no_duplicates

_MAX_INPUT_BYTES = 64 * 1024 * 1024


def read_json(stream: BinaryIO, what: str) -> Any:
    """The JSON value in a stream. Raises PlanError in one line for anything that is not JSON in UTF-8."""
    data = stream.read(_MAX_INPUT_BYTES + 1)
    if len(data) > _MAX_INPUT_BYTES:
        raise PlanError(f"{what}: longer than {_MAX_INPUT_BYTES} bytes, the most that is read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(f"{what}: not UTF-8 text (byte {error.start})") from None
    try:
        # NaN and Infinity are accepted here: the check of their field refuses them and names the field.
        once = no_duplicates(lambda key: PlanError.bad_field("field", key, "each field once"))
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise PlanError(f"{what}: nested too deeply") from None
    except PlanError:
        raise
    except ValueError as error:  # also raised by int() for a number with too many digits
        raise PlanError(f"{what}: not valid JSON ({error})") from None


def write_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False))
