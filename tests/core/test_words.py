"""Locales and help pages, as far as files tell. That English is what the schemas say: tests/app/test_words.py."""

import re
from collections import Counter

import pytest

from tests.support import words
from tests.support.devkit import paths

FILES = sorted(path.name for path in (words.LOCALES / words.ENGLISH).glob("*.json"))
APP_FILES = {"main.json", "nodeDefs.json", "settings.json", "commands.json"}
COMPILED = "{}@|%"
"""What vue-i18n takes for syntax. Tooltips of nodes are shown raw, everything else is compiled."""
SCRIPTS = {"zh": (("\u4e00", "\u9fff"),), "ja": (("\u3040", "\u30ff"), ("\u4e00", "\u9fff"))}


def texts(language: str, file: str) -> words.Words:
    return words.flat(words.load(language, file))


def test_files_are_those_the_app_reads():
    assert words.NODE_DEFS in FILES and set(FILES) <= APP_FILES
    assert sorted(path.name for path in words.LOCALES.iterdir()) == sorted((words.ENGLISH, *words.TRANSLATED))


@pytest.mark.parametrize("language", words.TRANSLATED)
@pytest.mark.parametrize("file", FILES)
def test_translations_have_the_keys_of_english_in_its_order(file, language):
    assert list(texts(language, file)) == list(texts(words.ENGLISH, file))
    assert {path.name for path in (words.LOCALES / language).iterdir()} == set(FILES)


@pytest.mark.parametrize("language", words.TRANSLATED)
@pytest.mark.parametrize("file", FILES)
def test_translations_bring_over_numbers_choices_and_ids(file, language):
    english, translated = texts(words.ENGLISH, file), texts(language, file)
    for path, text in english.items():
        if path[-1] != "name":
            lost = Counter(words.code_words(text)) - Counter(words.code_words(translated[path]))
            assert not lost, f"{language} {'.'.join(path)}: without {sorted(lost)}"


@pytest.mark.parametrize("language", words.TRANSLATED)
@pytest.mark.parametrize("file", FILES)
def test_nothing_is_left_in_english(file, language):
    names = ("CLIP", "VAE", "ControlNet", "Layerwise Offload")
    for path, text in texts(language, file).items():
        theirs = any(first <= letter <= last for letter in text for first, last in SCRIPTS[language])
        assert theirs or text.rstrip("。") in names, f"{language} {'.'.join(path)}: {text!r}"


@pytest.mark.parametrize("language", words.TRANSLATED)
def test_what_is_the_same_in_english_is_the_same_in_translation(language):
    english, translated = (texts(name, words.NODE_DEFS) for name in (words.ENGLISH, language))
    seen: dict = {}
    for path, text in english.items():
        assert seen.setdefault((path[-1], text), translated[path]) == translated[path], ".".join(path)


@pytest.mark.parametrize("language", (words.ENGLISH, *words.TRANSLATED))
@pytest.mark.parametrize("file", FILES)
def test_no_text_is_syntax_to_the_frontend(file, language):
    for path, text in texts(language, file).items():
        raw = file == words.NODE_DEFS and path[-1] == "tooltip"
        assert text.strip() == text and text
        assert raw or not set(text) & set(COMPILED), f"{language} {'.'.join(path)}: {text!r}"


def test_carrying_translations_over_keeps_takes_over_and_leaves_empty():
    old_english = {("A", "tooltip"): "one", ("B", "tooltip"): "two"}
    old = {("A", "tooltip"): "eins", ("B", "tooltip"): "zwei"}
    english = {("A", "tooltip"): "one", ("B", "tooltip"): "two or more", ("C", "tooltip"): "two", ("C", "name"): "one"}
    assert words.carried(english, old_english, old) == {
        ("A", "tooltip"): "eins",
        ("B", "tooltip"): "",
        ("C", "tooltip"): "zwei",
        ("C", "name"): "",
    }


def test_every_node_has_a_help_page_and_no_page_is_without_a_node():
    pages = sorted(path.stem for path in (paths.ROOT / "web" / "docs").glob("*.md"))
    assert pages == sorted(words.load(words.ENGLISH, words.NODE_DEFS))


def test_help_pages_name_every_input_and_output():
    for node_id, entry in words.load(words.ENGLISH, words.NODE_DEFS).items():
        page = (paths.ROOT / "web" / "docs" / f"{node_id}.md").read_text()
        assert page.startswith(f"# {entry['display_name']}\n")
        named = [*entry["inputs"], *(output["name"] for output in entry["outputs"].values() if "name" in output)]
        assert [name for name in named if name not in page] == [], node_id


@pytest.mark.parametrize("language", words.TRANSLATED)
@pytest.mark.parametrize("node_id", sorted(words.load(words.ENGLISH, words.NODE_DEFS)))
def test_help_pages_are_translated_whole(node_id, language):
    docs = paths.ROOT / "web" / "docs"
    english, page = (docs / f"{node_id}.md").read_text(), (docs / node_id / f"{language}.md").read_text()
    assert page.startswith(f"# {words.load(language, words.NODE_DEFS)[node_id]['display_name']}\n")
    for pattern in (r"`[^`]+`", r"(?m)^#+ ", r"(?m)^ *- ", r"\d[\d.,]*\d|\d"):
        assert sorted(re.findall(pattern, page)) == sorted(re.findall(pattern, english)), pattern
