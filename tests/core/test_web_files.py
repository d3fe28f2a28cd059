"""The browser part as files: who may touch the app, what it loads, and its words in every language."""

import json
import re

import pytest

from tests.support import words
from tests.support.devkit import paths
from tests.support.web_faults import LOOKS, MODULES, REPORT

WEB = paths.ROOT / "web"
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(WEB.glob("*.js"))}
STYLES = {path.name: path.read_text(encoding="utf-8") for path in sorted(WEB.glob("*.css"))}
TABLES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((WEB / "words").glob("*.json"))}
PLACEHOLDER = re.compile(r"\{\w+\}")


def test_one_file_touches_the_app_and_one_registers():
    assert [name for name, text in SCRIPTS.items() if "/scripts/" in text] == ["app_contact.js"]
    imported = re.findall(r"from '(\.\./[^']+)'", "".join(SCRIPTS.values()))
    assert sorted(imported) == ["../../scripts/api.js", "../../scripts/app.js"], (
        "the app's other scripts are deprecated"
    )
    assert [name for name, text in SCRIPTS.items() if re.search(r"\bregister\(\{", text)] == ["layerwise_offload.js"]
    assert not [
        name for name, text in SCRIPTS.items() if name != "app_contact.js" and re.search(r"\bwindow\.app\b", text)
    ]


def test_nothing_is_loaded_from_elsewhere_or_built_from_text():
    for name, text in {**SCRIPTS, **STYLES}.items():
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", re.sub(r"^\s*//.*", "", text, flags=re.M)), name
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name


def test_nothing_is_drawn_on_the_graph():
    assert not re.search(r"onDraw(Fore|Back)ground", "".join(SCRIPTS.values()))


@pytest.mark.parametrize("name", SCRIPTS)
def test_files_are_of_a_readable_size(name):
    assert len(SCRIPTS[name].splitlines()) <= 400


def test_every_language_has_every_word_in_the_order_of_english():
    assert set(TABLES) == {words.ENGLISH, *words.TRANSLATED}
    for language, table in TABLES.items():
        assert list(table) == list(TABLES[words.ENGLISH]), language


@pytest.mark.parametrize("language", words.TRANSLATED)
def test_translations_keep_what_is_filled_in(language):
    for key, text in TABLES[words.ENGLISH].items():
        translated = TABLES[language][key]
        assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(translated)), f"{language} {key}"
        assert translated.strip() and translated != text, f"{language} {key}"


def test_words_that_are_said_are_in_the_table_and_the_others_are_not():
    source = "".join(SCRIPTS.values())
    table = TABLES[words.ENGLISH]
    said = set(re.findall(r"'([a-z_]+(?:\.[a-z_]+)+)'", source)) & set(table)
    literal = set(re.findall(r"say\('([^']+)'", source))
    assert literal <= set(table), literal - set(table)
    families = set(re.findall(r"say\(`([a-z]+\.)\$\{", source))
    unused = [key for key in table if key not in said | literal and not key.startswith(tuple(families))]
    assert unused == []


@pytest.mark.parametrize("fault", [*MODULES, *LOOKS, *REPORT], ids=lambda fault: fault.name)
def test_what_a_seeded_fault_replaces_is_in_its_file_once(fault):
    """A text that has gone seeds nothing; one that occurs twice may seed something else."""
    assert {**SCRIPTS, **STYLES}[fault.file].count(fault.text) == 1, f"{fault.text!r} in {fault.file}"
    assert fault.instead != fault.text
