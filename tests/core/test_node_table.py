"""The table of nodes by itself. Against the nodes' own schemas: tests/app/test_nodes.py."""

import re

import pytest

from offload_core.settings import node_table
from offload_core.settings.component_settings import SETTINGS
from offload_core.settings.groups import GROUPS, group_of, normalise_name
from offload_core.settings.node_table import APP_LOADERS, GRAPH_SETTINGS, NODES, OPTIONS_WIDGETS, Slot
from tests.support import tables
from tests.support.devkit import paths

KINDS = {*GROUPS, node_table.CONTROLNET}
GROUPS_AND_CONTROLNET = ("dit", "text_encoder", "vae", "image_encoder", "controlnet")
"""In the order of the Apply node's outputs, which saved workflows have by number."""
SLOTS = [(node_id, slot) for node_id, slots in {**NODES, **APP_LOADERS}.items() for slot in slots]


def test_the_browsers_tables_are_made_of_these():
    assert tables.FILE.read_text(encoding="utf-8") == tables.content(), "run python3 -m tests.support.tables"


@pytest.mark.parametrize("name", sorted(path.name for path in (paths.ROOT / "web").glob("*.js")))
def test_no_script_repeats_what_the_tables_say(name):
    text = (paths.ROOT / "web" / name).read_text(encoding="utf-8")
    if name == tables.FILE.name:
        return
    ids = [node_id for node_id in (*NODES, *APP_LOADERS, node_table.OPTIONS) if re.search(rf"\b{node_id}\b", text)]
    assert not ids, f"{ids} in {name}: web/tables.js has what is to be known of them"


def test_every_word_of_the_tables_is_used_by_a_script():
    scripts = [path.read_text(encoding="utf-8") for path in (paths.ROOT / "web").glob("*.js")]
    for name in re.findall(r"export const (\w+)", tables.content()):
        assert sum(bool(re.search(rf"\b{name}\b", text)) for text in scripts) > 1, name


def test_every_kind_has_a_loader_and_can_be_taken_over():
    loaders = {slot.kind for node_id, slot in SLOTS if node_id in NODES and node_id != node_table.APPLY}
    assert loaders == KINDS
    assert [slot.kind for slot in NODES[node_table.APPLY]] == [*GROUPS_AND_CONTROLNET, *node_table.APPLY_ONLY]


def test_what_only_apply_takes_over_is_in_no_group_and_so_streamed_only_when_named():
    assert [group_of(kind) for kind in node_table.APPLY_ONLY] == [None] * len(node_table.APPLY_ONLY)
    assert all(normalise_name(kind) == kind for kind in node_table.APPLY_ONLY)


@pytest.mark.parametrize("node_id, slot", SLOTS)
def test_a_slot_is_filled_by_files_or_by_a_wire(node_id, slot):
    assert bool(slot.folder) == bool(slot.files) == (node_id != node_table.APPLY)
    assert slot.folder or slot.needs, "what comes by a wire is not there without it"


@pytest.mark.parametrize("node_id", NODES)
def test_the_slots_of_a_node_differ(node_id):
    slots = NODES[node_id]
    assert len({slot.kind for slot in slots}) == len(slots)
    assert len({slot.widgets["placement"] for slot in slots}) == len(slots), "each has a placement of its own"


def test_a_slot_names_its_widgets():
    slot = Slot("dit", "checkpoints", ("ckpt_name",), prefix="dit_")
    assert slot.widgets == {
        "placement": "dit_placement",
        "budget_bytes": "dit_budget_gb",
        "ring_bytes": "dit_ring_gb",
        "lora_mode": "lora_mode",
    }
    assert Slot("vae", precision="vae_precision").widgets["precision"] == "vae_precision"
    assert "lora_mode" not in Slot("vae").widgets


def test_the_loader_of_a_whole_pipeline_alone_has_the_workflows_budget():
    nodes = {node_id: [slot.widgets.get("workflow_budget_bytes") for slot in slots] for node_id, slots in NODES.items()}
    assert nodes.pop(node_table.LOADER) == ["workflow_budget_gb"] * 4
    assert {widget for widgets in nodes.values() for widget in widgets} == {None}


def test_what_is_chosen_is_brought():
    slot = Slot("image_encoder", "clip_vision", ("first", "second"), needs="first")
    for nothing in ({}, {"first": None}, {"first": ""}, {"first": "none"}):
        assert not slot.is_brought(nothing) and slot.names(nothing) == []
    assert slot.is_brought({"first": ["7", 0]}), "it comes from another node"
    assert slot.names({"first": "a", "second": "none"}) == ["a"] and slot.names({"second": "b", "first": "a"}) == [
        "a",
        "b",
    ]


def test_options_speak_of_settings_that_there_are():
    assert set(GRAPH_SETTINGS.values()) == set(SETTINGS) - {"precision"}, "a precision is chosen where a VAE is loaded"
    assert {setting for _, setting in OPTIONS_WIDGETS.values()} < set(SETTINGS)
    assert OPTIONS_WIDGETS["pin_budget_gb"] == ("all", "pin_budget_bytes")
    assert OPTIONS_WIDGETS["peer_budget_gb"] == ("all", "peer_budget_bytes")
    assert OPTIONS_WIDGETS["workflow_budget_gb"] == ("all", "workflow_budget_bytes")
    assert OPTIONS_WIDGETS["workflow_host_gb"] == ("all", "workflow_host_bytes")
    assert OPTIONS_WIDGETS["image_encoder_budget_gb"] == ("image_encoder", "budget_bytes")
