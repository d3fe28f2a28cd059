"""A lint rule that ruff does not have: a function has at most 60 lines below its docstring.

ruff counts statements, and one statement may be long. A node's schema is a table and may be longer.
`python -m tests.support.devkit.long_functions` runs it, as `dev.py lint` does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from .foreign_writes import pack_files

MOST_LINES = 60


def long_functions(source: str) -> Iterator[tuple[int, str, int]]:
    """(line, name, lines) of each function that is too long."""
    for part in ast.walk(ast.parse(source)):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) and part.name != "define_schema":
            start = part.body[0].end_lineno if ast.get_docstring(part) else part.body[0].lineno
            lines = (part.end_lineno or 0) - (start or 0)
            if lines > MOST_LINES:
                yield part.lineno, part.name, lines


def main() -> int:
    said = [
        f"{name}:{line}: {function} has {lines} lines below its docstring; {MOST_LINES} at most: divide it"
        for name, source in pack_files().items()
        for line, function, lines in long_functions(source)
    ]
    print("\n".join(said) or "No function is too long.")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
