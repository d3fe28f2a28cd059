"""The words of the node schemas, and their translations: python -m tests.support.words brings locales/ up to date.

English is taken from the running app. A translation is kept while its English stays the same, and taken over from the
same English elsewhere; what is left comes out empty, for a person to fill in (tests/core/test_words.py fails until
then). What the frontend reads and where: nodeDefs.json by node id, inputs by name, outputs by index.
"""

import json
import re
import sys
from pathlib import Path

from tests.support.devkit import paths

LOCALES = paths.ROOT / "locales"
ENGLISH = "en"
TRANSLATED = ("ja", "zh")
NODE_DEFS = "nodeDefs.json"
PREFIX = "LayerwiseOffload"

Words = dict[tuple[str, ...], str]


def node_defs(object_info: dict) -> dict:
    """What locales/en/nodeDefs.json has to say, from the app's own account of our nodes."""
    return {node_id: _node(object_info[node_id]) for node_id in sorted(object_info) if node_id.startswith(PREFIX)}


def _node(info: dict) -> dict:
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            inputs[name] = {"name": name, "tooltip": spec[1]["tooltip"]}
    outputs = {}
    for index, (kind, name, tooltip) in enumerate(zip(info["output"], info["output_name"], info["output_tooltips"])):
        # an output that is called like its type is shown in the app's own word for the type
        outputs[str(index)] = {"name": name, "tooltip": tooltip} if name != kind else {"tooltip": tooltip}
    words = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
    return {**words, "outputs": outputs}


def load(language: str, file: str) -> dict:
    path = LOCALES / language / file
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def save(language: str, file: str, words: dict):
    path = LOCALES / language / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(words, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def flat(tree: dict, above: tuple[str, ...] = ()) -> Words:
    """Every text by its path."""
    found: Words = {}
    for key, value in tree.items():
        found.update(flat(value, (*above, key)) if isinstance(value, dict) else {(*above, key): value})
    return found


def shaped(words: Words) -> dict:
    """The inverse of `flat`."""
    tree: dict = {}
    for path, text in words.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = text
    return tree


def carried(english: Words, old_english: Words, old: Words) -> Words:
    """The translation of `english`, as far as `old`, which translates `old_english`, has it."""
    known = {(path[-1], text): old[path] for path, text in old_english.items() if old.get(path)}
    return {
        path: old.get(path, "") if old_english.get(path) == text else known.get((path[-1], text), "")
        for path, text in english.items()
    }


def code_words(text: str) -> list[str]:
    """What a translation must bring over as it is: numbers, units, paths, ids, placeholders, choices (`auto: ...`)."""
    words = re.findall(r"\d[\d,]*\d|\d|[a-z]+[_/][a-z0-9_/]+|GB|\{\w+\}", text)
    return words + re.findall(r"(?:^|[=.。] ?)([a-z0-9]+)[:：]", text, re.MULTILINE)


def bring_up_to_date(object_info: dict) -> dict[str, list[str]]:
    """Writes nodeDefs.json of every language. Returns what is still without a translation, by language."""
    old_english, tree = flat(load(ENGLISH, NODE_DEFS)), node_defs(object_info)
    missing = {}
    for language in TRANSLATED:
        words = carried(flat(tree), old_english, flat(load(language, NODE_DEFS)))
        missing[language] = sorted({flat(tree)[path] for path, text in words.items() if not text})
        save(language, NODE_DEFS, shaped(words))
    save(ENGLISH, NODE_DEFS, tree)
    return missing


def main() -> int:
    from tests.support.app_server import AppServer

    with AppServer("cpu") as server:
        missing = bring_up_to_date(server.object_info())
    for language, texts in missing.items():
        print(f"{language}: {len(texts)} without a translation in {Path(LOCALES.name) / language / NODE_DEFS}")
        for text in texts:
            print(f"    {text!r}")
    return 1 if any(missing.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
