"""The planning half needs the standard library only, and importing it does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "offload_core").glob("*.py"))
MODULES = [f"offload_core.{path.stem}" for path in FILES if path.stem != "__main__"]

PROGRAM = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import importlib
for name in sys.argv[2:]:
    importlib.import_module(name)
known = {*sys.stdlib_module_names, "offload_core", "__main__"}
outside = sorted(name for name in sys.modules if name.partition(".")[0] not in known)
assert not outside, outside
assert not [name for name in sys.modules if name.startswith("offload_core.runtime")]
assert threading.active_count() == 1
"""


def isolated(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter without site-packages, user settings or environment (-I) and without site (-S)."""
    command = [sys.executable, "-I", "-S", "-c", program, str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_planning_imports_the_standard_library_only() -> None:
    result = isolated(PROGRAM, *MODULES)
    assert result.returncode == 0, result.stderr


def test_the_package_itself_imports_nothing() -> None:
    result = isolated(
        "import sys; sys.path.insert(0, sys.argv[1]); import offload_core; "
        "assert [m for m in sys.modules if m.startswith('offload_core')] == ['offload_core']"
    )
    assert result.returncode == 0, result.stderr
