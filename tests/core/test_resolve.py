"""Resolution: who wins, what the selection means, what is refused. Names follow the cases of the system we match."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from offload_core.errors import OffloadError
from offload_core.sentences import TEMPLATES
from offload_core.settings.component_settings import EXPLICIT_SOURCES, SETTINGS, ComponentSettings
from offload_core.settings.policy import MODES, Component, Device
from offload_core.settings.resolver import MAX_COMPONENTS, Request, Resolution, Wish, resolve, settings_for

GB = 10**9
CARD = Device("cuda", 24 * GB, 23 * GB)
BIG = Device("cuda", 80 * GB, 78 * GB)
SIZES = {
    "dit": 12 * GB,
    "text_encoder": 9_800_000_000,
    "image_encoder": GB,
    "vae": 170_000_000,
    "audio_vae": 300_000_000,
}


def request(sizes: dict[str, int] | None = None, **fields: Any) -> Request:
    sizes = SIZES if sizes is None else sizes
    components = tuple(Component(name, size) for name, size in sizes.items())
    return Request(components, **{"device": CARD, "host_available_bytes": 64 * GB, **fields})


def warnings(resolution: Resolution) -> tuple[str, ...]:
    """What its notices say, as lines."""
    return tuple(resolution.to_json()["warnings"])


def wish(component: str, value: object, source: str = "node", setting: str = "placement") -> Wish:
    return Wish(source, component, setting, value)


def placements(resolution: Resolution) -> dict[str, object]:
    return {name: settings.value("placement") for name, settings in resolution.components.items()}


def streamed(resolution: Resolution) -> set[str]:
    return {name for name, placement in placements(resolution).items() if placement == "layerwise"}


def refused(asked: Request) -> str:
    with pytest.raises(OffloadError) as caught:
        resolve(asked)
    message = str(caught.value)
    assert message.startswith("asked ") and "; found " in message and "; do " in message
    assert "\n" not in message and message.isascii()
    return message


def test_every_setting_of_every_component_has_value_source_and_reason() -> None:
    answer = resolve(request()).to_json()
    assert list(answer["components"]) == list(SIZES)
    for settings in answer["components"].values():
        assert list(settings) == list(SETTINGS)
        for entry in settings.values():
            assert set(entry) == {"value", "source", "reason", "why"}
            assert entry["source"] == "policy"
            assert entry["reason"] and entry["why"]["code"] in TEMPLATES


# Who wins


@pytest.mark.parametrize("index", range(len(EXPLICIT_SOURCES)))
def test_sources_win_in_order(index: int) -> None:
    words = ("layerwise", "resident", "cpu", "whole")
    wishes = tuple(wish("vae", words[i], source) for i, source in enumerate(EXPLICIT_SOURCES) if i >= index)
    for ordered in (wishes, wishes[::-1]):
        vae = resolve(request(wishes=ordered)).components["vae"]
        assert (vae.value("placement"), vae.source("placement")) == (words[index], EXPLICIT_SOURCES[index])


@pytest.mark.parametrize("source", EXPLICIT_SOURCES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", ["layerwise", "resident", "whole", "cpu"])
def test_an_explicit_placement_is_kept_in_every_mode(source: str, mode: str, value: str) -> None:
    resolution = resolve(request(mode=mode, wishes=(wish("text_encoder", value, source),)))
    settings = resolution.components["text_encoder"]
    assert (settings.value("placement"), settings.source("placement")) == (value, source)
    assert settings.is_explicitly_set("placement")


def test_explicit_false_is_honoured() -> None:
    # The value the policy would have chosen anyway, said by the user, is the user's.
    for value in ("layerwise", "whole"):
        settings = resolve(request(mode="memory", wishes=(wish("vae", value, "settings"),))).components["vae"]
        assert (settings.value("placement"), settings.source("placement")) == (value, "settings")


def test_auto_says_nothing() -> None:
    wishes = (wish("vae", "auto"), wish("nobody", "auto"), wish("dit", 0, setting="budget_bytes"))
    assert resolve(request(wishes=wishes)) == resolve(request())


def test_wishes_and_settings_say_the_same() -> None:
    held = {"vae": ComponentSettings("vae").with_value("placement", "cpu", "graph")}
    assert resolve(request(settings=held)) == resolve(request(wishes=(wish("vae", "cpu", "graph"),)))


def test_conflicting_wishes_of_one_source_are_an_error() -> None:
    message = refused(request(wishes=(wish("vae", "cpu", "options"), wish("VAE", "whole", "options"))))
    assert "'cpu'" in message and "'whole'" in message and "options node" in message
    resolve(request(wishes=(wish("vae", "cpu", "options"), wish("vae", "cpu", "options"))))
    # An exact name does not hide a contradiction between two wider wishes, whatever comes first.
    wide = (wish("vae", "cpu"), wish("all", "whole"), wish("all", "resident"))
    assert refused(request(wishes=wide)) == refused(request(wishes=wide[1:] + wide[:1]))


def test_exact_beats_group_beats_default_beats_all() -> None:
    sizes = {"dit": GB, "vae": GB, "video_vae": GB, "text_encoder": GB, "text_encoder_2": GB, "image_encoder": GB}
    wishes = (
        wish("all", "whole", "graph"),
        wish("default", "cpu", "graph"),
        wish("text_encoder_2", "resident", "graph"),
        wish("dit", "resident", "graph"),
    )
    expected = {
        "dit": "resident",
        "text_encoder": "cpu",
        "text_encoder_2": "resident",
        "image_encoder": "cpu",
        "vae": "cpu",
        "video_vae": "cpu",
    }
    assert placements(resolve(request(sizes, wishes=wishes))) == expected
    assert placements(resolve(request(sizes, wishes=wishes[::-1]))) == expected


def test_a_weaker_source_with_an_exact_name_does_not_beat_a_stronger_one_with_a_group() -> None:
    resolution = resolve(request(wishes=(wish("all", "whole", "node"), wish("vae", "cpu", "options"))))
    assert resolution.components["vae"].value("placement") == "whole"
    assert "for all" in resolution.components["vae"].reason("placement").text


def test_a_name_that_is_a_component_and_a_group_is_the_component() -> None:
    sizes = {"text_encoder": GB, "text_encoder_2": GB}
    resolution = resolve(request(sizes, mode="memory", wishes=(wish("text_encoder", "whole"),)))
    assert placements(resolution) == {"text_encoder": "whole", "text_encoder_2": "layerwise"}
    without = resolve(request({"text_encoder_2": GB}, mode="memory", wishes=(wish("text_encoder", "whole"),)))
    assert placements(without) == {"text_encoder_2": "whole"}


def test_wishes_for_a_component_that_is_not_there() -> None:
    for source in ("node", "options", "graph"):
        message = refused(request(wishes=(wish("vocodr", "whole", source),)))
        assert "'vocodr'" in message and "dit, text_encoder" in message
    resolution = resolve(request(wishes=(wish("controlnet", "whole", "settings"),)))
    assert warnings(resolution) == ("controlnet: named by the user's ComfyUI settings, but not in this graph",)


def test_lazy_components_get_their_settings_by_name() -> None:
    wishes = (wish("default", "layerwise", "graph"), wish("vae", "whole", "node"), wish("dit", "cpu", "options"))
    assert settings_for("image_encoder", wishes).value("placement") == "layerwise"
    assert settings_for("vae", wishes).source("placement") == "node"
    assert settings_for("video_vae", wishes).source("placement") == "node"
    assert settings_for("video_vae", wishes, names=("vae",)).source("placement") == "graph"
    assert settings_for("dit_2", wishes).value("placement") == "cpu"
    assert not settings_for("audio_vae", wishes).is_explicitly_set("placement")


# Selection


def test_configuration_filters_by_component_name() -> None:
    resolution = resolve(request(selection="image-encoder", device=BIG))
    assert streamed(resolution) == {"image_encoder"}
    assert resolution.components["image_encoder"].source("placement") == "selection"
    assert resolution.components["image_encoder"].is_explicitly_set("placement")


def test_pipeline_selection_uses_dit_group() -> None:
    sizes = {"dit": GB, "dit_2": GB, "vae": GB}
    assert streamed(resolve(request(sizes, selection="DiT, dit"))) == {"dit", "dit_2"}


def test_explicit_dit_layerwise_selects_dit_only() -> None:
    for mode in MODES:
        for device in (CARD, BIG):
            assert streamed(resolve(request(selection="dit", mode=mode, device=device))) == {"dit"}


def test_default_group_selects_non_dit_defaults() -> None:
    resolution = resolve(request(selection="default", device=BIG))
    assert streamed(resolution) == {"text_encoder", "image_encoder", "vae"}


def test_default_with_av_parts_by_name() -> None:
    assert "audio_vae" in streamed(resolve(request(selection=["default", "audio-vae"], device=BIG)))


def test_all_selects_every_component() -> None:
    assert streamed(resolve(request(selection="vae,all", device=BIG))) == set(SIZES)


def test_selection_of_a_numbered_variant() -> None:
    sizes = {"text_encoder": GB, "text_encoder_2": GB}
    assert streamed(resolve(request(sizes, selection="text_encoder_2"))) == {"text_encoder_2"}
    assert streamed(resolve(request(sizes, selection="text_encoder"))) == {"text_encoder", "text_encoder_2"}


def test_nothing_selected_is_no_selection() -> None:
    for nothing in ("", " , ", [], None):
        assert resolve(request(selection=nothing)) == resolve(request())


def test_a_selected_name_that_matches_nothing_is_an_error() -> None:
    assert "'vocodr'" in refused(request(selection="dit,vocodr"))


@pytest.mark.parametrize("selection", ["all", "text_encoder", "default"])
def test_explicit_selection_of_an_unsupported_component_is_an_error(selection: str) -> None:
    stuck = Component("text_encoder", 9 * GB, streamable=False, why_not="no repeated blocks")
    message = refused(Request((Component("dit", GB), stuck), selection=selection, device=CARD))
    assert "text_encoder.placement = layerwise" in message and "no repeated blocks" in message


def test_explicit_layerwise_requires_component_support() -> None:
    stuck = Component("vae", GB, streamable=False)
    for source in EXPLICIT_SOURCES:
        message = refused(Request((stuck,), wishes=(wish("vae", "layerwise", source),)))
        assert "layers cannot be streamed" in message


def test_a_selector_does_not_make_auto_strict() -> None:
    stuck = Component("text_encoder", 9 * GB, streamable=False, why_not="no repeated blocks")
    for mode in ("auto", "memory", "speed"):
        asked = Request((Component("dit", 40 * GB), stuck), mode=mode, selection="dit", device=CARD)
        assert placements(resolve(asked)) == {"dit": "layerwise", "text_encoder": "whole"}
        resolution = resolve(replace(asked, selection=None))
        assert placements(resolution) == {"dit": "layerwise", "text_encoder": "whole"}
        assert any("no repeated blocks" in line for line in warnings(resolution))


@pytest.mark.parametrize("source", EXPLICIT_SOURCES)
def test_a_placement_set_for_the_component_is_stronger_than_the_selection(source: str) -> None:
    resolution = resolve(request(selection="default", wishes=(wish("vae", "whole", source),)))
    vae = resolution.components["vae"]
    assert (vae.value("placement"), vae.source("placement")) == ("whole", source)
    assert any(line.startswith("vae: the selection names it") for line in warnings(resolution))


def test_the_selection_is_stronger_than_the_policy() -> None:
    for mode in MODES:
        dit = resolve(request(selection="dit", mode=mode, device=BIG)).components["dit"]
        assert (dit.value("placement"), dit.source("placement")) == ("layerwise", "selection")


# The default group: exactly the groups with no placement of their own


@pytest.mark.parametrize("value", ["whole", "cpu", "resident", "layerwise"])
@pytest.mark.parametrize("name", ["text_encoder", "image_encoder", "vae"])
def test_each_group_is_covered_on_its_own_flag(name: str, value: str) -> None:
    resolution = resolve(request(mode="memory", wishes=(wish(name, value),)))
    for other in ("text_encoder", "image_encoder", "vae"):
        settings = resolution.components[other]
        expected = (value, "node") if other == name else ("layerwise", "policy")
        assert (settings.value("placement"), settings.source("placement")) == expected


def test_explicit_vae_kept_leaves_text_and_image() -> None:
    resolution = resolve(request(mode="memory", wishes=(wish("vae", "cpu"),)))
    assert streamed(resolution) - {"dit"} == {"text_encoder", "image_encoder"}


def test_explicit_resident_text_kept_leaves_image_and_vae() -> None:
    resolution = resolve(request(mode="memory", wishes=(wish("text_encoder", "resident"),)))
    assert streamed(resolution) - {"dit"} == {"image_encoder", "vae"}


def test_explicit_dit_placement_leaves_the_defaults_alone() -> None:
    resolution = resolve(request(mode="memory", wishes=(wish("dit", "whole"),)))
    assert streamed(resolution) == {"text_encoder", "image_encoder", "vae"}


def test_memory_adds_dit() -> None:
    assert "dit" in streamed(resolve(request(mode="memory", device=BIG)))


def test_auto_streams_the_text_encoder_instead_of_computing_it_on_the_cpu() -> None:
    assert streamed(resolve(request())) == {"text_encoder"}


def test_vae_is_never_moved_to_the_cpu_by_policy() -> None:
    for mode in MODES:
        for device in (CARD, BIG, Device("cuda", 2 * GB, GB), None):
            assert "cpu" not in placements(resolve(request(mode=mode, device=device))).values()


def test_auto_keeps_resident_what_fits() -> None:
    resolution = resolve(request(device=BIG))
    assert placements(resolution) == {**dict.fromkeys(SIZES, "resident"), "audio_vae": "whole"}


def test_manual_leaves_what_was_not_set() -> None:
    resolution = resolve(request(mode="manual", wishes=(wish("dit", "layerwise"),)))
    assert placements(resolution) == {**dict.fromkeys(SIZES, "whole"), "dit": "layerwise"}
    assert resolution.components["dit"].value("budget_bytes") is None
    assert warnings(resolution) == ()


def test_speed_disables_streaming_and_keeps_explicit() -> None:
    resolution = resolve(request(mode="speed", device=BIG, wishes=(wish("text_encoder", "layerwise"),)))
    assert streamed(resolution) == {"text_encoder"}
    assert warnings(resolution) == ()


def test_invalid_mode_raises() -> None:
    assert "'fast'" in refused(request(mode="fast"))


def test_a_streamed_dit_gets_a_budget_unless_the_user_gave_one() -> None:
    sizes = {"dit": 40 * GB}
    dit = resolve(request(sizes)).components["dit"]
    assert (dit.value("budget_bytes"), dit.source("budget_bytes")) == (23 * GB - 2_400_000_000, "policy")
    dit = resolve(request(sizes, wishes=(wish("dit", 5 * GB, setting="budget_bytes"),))).components["dit"]
    assert (dit.value("budget_bytes"), dit.source("budget_bytes")) == (5 * GB, "node")


def test_a_budget_alone_means_streaming() -> None:
    resolution = resolve(request(mode="manual", wishes=(wish("dit", 5 * GB, setting="budget_bytes"),)))
    dit = resolution.components["dit"]
    assert (dit.value("placement"), dit.source("placement")) == ("layerwise", "policy")


# The rest


def test_the_policy_is_silent_about_what_was_set() -> None:
    values = {
        "precision": "bf16",
        "lora_mode": "on_arrival",
        "host_tier": "mapped",
        "ring_bytes": GB,
    }
    wishes = tuple(wish("dit", value, "options", name) for name, value in values.items())
    dit = resolve(request(selection="dit", wishes=wishes)).components["dit"]
    for name, value in values.items():
        assert (dit.value(name), dit.source(name)) == (value, "options")
        assert [entry.source for entry in dit.entries(name)] == ["options"]


def test_no_components_is_an_empty_answer() -> None:
    assert resolve(Request(())).to_json() == {"components": {}, "warnings": [], "notices": []}


@pytest.mark.parametrize("name", ["all", "default", "Dit", "dit-2", "", "a b"])
def test_names_that_no_component_can_have(name: str) -> None:
    refused(Request((Component(name, GB),)))


def test_too_many_and_twice_the_same() -> None:
    assert "'dit'" in refused(Request((Component("dit", 1), Component("dit", 2))))
    refused(Request(tuple(Component(f"part_{i}", 1) for i in range(MAX_COMPONENTS + 1))))


def test_a_number_for_the_workflow_is_said_of_all() -> None:
    wishes = (
        wish("all", 8 * GB, "settings", "workflow_budget_bytes"),
        wish("all", 6 * GB, "graph", "workflow_budget_bytes"),
    )
    resolution = resolve(request(wishes=wishes))
    for component in resolution.components.values():
        assert component.value("workflow_budget_bytes") == 6 * GB
        assert component.source("workflow_budget_bytes") == "graph"
        assert component.value("workflow_host_bytes") is None
        assert component.reason("workflow_host_bytes").text.startswith("no budget is set for the system memory")


@pytest.mark.parametrize("setting", ["workflow_budget_bytes", "workflow_host_bytes"])
@pytest.mark.parametrize("name", ["dit", "text_encoder", "default"])
def test_a_number_for_the_workflow_is_refused_for_some_of_its_components(setting: str, name: str) -> None:
    with pytest.raises(OffloadError, match=f"asked {name}.{setting} = 8000000000; .*for all components together"):
        resolve(request(wishes=(wish(name, 8 * GB, "graph", setting),)))
    resolve(request(wishes=(wish(name, 0, "graph", setting),)))
