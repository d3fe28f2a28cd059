"""Discovery on the app's own classes in their published sizes: nothing is declared, and everything must be found.

The models are built in a process of their own, because the app keeps global state.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.full_size import default_tree
from bench.full_size_walk import RUNS

ROOT = Path(__file__).resolve().parents[2]

# model: GB of weights, layers, MB of the largest layer
EXPECTED = {
    "flux_dev": (23.80, 57, 680),
    "flux_dev_base_model": (23.80, 57, 680),
    "flux2_dev": (64.45, 63, 1963),
    "chroma": (17.80, 62, 453),
    "wan21_1b": (2.84, 30, 93),
    "wan22_14b": (28.58, 42, 703),
    "wan21_14b_i2v": (32.79, 42, 808),
    "wan22_5b": (10.00, 31, 328),
    "ltxv_2b": (3.85, 28, 135),
    "ltxv_13b": (26.09, 50, 537),
    "ltx2_19b": (39.17, 55, 772),
    "cosmos1_7b": (14.47, 29, 512),
    "qwen_image": (40.86, 60, 680),
    "sd15": (1.72, 44, 99),
    "sdxl": (5.13, 87, 99),
    "clip_l": (0.25, 12, 15),
    "clip_g": (1.39, 32, 40),
    "t5xxl": (9.52, 24, 386),
    "flux_text_encoders": (9.77, 36, 386),
    "umt5xxl": (11.36, 24, 386),
    "qwen25_vl_7b": (15.49, 61, 467),
    "mistral3_24b": (45.80, 40, 1112),
    "gemma3_12b": (24.37, 75, 449),
    "ltx2_text_encoder": (25.82, 76, 1445),
    "ltx2_text_encoder_dual": (26.69, 77, 1541),
    "klein_qwen3_8b": (16.38, 37, 1245),
    "ideogram4_qwen3vl_8b": (17.53, 68, 1245),
    "boogu_qwen3vl_8b": (17.53, 68, 1245),
    "joyimage_qwen3vl_8b": (17.53, 68, 1245),
    "clip_vision_h": (1.26, 32, 40),
    "siglip_384": (0.83, 27, 31),
    "vae_sd": (0.17, 26, 10),
    "vae_flux": (0.17, 26, 10),
    "vae_wan21": (0.25, 24, 16),
    "vae_wan22": (1.41, 20, 114),
    "vae_ltx_v0": (0.84, 19, 114),
    "vae_ltx_v2": (2.49, 20, 453),
}
BLOCKS = {
    "flux_dev": {"double_blocks.": 19, "single_blocks.": 38},
    "flux_dev_base_model": {"diffusion_model.double_blocks.": 19, "diffusion_model.single_blocks.": 38},
    "flux2_dev": {"double_blocks.": 8, "single_blocks.": 48, "double_stream_modulation_": 2},
    "wan22_14b": {"blocks.": 40, "time_projection": 1},
    "ltxv_13b": {"transformer_blocks.": 48},
    "qwen_image": {"transformer_blocks.": 60},
    "cosmos1_7b": {"blocks.block": 28},
    "t5xxl": {"transformer.encoder.block.": 24},
    "qwen25_vl_7b": {"transformer.model.layers.": 28, "transformer.visual.blocks.": 32},
}


def ask(module):
    tree = default_tree()
    if not (tree / "comfy").is_dir():
        pytest.skip(f"no ComfyUI tree at {tree} (`python3 dev.py setup` fetches it)")
    command = [sys.executable, "-m", module, "--tree", str(tree), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def described():
    return ask("bench.full_size")


@pytest.fixture(scope="module")
def walked():
    return ask("bench.full_size_walk")


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_are_found_undeclared(described, name):
    gigabytes, layers, largest_mb = EXPECTED[name]
    row = described[name]
    assert row["total_bytes"] / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert len(row["layers"]) == layers
    assert row["largest_bytes"] / 1e6 == pytest.approx(largest_mb, abs=1)
    assert row["loose_share"] < 0.05


@pytest.mark.parametrize("name", BLOCKS)
def test_which_layers(described, name):
    names = [layer[0] for layer in described[name]["layers"]]
    assert {prefix: sum(n.startswith(prefix) for n in names) for prefix in BLOCKS[name]} == BLOCKS[name]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_unet_units_are_what_the_app_calls(described, name):
    """The app walks TimestepEmbedSequential elements without calling them; deep transformers are split."""
    kinds = {layer[2] for layer in described[name]["layers"]}
    assert "TimestepEmbedSequential" not in kinds
    assert "ResBlock" in kinds
    deep = sum(layer[2] == "BasicTransformerBlock" for layer in described[name]["layers"])
    assert deep == (60 if name == "sdxl" else 0)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_byte_is_accounted_for(described, name):
    row = described[name]
    found = sum(layer[1] for layer in row["layers"]) + sum(table[1] for table in row["tables"]) + row["loose_bytes"]
    assert row["total_bytes"] <= found <= row["total_bytes"] * 1.01 + (1 << 20)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_adviser_says_the_same_from_names_and_shapes(described, name):
    """The same layers, in any order; device bytes and the largest layer, which sizes the ring, within 1 %; what is
    streamed within 3 %.
    """
    row = described[name]
    advised, layer_bytes = row["advised"], sum(layer[1] for layer in row["layers"])
    assert sorted(advised["layers"]) == sorted(layer[0] for layer in row["layers"])
    assert advised["device_bytes"] == pytest.approx(layer_bytes + row["loose_bytes"], rel=0.01)
    assert advised["largest_bytes"] == pytest.approx(row["largest_bytes"], rel=0.01)
    assert advised["layer_bytes"] == pytest.approx(layer_bytes, rel=0.03)


def test_blocks_in_a_dictionary_leave_room_on_a_small_card(described):
    """Cosmos 1: one layer of 14.5 GB, before dictionaries were looked into."""
    assert described["cosmos1_7b"]["advised"]["smallest_budget"] <= 0.6e9
    assert described["cosmos1_7b"]["largest_bytes"] + described["cosmos1_7b"]["loose_bytes"] <= 0.6e9


@pytest.mark.parametrize(
    "name, limit_gb",
    [
        ("klein_qwen3_8b", 1.3),
        ("ideogram4_qwen3vl_8b", 1.3),
        ("boogu_qwen3vl_8b", 1.3),
        ("joyimage_qwen3vl_8b", 1.3),
        ("ltx2_text_encoder", 1.6),
        ("ltx2_text_encoder_dual", 1.6),
    ],
)
def test_one_projection_does_not_ask_for_three_of_its_size(described, name, limit_gb):
    """What these encoders ask the app for: 3.7 GB, 4.4 GB and 7.0 GB where the ring was three of the largest layer."""
    row = described[name]
    assert row["largest_bytes"] <= row["usual_budget"] <= limit_gb * 1e9


@pytest.mark.parametrize("name", RUNS)
def test_layers_are_called_and_not_read_from_outside(walked, name):
    """In the app's own forward, in full size: each layer is called, and its parameters are used in that call only."""
    row = walked[name]
    assert row["never_called"] == []
    assert row["used_outside"] == []
    assert row["visits"] >= row["layers"]
    again = row["visits"] - row["layers"]
    assert row["jumps"] <= (4 if again else 0), "the guess for the first pass is wrong"
