"""The command line of the planning half. Standard library only.

Each sub-command is a module with `add_parser(subparsers)` and `run(args) -> int`. Exit codes: 0 done, 1 the output
could not be written, 2 bad input, with one line on stderr that says what was given and what is allowed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn

from .errors import BudgetError, OffloadError, PlanError

__all__ = ["main", "read_json", "write_json"]

_COMMANDS = ("plan", "advise", "resolve", "trace")
_MAX_INPUT_BYTES = 64 * 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command. Returns the exit code."""
    parser = _Parser(
        prog="python3 -m offload_core",
        description="Plan, without any GPU or model loaded, which layers stay on a device and which are streamed.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules: dict[str, Any] = {
        command: importlib.import_module(f"{__package__}.cli_{command}") for command in _COMMANDS
    }
    for module in modules.values():
        module.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        code = modules[args.command].run(args)
        sys.stdout.flush()
        return int(code)
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`). Without this the interpreter's flush at exit raises once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BudgetError as error:
        allowed = f"{error.smallest_bytes} or more"
        return _refuse(args.command, f"budget_bytes: got {error.asked_bytes}; allowed: {allowed} ({error})")
    except (OffloadError, OSError) as error:
        return _refuse(args.command, str(error))


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without its usage; its sub-commands are of the same class."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def _refuse(command: str, message: str) -> int:
    print(f"offload_core {command}: {' '.join(message.split())}", file=sys.stderr)
    return 2


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
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise PlanError(f"{what}: nested too deeply") from None
    except PlanError:
        raise
    except ValueError as error:  # also raised by int() for a number with too many digits
        raise PlanError(f"{what}: not valid JSON ({error})") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise PlanError.bad_field("field", key, "each field once")
        result[key] = value
    return result


def write_json(value: Any) -> None:
    """Writes one JSON value to stdout, indented."""
    print(json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False))
