"""attach/detach on transformers' and diffusers' own models: bit-identical to the same model resident on the device."""

import pytest
import torch

from offload_core.planning.planner import smallest_budget
from offload_core.runtime import Change, attach
from offload_core.runtime.layers import discovery
from tests.runtime.library_kit import DEVICES, assert_restored, check_bit_identical, opened, resident_outputs, snapshot

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

SMALL = {"min_layer_bytes": 1 << 16}


@pytest.fixture(params=DEVICES)
def device(request):
    torch.manual_seed(0)
    with opened(request.param) as name:
        yield name


def tokens(device, count=12, vocabulary=512, batch=2):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, vocabulary, (batch, count), generator=generator).to(device)


def t5():
    sizes = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 6, "num_heads": 4, "vocab_size": 512}
    config = transformers.T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    return transformers.T5EncoderModel(config)


def clip():
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = transformers.CLIPTextConfig(**sizes, vocab_size=512, eos_token_id=2, bos_token_id=1)
    return transformers.CLIPTextModel(config)


def qwen(tied):
    text = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **{**text, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256},
            **{"rope_parameters": rope, "rope_scaling": rope, "tie_word_embeddings": tied},
        },
        vision_config={
            **{"depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 128},
            **{"patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [3]},
        },
        **{"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503},
        tie_word_embeddings=tied,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def flux():
    return diffusers.FluxTransformer2DModel(
        **{"patch_size": 1, "in_channels": 16, "num_layers": 3, "num_single_layers": 5, "attention_head_dim": 32},
        **{"num_attention_heads": 4, "joint_attention_dim": 64, "pooled_projection_dim": 48, "guidance_embeds": True},
        axes_dims_rope=(8, 12, 12),
    )


def llama():
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    config = transformers.LlamaConfig(**sizes, **special, num_key_value_heads=2, vocab_size=512)
    return transformers.LlamaForCausalLM(config)


def test_t5_encoder(device):
    def run(model, device):
        return [model(input_ids=tokens(device)).last_hidden_state]

    model = t5()
    check_bit_identical(model, device, run, **SMALL)
    assert model.shared.weight is model.encoder.embed_tokens.weight


def test_clip_text(device):
    def run(model, device):
        output = model(input_ids=tokens(device), output_hidden_states=True)
        return [output.last_hidden_state, output.pooler_output, *output.hidden_states]

    check_bit_identical(clip(), device, run, **SMALL)


@pytest.mark.parametrize("tied", [False, True])
def test_qwen25_vl_with_an_image(device, tied):
    def run(model, device):
        grid = torch.tensor([[1, 4, 4]], device=device)
        pixels = torch.randn(16, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(3)).to(device)
        ids = tokens(device, 12, 499, batch=1)
        ids[0, 2] = 502
        ids[0, 3:7] = 500
        kinds = (ids == 500).int()
        known = {"mm_token_type_ids": kinds} if "mm_token_type_ids" in _arguments(model) else {}
        return [model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, use_cache=False, **known).logits]

    model = qwen(tied)
    check_bit_identical(model, device, run, **SMALL)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) is tied


def _arguments(model):
    import inspect

    return inspect.signature(type(model).forward).parameters


def test_diffusers_flux(device):
    def run(model, device):
        def noise(*shape):
            return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device)

        return [
            model(
                **{"hidden_states": noise(1, 16, 16), "encoder_hidden_states": noise(1, 7, 64)},
                **{"pooled_projections": noise(1, 48), "timestep": torch.tensor([0.3], device=device)},
                **{"img_ids": torch.zeros(16, 3, device=device), "txt_ids": torch.zeros(7, 3, device=device)},
                guidance=torch.tensor([3.5], device=device),
            ).sample
        ]

    check_bit_identical(flux(), device, run, **SMALL)


def test_generate_with_a_cache(device):
    """A prompt, then token by token: every forward is a pass, and only the first may load on demand."""
    model = llama().requires_grad_(False).eval()
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": True}

    def run(module, device):
        ids = tokens(device, 5, batch=1)
        return [module.generate(ids, attention_mask=torch.ones_like(ids), **settings)]

    expected = resident_outputs(model, device, run)
    before = snapshot(model)
    with attach(model, device=device, passes=6, **SMALL) as attachment:
        for _ in range(2):
            assert torch.equal(run(model, device)[0].cpu(), expected[0])
        counters = attachment.controller.counters
        assert counters.passes == 12
        assert counters.demand_loads <= len(attachment.plan.layers)
    assert_restored(model, before)


@pytest.mark.parametrize("make", [t5, clip], ids=lambda make: make.__name__)
def test_tables_on_the_host(device, make, monkeypatch):
    """Rows are looked up on the host; the table never takes device memory, and is the same object afterwards."""
    monkeypatch.setattr(discovery, "HOST_GATHER_BYTES", 1 << 16)

    def run(model, device):
        return [model(input_ids=tokens(device)).last_hidden_state]

    model = make()
    found = discovery.discover(model, min_layer_bytes=1 << 16)
    assert found.tables and found.loose_bytes < found.tables[0].nbytes
    check_bit_identical(model, device, run, **SMALL)


@pytest.mark.parametrize("room", [True, False])
def test_a_table_on_the_host_that_is_used_as_a_whole(device, monkeypatch, room):
    """By an output projection, say, that takes the weight and looks no row up. Where the budget has room the table
    comes to the device once, and stays; else it is copied for each use, and each is counted."""
    monkeypatch.setattr(discovery, "HOST_GATHER_BYTES", 1 << 16)
    model = t5()
    table = model.get_input_embeddings()
    x, ids, rows = torch.randn(2, 128), torch.tensor([1, 4]), table.weight.detach().clone()
    expected = torch.nn.functional.linear(x, rows)
    before = snapshot(model)
    with attach(model, device=device, **SMALL) as attachment:
        least = smallest_budget(attachment.controller.inventory)
    budget = least + (table.weight.nbytes if room else table.weight.nbytes - 1)
    with attach(model, device=device, budget_bytes=budget, **SMALL) as attachment:
        controller = attachment.controller
        assert torch.equal(table(ids.to(device)).cpu(), rows[ids])
        assert controller.outside_touches == {} and attachment.plan.tables == ()
        if controller.queue.port.shares_host_memory:
            return
        for use in _uses_of_a_whole_table(x.to(device)):
            assert torch.allclose(use(table).cpu(), expected)
            assert controller.device_bytes() == attachment.plan.device_bytes <= budget
        assert torch.equal(table(ids.to(device)).cpu(), rows[ids])
        assert sum(controller.outside_touches.values()) == (0 if room else 3)
        assert attachment.plan.tables == (("shared",) if room else ())
        assert (table.weight.device.type == "cpu") is not room
        with controller.masters_shown():
            assert type(table.weight) is torch.nn.Parameter and table.weight.device.type == "cpu"
        assert (table.weight.device.type == "cpu") is not room
        controller.set_changes({"shared.weight": Change(key="halved", compute=lambda: rows * 0.5)})
        assert torch.equal(table(ids.to(device)).cpu(), rows[ids] * 0.5)
        assert torch.allclose(torch.nn.functional.linear(x.to(device), table.weight.to(device)).cpu(), expected * 0.5)
        controller.set_changes({})
        assert torch.equal(table(ids.to(device)).cpu(), rows[ids])
        assert controller.device_bytes() == attachment.plan.device_bytes <= budget
        value = torch.randn_like(table.weight, device="cpu")
        controller.write_master(table.weight, value)
        assert torch.equal(table(ids.to(device)).cpu(), value[ids])
        assert torch.allclose(torch.nn.functional.linear(x.to(device), table.weight).cpu(), x @ value.T, atol=1e-5)
        controller.write_master(table.weight, rows)
    assert type(table.weight) is torch.nn.Parameter
    assert_restored(model, before)


def _uses_of_a_whole_table(x):
    """The ways in which torch code and the app take the weight of a module on another device than theirs."""

    def copied(table):
        weight = torch.empty_like(table.weight, device=x.device)
        weight.copy_(table.weight)
        return torch.nn.functional.linear(x, weight)

    yield lambda table: torch.nn.functional.linear(x, table.weight)
    yield lambda table: torch.nn.functional.linear(x, table.weight.to(x))
    yield copied
