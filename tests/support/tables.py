"""What the browser part needs of the Python tables: python3 -m tests.support.tables writes web/tables.js.

tests/core/test_node_table.py fails while the file is not what this makes of the tables.
"""

import json

from offload_core.settings import component_settings as settings
from offload_core.settings import groups, node_table, policy
from tests.support.devkit import paths

FILE = paths.ROOT / "web" / "tables.js"
HEAD = """// Made by `python3 -m tests.support.tables` from `offload_core/settings`: change it there.
"""


def content() -> str:
    """The text of web/tables.js."""
    graph_settings = list(node_table.GRAPH_SETTINGS)
    tables = {
        "NODES": {node_id: [_slot(slot) for slot in slots] for node_id, slots in node_table.NODES.items()},
        "LOADER": node_table.LOADER,
        "APPLY": node_table.APPLY,
        "OPTIONS": node_table.OPTIONS,
        "APP_LOADERS": list(node_table.APP_LOADERS),
        "DECLARED_AS": node_table.DECLARED_AS,
        "GROUPS": list(groups.GROUPS),
        "COMPUTED_ON_CPU": list(node_table.COMPUTED_ON_CPU),
        "CHOICES": [name for name in graph_settings if not node_table.is_gb(name)],
        "SIZES": [name for name in graph_settings if node_table.is_gb(name)],
        "MODES": list(policy.MODES),
        "PLACEMENTS": list(settings.PLACEMENTS),
        "HOST_TIERS": list(settings.HOST_TIERS),
    }
    return HEAD + "".join(_constant(name, value) for name, value in tables.items())


def _slot(slot: node_table.Slot) -> dict:
    needs = {"needs": slot.needs} if slot.needs else {}
    return {"kind": slot.kind, "placement": slot.widgets["placement"], **needs}


def _constant(name: str, value: object) -> str:
    text = _one_line(value)
    if isinstance(value, dict) and len(text) > 100:
        text = "{\n" + "".join(f"  {key}: {_one_line(entry)},\n" for key, entry in value.items()) + "}"
    return f"export const {name} = {text};\n"


def _one_line(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key}: {_one_line(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_one_line, value)) + "]"
    return json.dumps(value).replace('"', "'")


def main() -> None:
    FILE.write_text(content(), encoding="utf-8")


if __name__ == "__main__":
    main()
