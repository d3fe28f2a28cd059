"""The nodes as the app shows them: ids, inputs and defaults are public names for ever."""

import json

import pytest

from tests.support.devkit import paths

pytestmark = pytest.mark.app

NODE_IDS = ("LayerwiseOffloadDiffusionModelLoader", "LayerwiseOffloadApply")
GOLDEN = paths.ROOT / "tests" / "golden" / "nodes.json"


def schema(server, node_id: str) -> dict:
    """What a saved workflow or an API prompt depends on."""
    info = server.object_info(node_id)[node_id]
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            kind, options = spec[0], dict(spec[1]) if len(spec) > 1 else {}
            options.pop("tooltip", None)
            if name == "model_name":  # the files of this machine
                kind = "COMBO"
                options.pop("options", None)
            inputs[name] = [group, kind, options]
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "inputs": inputs,
        "order": info["input_order"],
        "outputs": info["output"],
        "output_names": info["output_name"],
    }


def test_schemas_are_the_golden_ones(sim):
    """On purpose changed? Delete the golden file, run this test once, and look at the difference."""
    found = {node_id: schema(sim, node_id) for node_id in NODE_IDS}
    if not GOLDEN.is_file():
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        pytest.fail(f"there was no {GOLDEN.name}; it has been written: check it in")
    assert found == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_everything_is_explained(sim, node_id):
    info = sim.object_info(node_id)[node_id]
    assert len(info["description"]) > 40
    for group in info["input"].values():
        for name, spec in group.items():
            assert len(spec[1].get("tooltip", "")) > 10, f"{name} has no tooltip"
    assert all(info["output_tooltips"])
    assert (paths.ROOT / "web" / "docs" / f"{node_id}.md").is_file()
    page = sim.text(f"/extensions/layerwise-offload/docs/{node_id}.md")
    for group in info["input"].values():
        for name in group:
            assert name in page, f"the help page does not speak of {name}"


def test_no_other_node_of_ours_is_there(sim):
    ours = [name for name, info in sim.object_info().items() if "layerwise-offload" in info.get("python_module", "")]
    assert sorted(ours) == sorted(NODE_IDS)


def test_the_report_is_plain_data_and_empty_at_first(sim):
    report = sim.report()
    assert report == {"schema": 1, "components": []}
