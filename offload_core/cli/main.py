"""The command line of the planning half. Standard library only.

Each sub-command is a module with `add_parser(subparsers)` and `run(args) -> int`. Exit codes: 0 done, 1 the output
could not be written, 2 bad input, with one line on stderr that says what was given and what is allowed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import BudgetError, OffloadError
from . import advise, plan, resolve, trace

_COMMANDS = {"plan": plan, "advise": advise, "resolve": resolve, "trace": trace}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command. Returns the exit code."""
    parser = _Parser(
        prog="python3 -m offload_core",
        description="Plan, without any GPU or model loaded, which layers stay on a device and which are streamed.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS.values():
        module.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        code = _COMMANDS[args.command].run(args)
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
