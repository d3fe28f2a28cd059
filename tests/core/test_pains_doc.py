"""docs/pains.md claims nothing that is not there: 75 rows, each with a state, and every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "pains.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if re.match(r"\| \d", line)]


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`((?:core|runtime|app|web|gpu)/\w+)::(test_\w+)`", text)


def test_every_pain_has_a_state():
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 76)]
    for number, pain, thread, state, why in ROWS:
        assert pain and thread and why, f"row {number} is not finished"
        assert state in ("solved", "not ours", "later"), f"row {number}: {state}"


def test_what_is_solved_names_a_test_and_every_test_named_exists():
    for row in ROWS:
        if row[3] == "solved" and not row[4].startswith("as "):
            assert named_tests(row[4]), f"row {row[0]} names no test"
    for file, name in named_tests(TEXT):
        source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        assert f"def {name}(" in source, f"{file}.py has no {name}"
