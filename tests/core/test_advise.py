"""The adviser: right bytes, recognised blocks, plausible times, on headers of the real models' shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from offload_core.advise import GPUS, Machine, advise, budget_curve
from offload_core.check import check_plan
from offload_core.model_files import ModelFile, read_models
from offload_core.model_shape import Compute, components_of, inventory_of
from offload_core.safetensors_header import TensorInfo
from tests.core.shapes import GB
from tests.core.test_headers import gguf, safetensors

ROOT = Path(__file__).parents[2]
# Small files `dev.py` generates for the tests in the app; nothing here needs them.
DEV_MODELS = sorted(path for path in (ROOT / ".dev" / "models").rglob("*.safetensors") if path.is_file())


def tensors_of(shapes: dict[str, list[int]], width: int = 2) -> tuple[TensorInfo, ...]:
    """Tensors as a header would give them, without any file."""
    result, position = [], 0
    for name, shape in shapes.items():
        size = width
        for length in shape:
            size *= length
        result.append(TensorInfo(name, "BF16", tuple(shape), position, position + size, Path("/m/diffusion_models/m")))
        position += size
    return tuple(result)


def flux_shapes() -> dict[str, list[int]]:
    """FLUX.1-dev, matrices only."""
    d = 3072
    shapes = {"img_in.weight": [d, 64], "txt_in.weight": [d, 4096], "final_layer.linear.weight": [64, d]}
    shapes["final_layer.adaLN_modulation.1.weight"] = [2 * d, d]
    for index in range(19):
        for stream in ("img", "txt"):
            block = f"double_blocks.{index}.{stream}"
            shapes[f"{block}_mod.lin.weight"] = [6 * d, d]
            shapes[f"{block}_attn.qkv.weight"] = [3 * d, d]
            shapes[f"{block}_attn.proj.weight"] = [d, d]
            shapes[f"{block}_mlp.0.weight"] = [4 * d, d]
            shapes[f"{block}_mlp.2.weight"] = [d, 4 * d]
    for index in range(38):
        block = f"single_blocks.{index}"
        shapes[f"{block}.modulation.lin.weight"] = [3 * d, d]
        shapes[f"{block}.linear1.weight"] = [7 * d, d]
        shapes[f"{block}.linear2.weight"] = [d, 5 * d]
    return shapes


def t5_shapes() -> dict[str, list[int]]:
    """T5-XXL's encoder, matrices only."""
    shapes = {"shared.weight": [32128, 4096]}
    for index in range(24):
        block = f"encoder.block.{index}.layer"
        for name in "qkvo":
            shapes[f"{block}.0.SelfAttention.{name}.weight"] = [4096, 4096]
        for name, shape in (("wi_0", [10240, 4096]), ("wi_1", [10240, 4096]), ("wo", [4096, 10240])):
            shapes[f"{block}.1.DenseReluDense.{name}.weight"] = shape
    return shapes


def model(shapes: dict[str, list[int]]) -> ModelFile:
    tensors = tensors_of(shapes)
    return ModelFile("m.safetensors", (tensors[0].path,), tensors)


def machine(gpu: str, device_gb: float) -> Machine:
    tflops, rate = GPUS[gpu]
    return Machine(int(device_gb * GB), rate * 1e9, tflops, gpu)


def test_flux_on_a_4090() -> None:
    (answer,) = advise([model(flux_shapes())], machine("RTX 4090", 12))
    assert (answer.component, answer.layers) == ("dit", 57)
    assert answer.file_bytes == pytest.approx(23.7 * GB, rel=0.01)
    assert answer.plan is not None and check_plan(answer.plan, budget_bytes=12 * GB) == []
    assert answer.plan.device_bytes + answer.streamed_bytes >= answer.total_bytes
    # An independent model of this card gives 551 ms resident at 1024 x 1024, free from about 9.9 GB of residents on.
    assert answer.resident_ns / 1e6 == pytest.approx(551, rel=0.1)
    assert answer.free_bytes is not None and 9 * GB < answer.free_bytes < 13 * GB
    assert answer.whole_ns is None


def test_flux_where_everything_fits() -> None:
    (answer,) = advise([model(flux_shapes())], machine("RTX 5090", 32))
    assert answer.plan is not None and answer.plan.streamed == ()
    assert answer.layerwise_ns == answer.resident_ns
    assert answer.whole_ns is not None and answer.whole_ns > answer.resident_ns
    assert answer.host_bytes == 0


def test_t5_is_streamed_and_its_table_stays_on_the_host() -> None:
    (answer,) = advise([model(t5_shapes())], machine("RTX 4090", 4))
    assert (answer.component, answer.layers, answer.passes) == ("text_encoder", 24, 1)
    assert answer.file_bytes == pytest.approx((9.26 + 0.263) * GB, rel=0.01)
    assert answer.file_bytes - answer.total_bytes == 32128 * 4096 * 2
    assert answer.plan is not None and answer.plan.ring_bytes < 1.3 * GB
    assert answer.layerwise_ns is not None and answer.layerwise_ns / 1e6 == pytest.approx(372, rel=0.02)
    assert answer.free_bytes is None


def test_too_small_a_device_is_an_answer_not_a_crash() -> None:
    (answer,) = advise([model(flux_shapes())], machine("RTX 3060", 0.5))
    assert answer.plan is None and answer.problem is not None and str(answer.smallest_bytes) in answer.problem
    assert json.dumps(answer.to_json())


def test_a_checkpoint_is_taken_apart() -> None:
    shapes = {f"model.diffusion_model.input_blocks.{i}.0.weight": [1024, 1024] for i in range(8)}
    shapes |= {f"first_stage_model.decoder.up.{i}.conv.weight": [1024, 1024] for i in range(4)}
    shapes |= {f"cond_stage_model.transformer.text_model.encoder.layers.{i}.w": [1024, 1024] for i in range(4)}
    shapes["model_ema.decay"] = [1]
    parts = components_of(tensors_of(shapes))
    counts = {kind: len(members) for kind, members in parts.items()}
    assert counts == {"dit": 8, "vae": 4, "text_encoder": 4, "other": 1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "dit"),
        ("transformer_blocks.0.attn.to_q.weight", "dit"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "text_encoder"),
        ("model.embed_tokens.weight", "text_encoder"),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", "image_encoder"),
        ("decoder.up.0.block.0.conv1.weight", "vae"),
        ("lora_unet_x.lora_up.weight", "lora"),
        ("something.weight", "other"),
    ],
)
def test_components_are_told_by_names(name: str, kind: str) -> None:
    assert list(components_of(tensors_of({name: [2, 2]}))) == [kind]


def test_folder_names_help_where_tensor_names_do_not() -> None:
    assert list(components_of(tensors_of({"w": [1]}), hint="vae")) == ["vae"]
    assert list(components_of(tensors_of({"w": [1]}), hint="unet")) == ["dit"]


def test_layers_come_in_order_and_keep_all_bytes() -> None:
    shapes = {f"blocks.{index}.w": [1024, 1024] for index in (10, 9, 1, 0)}
    shapes |= {"head.weight": [64, 64], "tail.0.weight": [4, 4]}
    tensors = tensors_of(shapes)
    inv = inventory_of("dit", tensors, Compute(100.0))
    assert [layer.name for layer in inv.layers] == ["blocks.0", "blocks.1", "blocks.9", "blocks.10"]
    assert inv.total_bytes == sum(tensor.bytes for tensor in tensors)


def test_very_large_children_are_split() -> None:
    shapes = {f"middle_block.1.transformer_blocks.{i}.w": [2048, 2048] for i in range(10)}
    shapes |= {f"input_blocks.{i}.0.w": [1024, 1024] for i in range(6)}
    tensors = tensors_of(shapes)
    inv = inventory_of("dit", tensors, Compute(100.0))
    assert "middle_block.1.transformer_blocks.3" in {layer.name for layer in inv.layers}
    assert inv.total_bytes == sum(tensor.bytes for tensor in tensors)


def test_small_layers_stay() -> None:
    inv = inventory_of("dit", tensors_of({f"blocks.{i}.w": [64, 64] for i in range(4)}), Compute(100.0))
    assert all(layer.keep == "under 1 MB" for layer in inv.layers)


def test_more_memory_is_never_slower() -> None:
    curve = budget_curve(model(flux_shapes()), machine("RTX 5090", 16), points=8)["dit"]
    times = [time for _, time in curve]
    assert all(later <= earlier * 1.01 for earlier, later in zip(times, times[1:]))
    assert times[-1] < times[0]


# ---- the command


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "offload_core", "advise", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    path.write_bytes(safetensors({f"double_blocks.{i}.w": ("BF16", [1024, 1024]) for i in range(6)}))
    return path


def test_the_table(small_model: Path) -> None:
    result = command(small_model, "--device-gb", "0.007", "--host-gb", "0.001", "--gpu", "rtx 4090")
    assert (result.returncode, result.stderr) == (0, "")
    for words in ("small.safetensors", "dit x20", "12.6 MB", "RTX 4090", "costs nothing from", "more than there"):
        assert words in result.stdout


def test_json(small_model: Path) -> None:
    options = ("--device-gb", "0.007", "--h2d-gbps", "20", "--tflops", "50", "--tokens", "64", "--json")
    result = command(small_model, *options)
    data = json.loads(result.stdout)
    assert data["schema"] == 1 and data["machine"]["source"] == "as given"
    (component,) = data["components"]
    assert component["bytes"] == 6 * 2 * 1024 * 1024
    assert component["plan"]["ring_bytes"] == component["ring_bytes"] > 0


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    size = 1024 * 1024 // 32 * 34
    path.write_bytes(gguf([(f"double_blocks.{i}.w", [1024, 1024], 8, i * size) for i in range(4)], data_bytes=4 * size))
    result = command(path, "--device-gb", "0.004", "--json")
    (component,) = json.loads(result.stdout)["components"]
    assert component["bytes"] == 4 * size and component["component"] == "dit" and component["layers"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device-gb", "nan"], "--device-gb: got 'nan'"),
        (["--device-gb", "-1"], "--device-gb: got '-1'"),
        (["--device-gb", "8", "--gpu", "Voodoo"], "--gpu: got 'Voodoo'; allowed: RTX 3060"),
        (["--device-gb", "8", "--passes", "0"], "--passes: got '0'"),
        (["--device-gb", "8", "--tokens", "1e9"], "--tokens: got '1e9'"),
        ([], "--device-gb"),
    ],
)
def test_bad_options_exit_two(small_model: Path, arguments: list[str], words: str) -> None:
    result = command(small_model, *arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and words in result.stderr


def test_a_picture_or_a_plain_word_that_it_cannot_be_drawn(small_model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    result = command(small_model, "--device-gb", "0.007", "--png", picture)
    if result.returncode == 0:
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        assert result.returncode == 2 and result.stderr.splitlines() == [
            "offload_core advise: --png needs matplotlib, which is not installed here; leave --png out"
        ]


@pytest.mark.skipif(not DEV_MODELS, reason="no model files: dev.py test makes them")
@pytest.mark.parametrize("path", DEV_MODELS, ids=lambda path: path.name)
def test_real_files_of_the_test_kit(path: Path) -> None:
    """Every byte of the data is accounted for, and the plan it leads to is sound, at three budgets."""
    (read,) = read_models([path])
    with open(path, "rb") as file:
        data_bytes = path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    answers = advise([read], Machine(1 << 40, 25e9, 100.0, "test"))
    assert sum(answer.file_bytes for answer in answers) == data_bytes
    for answer in answers:
        assert answer.plan is not None and answer.plan.device_bytes == answer.total_bytes
        for share in (0, 1, 2):
            budget = answer.smallest_bytes + (answer.total_bytes - answer.smallest_bytes) * share // 3
            again = advise([read], Machine(budget, 25e9, 100.0, "test"))
            (plan,) = (other.plan for other in again if other.component == answer.component)
            assert plan is not None and check_plan(plan, budget_bytes=budget) == []


def test_bad_files_exit_two_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"oops")
    for path in (bad, tmp_path / "missing.safetensors", tmp_path):
        result = command(path, "--device-gb", "8")
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and str(path) in result.stderr
