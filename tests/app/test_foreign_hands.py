"""Other packs read and write the weights of a model that ours streams: what they see, and what comes of it, is the
app's."""

import pytest
import torch
from safetensors.torch import load_file, save

from tests.app.test_bit_identity import dit_report, outcome
from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.patch_files import PatchFiles
from tests.support.workflows import LORA, MODEL, SAMPLER, build, node, with_controlnet

pytestmark = pytest.mark.app

PLACEMENTS = {
    "layerwise": {"placement": "layerwise", "budget_gb": 0.03},
    "resident": {"placement": "resident"},
}
READS = (
    "state_dict", "state_of_each_module", "patchers_state_dict", "parameters", "attributes", "get_parameter",
)  # fmt: skip
WRITES = ("load_state_dict", "data_in_place", "copied_into", "new_data", "new_parameters", "by_the_apps_function")
AGAIN = "61"


def with_hands(prompt: dict, how: str, source: list | None = None) -> dict:
    """The prompt with `how` done to the model right before the sampler, or to what `source` puts out."""
    source = source or prompt[SAMPLER]["inputs"]["model"]
    changed = {**prompt, "60": node("ForeignHands", model=source, how=how)}
    for name, entry in prompt.items():
        wires = {slot: ["60", 0] if value == source else value for slot, value in entry["inputs"].items()}
        changed[name] = node(entry["class_type"], **wires)
    return changed


def loaded_by(family: str, placement: str | None, **arguments) -> dict:
    if placement is None:
        return build(family, **arguments)
    return build(family, "layerwise", **PLACEMENTS[placement], **arguments)


@pytest.mark.parametrize(
    ("how", "placement"),
    [*((how, "layerwise") for how in READS), ("state_dict", "resident"), ("attributes", "resident")],
)
@pytest.mark.parametrize("where", ["behind the LoRA", "before the LoRA"])
def test_readers_of_a_patched_model_see_what_the_app_would_show(hands, how, placement, where):
    """A new MODEL is built of what is read. Its picture is the app's, whatever was run before."""

    def prompt(seed, placement=None):
        loaded = loaded_by("flux", placement, lora=0.8, seed=seed, steps=1)
        return with_hands(loaded, how, [LORA if where == "behind the LoRA" else MODEL, 0])

    seeds = (1, 2, 1)
    reference = {seed: outcome(hands, prompt(seed)) for seed in set(seeds)}
    without = outcome(hands, with_hands(loaded_by("flux", None, seed=1, steps=1), how))
    assert without != reference[1], "the LoRA did nothing: nothing is tested"
    hands.free()
    assert [outcome(hands, prompt(seed, placement)) for seed in seeds] == [reference[seed] for seed in seeds]
    assert hands.sim_stats()["races"] == 0


def control_lora(model_files) -> str:
    """A Control-LoRA for sd15_unet: hint and zero convolutions of the small ControlNet, and a LoRA over each weight."""
    tiny_models.ensure("controlnet_sd15")
    random = torch.Generator().manual_seed(3)
    tensors = {"lora_controlnet": torch.zeros(1)}
    for key, value in load_file(paths.MODELS / tiny_models.RECIPES["controlnet_sd15"].path).items():
        if key.startswith(("input_hint_block", "zero_convs", "middle_block_out")):
            tensors[key] = value
        elif key.endswith(".weight") and value.ndim >= 2 and key.startswith(("input_blocks", "middle_block")):
            name, columns = key.removesuffix(".weight"), value[0].numel()
            tensors[f"{name}.up"] = (torch.randn(value.shape[0], 4, generator=random) * 0.05).half()
            down = torch.randn(4, columns, generator=random) * 0.05
            tensors[f"{name}.down"] = down.reshape(4, *value.shape[1:]).half()
    return model_files.put("controlnet", "control_lora.safetensors", save(tensors))


@pytest.fixture
def sd15_lora():
    files = PatchFiles()
    yield files.make("lora", "sd15_unet", ("input_blocks.1.", "middle_block", "output_blocks.3."))
    files.close()


SD15 = {None: None, "layerwise": {"placement": "layerwise", "budget_gb": 0.06}, "resident": {"placement": "resident"}}


@pytest.mark.parametrize("placement", ["layerwise", "resident"])
def test_a_control_lora_takes_the_patched_weights(hands, model_files, sd15_lora, placement):
    control = control_lora(model_files)

    def prompt(seed, placement=None):
        widgets = SD15[placement]
        loaded = build("sd15", seed=seed) if widgets is None else build("sd15", "layerwise", seed=seed, **widgets)
        loaded[LORA] = node("LoraLoaderModelOnly", model=[MODEL, 0], lora_name=sd15_lora, strength_model=0.8)
        loaded[SAMPLER]["inputs"]["model"] = [LORA, 0]
        controlled = with_controlnet(loaded, "controlnet_sd15")
        controlled["13"] = node("ControlNetLoader", control_net_name=control)
        return controlled

    seeds = (1, 2, 1)
    reference = {seed: outcome(hands, prompt(seed)) for seed in set(seeds)}
    hands.free()
    assert [outcome(hands, prompt(seed, placement)) for seed in seeds] == [reference[seed] for seed in seeds]
    assert hands.sim_stats()["races"] == 0


@pytest.mark.parametrize(("how", "placement"), [*((how, "layerwise") for how in WRITES), ("data_in_place", "resident")])
def test_weights_that_others_write_before_the_first_use(hands, how, placement):
    plain = outcome(hands, loaded_by("flux", None))
    hands.free()
    reference = outcome(hands, with_hands(loaded_by("flux", None), how))
    assert reference != plain, "nothing was written: nothing is tested"
    hands.free()
    assert outcome(hands, with_hands(loaded_by("flux", placement), how)) == reference
    hands.free()
    assert outcome(hands, loaded_by("flux", placement)) == plain, "the file is as it was"


@pytest.mark.parametrize(
    ("how", "placement"),
    [*((how, "layerwise") for how in WRITES), ("new_parameters", "resident")],
)
def test_weights_that_others_write_between_two_uses(hands, how, placement):
    def prompt(placement=None, how=how):
        loaded = loaded_by("flux", placement)
        first = loaded[SAMPLER]["inputs"]
        source = first["model"]
        if how is not None:
            loaded["60"] = node("ForeignHands", model=source, how=how, after=[SAMPLER, 0])
            source = ["60", 0]
        loaded[AGAIN] = node("KSampler", **(first | {"model": source, "latent_image": [SAMPLER, 0], "denoise": 0.6}))
        loaded["12"]["inputs"]["samples"] = loaded["10"]["inputs"]["samples"] = [AGAIN, 0]
        return loaded

    plain = outcome(hands, prompt(how=None))
    hands.free()
    reference = outcome(hands, prompt())
    assert reference != plain, "nothing was written: nothing is tested"
    hands.free()
    assert outcome(hands, prompt(placement)) == reference


def test_what_cannot_be_honoured_is_said_by_name(hands):
    """Written into weights that are patched while the model is loaded: the app drops it with the patches."""
    loaded = loaded_by("flux", "layerwise", lora=0.8)
    first = loaded[SAMPLER]["inputs"]
    loaded["60"] = node("ForeignHands", model=first["model"], how="data_in_place", after=[SAMPLER, 0])
    loaded[AGAIN] = node("KSampler", **(first | {"model": ["60", 0], "latent_image": [SAMPLER, 0], "denoise": 0.6}))
    loaded["12"]["inputs"]["samples"] = loaded["10"]["inputs"]["samples"] = [AGAIN, 0]
    outcome(hands, loaded)
    assert any("single_blocks.3" in line and "written" in line for line in dit_report(hands)["warnings"])
