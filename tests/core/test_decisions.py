"""Decisions have one form, the index says the same as the files, and what is referred to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "decisions"
FILES = {path.name[:4]: path for path in sorted(FOLDER.glob("*.md")) if path.name != "README.md"}
HEAD = re.compile(r"# (?P<number>\d{4})\. (?P<title>.+)\n\n(?P<date>\d{4}-\d\d-\d\d) · (?P<status>.+)\n\n")
STATUS = re.compile(r"accepted|(superseded (in part )?|extended )?by \d{4}(: .+)?|supersedes (part of )?\d{4}")
ROW = re.compile(r"\| (\d{4}) \| \[(.+)\]\((.+\.md)\) \| (\S+) \| (.+) \|")
SPOKEN_OF = re.compile(r"decisions? (\d{1,4}(?:(?:, | and | to )\d{1,4})*)|decisions/(\d{4})-", re.IGNORECASE)
WHERE = ("offload_core", "bridge", "nodes", "web", "bench", "tests", "docs")


@pytest.mark.parametrize("number", FILES)
def test_a_decision_begins_with_number_title_date_and_status(number):
    head = HEAD.match(FILES[number].read_text(encoding="utf-8"))
    assert head, f"{FILES[number].name} is to begin as docs/decisions/README.md says"
    assert head["number"] == number
    for part in head["status"].split("; "):
        assert STATUS.fullmatch(part), f"{FILES[number].name}: {part!r} is no status; see docs/decisions/README.md"
    for other in re.findall(r"(?:by|supersedes|part of) (\d{4})", head["status"]):
        assert other in FILES, f"{FILES[number].name} names {other}, which there is not"


def test_the_index_has_every_decision_in_its_own_words():
    heads = {number: HEAD.match(path.read_text(encoding="utf-8")) for number, path in FILES.items()}
    expected = [(n, head["title"], FILES[n].name, head["date"], head["status"]) for n, head in heads.items() if head]
    assert ROW.findall((FOLDER / "README.md").read_text(encoding="utf-8")) == expected


def _texts():
    for path in [*ROOT.glob("*.md"), *(path for folder in WHERE for path in (ROOT / folder).rglob("*"))]:
        if path.suffix in (".py", ".js", ".mjs", ".md") and "node_modules" not in path.parts:
            yield path, re.sub(r"\s+(?:# |\* )?", " ", path.read_text(encoding="utf-8"))


def test_every_decision_that_is_spoken_of_exists():
    found = {}
    for path, text in _texts():
        for several, linked in SPOKEN_OF.findall(text):
            for number in re.findall(r"\d+", several or linked):
                found.setdefault(number.zfill(4), path.relative_to(ROOT).as_posix())
    assert len(found) > 10
    assert {number: path for number, path in found.items() if number not in FILES} == {}
