"""Layers of a model on one simulated device lie on a second one, by the app's own memory management. Run by
test_second_card.py in a process with two devices, for each version of the app."""

import pytest
import torch

from bench.load import start_app
from bench.pack import pack_module
from tests.support.devkit import paths

MODEL = paths.MODELS / "diffusion_models" / "flux_mid.safetensors"
MB = 1_000_000

start_app()
import comfy.model_management as mm  # noqa: E402 - the app's modules are found from here on
import comfy.model_patcher  # noqa: E402 - the app's modules are found from here on

SECOND = torch.device("npu", 1)


@pytest.fixture(autouse=True)
def npu():
    module = torch.get_device_module("npu")
    module.configure(poison=True, race=True, peers=True)
    module.reset_stats()
    with torch.inference_mode():
        yield module
        unload_all()
        mm.cleanup_models_gc()
    assert module.stats()["races"] == 0, module.stats()["race_message"]


def unload_all() -> None:
    mm.unload_all_models()
    mm.free_memory(1e30, SECOND)  # of this kind of device, older versions know the first only


def used(npu) -> list[int]:
    return [device["used"] for device in npu.stats()["devices"]]


def settings(tier="npu:1", budget=20 * MB, **values):
    """What is asked of a diffusion model: by a node, and what a loader has no widget for by an options node."""
    module = pack_module("offload_core.settings.component_settings")
    made = module.ComponentSettings("dit")
    for name, value in {"budget_bytes": budget, "placement": values.pop("placement", None)}.items():
        made = made if value is None else made.with_value(name, value, module.Source.NODE)
    for name, value in {"host_tier": tier, **values}.items():
        source = module.Source.GRAPH if name.startswith("workflow") else module.Source.OPTIONS
        made = made.with_value(name, value, source)
    return made


def loaded(tier="npu:1", **values):
    """A diffusion model that the app has loaded within 20 MB, with layers on `tier`."""
    requested = pack_module("bridge.requests.requested").Requested(settings(tier, **values))
    patcher = pack_module("bridge.load.loaders").load_diffusion_model(str(MODEL), "default", requested)
    mm.load_models_gpu([patcher])
    return patcher


def stores() -> list:
    kind = pack_module("bridge.component.peer_store").StoredLayers
    return [entry for entry in mm.current_loaded_models if isinstance(entry.model, kind)]


def test_layers_lie_there_and_the_app_knows(npu):
    patcher = loaded()
    component = patcher.component
    held = component.peer_store.held_bytes()
    assert held == used(npu)[1] == component.plan.peer_bytes > 0
    assert [entry.model.loaded_size() for entry in stores()] == [held]
    assert component.controller.host_bytes()["pageable"] == component.controller.host_bytes()["pinned"] == 0


def test_a_rate_is_used_for_the_device_that_it_was_measured_of(npu):
    patcher = loaded()
    component = patcher.component
    counters = component.controller.counters
    before = component._with_rate_of("npu:1", component.request)
    assert before.peer_bytes_per_s is None
    counters.timed_peer_bytes, counters.peer_copy_ns = 2_000_000, 1_000_000  # as after measured passes
    known = component._with_rate_of("npu:1", component.request)
    assert (known.peer_bytes_per_s, known.peer_source) == (2e9, "measured")
    assert component._with_rate_of("npu:2", known).peer_bytes_per_s is None


def test_a_budget_there_is_kept(npu):
    patcher = loaded(peer_budget_bytes=40 * MB)
    assert 0 < used(npu)[1] <= 40 * MB
    assert {layer.host_tier for layer in patcher.component.plan.layers if layer.placement == "streamed"} > {"peer"}


def other_model(nbytes: int) -> comfy.model_patcher.ModelPatcher:
    """A model of the app's own on the second device, loaded."""
    module = torch.nn.Linear(1000, nbytes // 4000, bias=False)
    patcher = comfy.model_patcher.ModelPatcher(module, SECOND, torch.device("cpu"))
    mm.load_models_gpu([patcher])
    return patcher


def codes(patcher) -> list[str]:
    return [notice.code for notice in patcher.component.notices]


def test_what_other_models_ask_back_goes_and_is_not_taken_again_while_they_are_there(npu):
    patcher = loaded()
    held = patcher.component.peer_store.held_bytes
    before = held()
    other = other_model(4 * MB)
    mm.free_memory(mm.get_free_memory(SECOND) + 4 * MB, SECOND, keep_loaded=keeping(other))
    after = held()
    assert 0 < after <= before - 4 * MB and len(stores()) == 1
    mm.load_models_gpu([patcher])
    assert held() <= after and codes(patcher) == ["peer_has_limit"]
    mm.free_memory(1e30, SECOND, keep_loaded=keeping(other))
    assert held() == 0 and not stores()
    mm.load_models_gpu([patcher])
    assert held() == 0
    mm.free_memory(1e30, SECOND)
    mm.load_models_gpu([patcher])
    assert held() == before and codes(patcher) == ["peer_has_limit"]


def keeping(patcher) -> list:
    return [entry for entry in mm.current_loaded_models if entry.model is patcher]


def test_all_at_once_is_said_too(npu):
    patcher = loaded()
    other = other_model(4 * MB)
    mm.free_memory(1e30, SECOND, keep_loaded=keeping(other))
    mm.load_models_gpu([patcher])
    assert patcher.component.peer_store.held_bytes() == 0 and codes(patcher) == ["peer_has_limit"]


def test_models_of_the_prompt_that_are_loaded_again_leave_it_alone(npu):
    """As the app does around what is computed in between, such as a ControlNet's VAE."""
    patcher = loaded()
    held = patcher.component.peer_store.held_bytes()
    again = mm.loaded_models(only_currently_used=True)
    assert again == [patcher]
    mm.load_models_gpu(again)
    assert patcher.component.peer_store.held_bytes() == held > 0 and len(stores()) == 1


def test_unloading_all_models_does_not_keep_it_from_coming_back(npu):
    patcher = loaded()
    before = used(npu)[1]
    unload_all()
    assert used(npu)[1] == 0
    mm.load_models_gpu([patcher])
    assert used(npu)[1] == before and not codes(patcher)


def test_a_load_that_is_interrupted_leaves_nothing_that_the_app_cannot_ask_back(npu, monkeypatch):
    memory = pack_module("offload_core.runtime.device.peer_memory").PeerMemory
    real, calls = memory.copy_of, []

    def copy_of(self, source):
        calls.append(source)
        if len(calls) == 4:
            raise mm.InterruptProcessingException
        return real(self, source)

    monkeypatch.setattr(memory, "copy_of", copy_of)
    with pytest.raises(mm.InterruptProcessingException):
        loaded()
    mm.free_memory(1e30, SECOND)
    assert used(npu)[1] == 0
    assert loaded().component.peer_store.held_bytes() > 0


def test_a_component_of_more_passes_gets_what_it_lacks_and_no_more(npu):
    vae_like = loaded()
    store, kinds = vae_like.component.peer_store, pack_module("bridge.app.kinds")
    vae_like.component.kind = kinds.VAE
    held = store.held_bytes()
    first = loaded()
    assert store.held_bytes() == held, "there was room for both"
    first.component.peer_store.let_go()
    filling = torch.empty(
        int(mm.get_free_memory(SECOND) - mm.minimum_inference_memory()), dtype=torch.uint8, device=SECOND
    )
    second = loaded()
    assert 0 <= store.held_bytes() < held and second.component.peer_store.held_bytes() > held // 2
    mm.load_models_gpu([vae_like])
    assert second.component.peer_store.held_bytes() > held // 2, "of fewer passes"
    del filling


def test_what_others_left_is_asked_of_components_of_fewer_passes_too(npu):
    main = loaded()
    store = main.component.peer_store
    whole = store.held_bytes()
    other = other_model(4 * MB)
    mm.free_memory(1e30, SECOND, keep_loaded=keeping(other))
    mm.load_models_gpu([main])
    assert store.held_bytes() == 0
    mm.free_memory(1e30, SECOND)
    room = int(mm.get_free_memory(SECOND) - mm.minimum_inference_memory())
    filling = torch.empty(room - whole, dtype=torch.uint8, device=SECOND)
    vae_like = loaded()
    vae_like.component.kind = pack_module("bridge.app.kinds").VAE
    assert vae_like.component.peer_store.held_bytes() > whole // 2
    mm.load_models_gpu([main])
    assert store.held_bytes() > whole // 2
    del filling


def test_no_more_is_asked_of_others_than_streamed_layers_take(npu):
    vae_like = loaded()
    store = vae_like.component.peer_store
    vae_like.component.kind = pack_module("bridge.app.kinds").VAE
    room = int(mm.get_free_memory(SECOND) - mm.minimum_inference_memory())
    filling, held = torch.empty(room, dtype=torch.uint8, device=SECOND), store.held_bytes()
    main = loaded(budget=110 * MB)
    component = main.component
    given = held - store.held_bytes()
    largest = max(layer.bytes for layer in component.plan.layers)
    assert component.plan.residents and given <= component.plan.peer_bytes + largest
    assert all(component.plan.layers[index].host_tier == "peer" for index in component.plan.streamed)
    del filling


def test_it_is_freed_when_the_model_is_not_streamed_any_more(npu):
    patcher = loaded()
    patcher.take(pack_module("bridge.requests.requested").Requested(settings(budget=None, placement="whole")))
    mm.unload_all_models()
    mm.load_models_gpu([patcher])
    assert patcher.component.peer_store.held_bytes() == 0 and used(npu)[1] == 0


def test_it_counts_as_no_host_memory_of_the_workflow(npu):
    first = loaded("auto")
    pinned = first.component.controller.host_bytes()["pinned"]
    loaded("npu:1", workflow_host_bytes=pinned + MB)
    assert first.component.controller.host_bytes()["pinned"] == pinned > 0


def test_all_is_given_back_with_the_model(npu):
    patcher = loaded()
    assert used(npu)[1] > 0
    del patcher
    mm.cleanup_models_gc()
    assert used(npu) == [0, 0] and not stores()


@pytest.mark.parametrize(
    "tier, peers, what", [("npu:7", True, "found npu:0, npu:1"), ("npu:1", False, "cannot copy from")]
)
def test_what_cannot_be_had_is_one_clear_error(npu, tier, peers, what):
    npu.configure(peers=peers)
    with pytest.raises(Exception, match=what):
        loaded(tier)
    assert used(npu)[1] == 0


def test_a_model_that_runs_on_the_named_device_is_streamed_from_the_host(npu):
    patcher = loaded("npu:0")
    assert used(npu)[1] == 0 and codes(patcher) == ["is_own_device"]
    assert {layer.host_tier for layer in patcher.component.plan.layers if layer.placement == "streamed"} == {"pinned"}


def test_memory_that_is_not_there_after_all_is_said(npu, monkeypatch):
    device = torch.device("npu:1")
    other = torch.empty(mm.get_free_memory(device) - 8 * MB, dtype=torch.uint8, device=device)
    free = mm.get_free_memory
    monkeypatch.setattr(
        mm,
        "get_free_memory",
        lambda *args, **names: 10**10 if args == (device,) and not names else free(*args, **names),
    )
    patcher = loaded()
    held = patcher.component.peer_store.held_bytes()
    assert 0 <= held <= 8 * MB < patcher.component.plan.peer_bytes
    assert codes(patcher) == ["not_stored"]
    del other
