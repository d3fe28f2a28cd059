"""Settings: values, UNSET, who set them, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from offload_core.errors import SettingsError
from offload_core.sentences import sentence
from offload_core.settings.component_settings import (
    ALLOWED,
    BYTE_SETTINGS,
    EXPLICIT_SOURCES,
    GB,
    PLACEMENTS,
    SETTINGS,
    SOURCES,
    UNSET,
    ComponentSettings,
    budget_set,
    bytes_from_gb,
    peer_of,
    validate,
)

VALID = {
    "placement": "whole",
    "budget_bytes": 8_000_000_000,
    "ring_bytes": 500_000_000,
    "host_tier": "pageable",
    "pin_budget_bytes": 1,
    "peer_budget_bytes": 2,
    "precision": "bf16",
    "lora_mode": "host",
    "workflow_budget_bytes": 8_000_000_000,
    "workflow_host_bytes": 16_000_000_000,
}


def test_placements_are_the_five_of_the_design() -> None:
    assert PLACEMENTS == ("auto", "layerwise", "resident", "whole", "cpu")


def test_sources_strongest_first() -> None:
    assert SOURCES == ("node", "options", "graph", "settings", "selection", "policy")
    assert EXPLICIT_SOURCES == ("node", "options", "graph", "settings")


def test_every_setting_starts_unset() -> None:
    settings = ComponentSettings("dit")
    for name in SETTINGS:
        assert settings.value(name) is UNSET
        assert settings.source(name) is None
        assert settings.reason(name) is None
        assert not settings.is_explicitly_set(name)
    assert settings.to_json() == {}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("source", EXPLICIT_SOURCES)
def test_a_value_is_explicit_with_its_source(name: str, source: str) -> None:
    settings = ComponentSettings("vae").with_value(name, VALID[name], source)
    assert settings.value(name) == VALID[name]
    assert settings.source(name) == source
    assert settings.is_explicitly_set(name)
    assert settings.to_json()[name]["source"] == source
    assert [one.name for one in settings] == [name]


def test_with_value_leaves_the_original_alone() -> None:
    before = ComponentSettings("dit")
    after = before.with_value("placement", "cpu", "node")
    assert before.value("placement") is UNSET
    assert before != after
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.component = "vae"  # type: ignore[misc]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_widget_on_auto_is_unset(name: str) -> None:
    assert not ComponentSettings().with_value(name, "auto", "node").is_explicitly_set(name)


@pytest.mark.parametrize("name", BYTE_SETTINGS)
@pytest.mark.parametrize("nothing", [0, 0.0, UNSET])
def test_zero_bytes_are_unset(name: str, nothing: object) -> None:
    assert ComponentSettings().with_value(name, nothing, "node").value(name) is UNSET


def test_a_value_equal_to_what_the_policy_would_choose_is_explicit() -> None:
    policy = ComponentSettings("text_encoder").with_value("placement", "layerwise", "policy")
    user = policy.with_value("placement", "layerwise", "settings")
    assert not policy.is_explicitly_set("placement")
    assert user.is_explicitly_set("placement")
    assert user.source("placement") == "settings"


def test_auto_on_a_stronger_source_lets_a_weaker_one_speak() -> None:
    settings = ComponentSettings().with_value("placement", "whole", "settings").with_value("placement", "auto", "node")
    assert (settings.value("placement"), settings.source("placement")) == ("whole", "settings")


def test_auto_takes_back_what_the_same_source_said() -> None:
    settings = ComponentSettings().with_value("placement", "whole", "node").with_value("placement", "auto", "node")
    assert settings == ComponentSettings()


def test_the_strongest_source_wins_in_whatever_order_they_speak() -> None:
    words = dict(zip(SOURCES, ("whole", "cpu", "resident", "layerwise", "layerwise", "resident")))
    results = set()
    for order in itertools.permutations(SOURCES):
        settings = ComponentSettings("dit")
        for source in order:
            settings = settings.with_value("placement", words[source], source)
        results.add(settings)
    (settings,) = results
    for source in SOURCES:
        assert (settings.value("placement"), settings.source("placement")) == (words[source], source)
        settings = settings.without(source)
    assert settings == ComponentSettings("dit")


def test_what_the_app_offers_is_no_budget_that_was_set() -> None:
    offered = ComponentSettings("dit").with_value("budget_bytes", 9 * GB, "policy")
    own = ComponentSettings("vae").with_value("budget_bytes", GB, "options")
    assert budget_set([]) is None and budget_set([offered]) is None
    assert budget_set([own]) == GB and budget_set([own, own]) == 2 * GB
    assert budget_set([own, offered]) is None, "the sum would say nothing of the other"
    part = offered.with_value("workflow_budget_bytes", 8 * GB, "graph").with_value("budget_bytes", 3 * GB, "graph")
    assert budget_set([part]) == budget_set([part, own, offered]) == 8 * GB, "once, not once for each component"


def test_of_what_a_source_said_some_settings_can_be_kept() -> None:
    settings = ComponentSettings("dit").with_value("budget_bytes", 1, "node").with_value("budget_bytes", 2, "graph")
    kept = settings.with_value("workflow_budget_bytes", 3, "node").without("node", but=("workflow_budget_bytes",))
    assert (kept.value("budget_bytes"), kept.source("budget_bytes")) == (2, "graph")
    assert (kept.value("workflow_budget_bytes"), kept.source("workflow_budget_bytes")) == (3, "node")


def test_the_reason_shows_what_weaker_sources_had_asked_for() -> None:
    settings = ComponentSettings().with_value("placement", "whole", "node").with_value("placement", "cpu", "graph")
    assert (
        settings.reason("placement").text
        == "set by the node's own widget (the graph's options asked for cpu, which is weaker)"
    )
    same = ComponentSettings().with_value("placement", "whole", "node").with_value("placement", "whole", "graph")
    assert same.reason("placement").text == "set by the node's own widget"
    several = settings.with_value("placement", "resident", "settings").reason("placement").text
    assert several == (
        "set by the node's own widget (the graph's options asked for cpu; the user's ComfyUI settings asked for "
        "resident, which is weaker)"
    )


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("placement", "banana", "banana"),
        ("placement", "Whole", "Whole"),
        ("placement", " whole", " whole"),
        ("placement", "", "''"),
        ("placement", None, "None"),
        ("placement", True, "True"),
        ("placement", 1, "1"),
        ("placement", ["whole"], "whole"),
        ("placement", "streamed\nexit", r"streamed\nexit"),
        ("placement", "\ud800", r"\ud800"),
        ("placement", "x" * 10_000, "xxxx"),
        ("budget_bytes", -1, "-1"),
        ("budget_bytes", 1.5, "1.5"),
        ("budget_bytes", True, "True"),
        ("budget_bytes", "8 GB", "8 GB"),
        ("budget_bytes", None, "None"),
        ("budget_bytes", float("nan"), "nan"),
        ("budget_bytes", float("inf"), "inf"),
        pytest.param("budget_bytes", 10**5000, "bits", id="budget_bytes-huge"),
        ("ring_bytes", 1 << 51, str(1 << 51)),
        ("pin_budget_bytes", {}, "{}"),
        ("host_tier", "disk", "disk"),
        ("host_tier", "cuda", "cuda"),
        ("host_tier", "cuda:", "cuda:"),
        ("host_tier", "cuda:-1", "cuda:-1"),
        ("host_tier", "cuda:01", "cuda:01"),
        ("host_tier", "cuda:1\n", r"cuda:1\n"),
        ("host_tier", "CUDA:1", "CUDA:1"),
        ("host_tier", "cuda:\u0661", r"\u0661"),
        ("host_tier", "a" * 10_000 + ":1", "aaaa"),
        ("placement", "cuda:1", "cuda:1"),
        ("precision", "int3", "int3"),
        ("lora_mode", "never", "never"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(name: str, value: object, shown: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ComponentSettings("vae").with_value(name, value, "node")
    message = str(caught.value)
    assert message.startswith(f"asked vae.{name} = ")
    assert shown in message
    assert "; found " in message and "; do " in message
    assert "\n" not in message and message.isascii() and len(message) < 400


@pytest.mark.parametrize("name", ALLOWED)
def test_the_refusal_lists_what_is_allowed(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate(name, "banana")
    for choice in ALLOWED[name]:
        assert choice in str(caught.value)


def test_the_refusal_of_a_host_tier_speaks_of_devices() -> None:
    with pytest.raises(SettingsError, match="pageable, mapped, or another device such as cuda:1$"):
        validate("host_tier", "disk")


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0", "xpu:0", "npu:1", "cuda:127"])
def test_a_host_tier_may_name_another_device(device: str) -> None:
    settings = ComponentSettings("dit").with_value("host_tier", device, "options")
    assert settings.value("host_tier") == peer_of(settings) == device


@pytest.mark.parametrize("tier", ["auto", "pinned", "pageable", "mapped"])
def test_a_word_names_no_device(tier: str) -> None:
    weaker = ComponentSettings("dit").with_value("host_tier", "cuda:1", "settings")
    assert peer_of(ComponentSettings("dit")) is None
    assert peer_of(weaker.with_value("host_tier", tier, "node")) == ("cuda:1" if tier == "auto" else None)
    assert peer_of(ComponentSettings("dit").with_value("host_tier", None, "policy", sentence("tier_by_layer"))) is None


def test_integral_numbers_written_as_fractions_are_bytes() -> None:
    assert ComponentSettings().with_value("budget_bytes", 8e9, "node").value("budget_bytes") == 8_000_000_000
    assert type(validate("budget_bytes", 8e9)) is int


def test_unknown_settings_and_sources_are_refused() -> None:
    with pytest.raises(SettingsError, match="placment"):
        ComponentSettings().with_value("placment", "whole", "node")
    with pytest.raises(SettingsError, match="'me'"):
        ComponentSettings().with_value("placement", "whole", "me")
    for ask in (ComponentSettings().value, ComponentSettings().source, ComponentSettings().is_explicitly_set):
        with pytest.raises(SettingsError, match="'budget_gb'"):
            ask("budget_gb")
    with pytest.raises(SettingsError, match="'me'"):
        ComponentSettings().without("me")


def test_only_the_policy_may_leave_a_setting_to_the_layer_below() -> None:
    settings = ComponentSettings("dit").with_value("ring_bytes", None, "policy", sentence("planner_decides_ring"))
    assert settings.value("ring_bytes") is None
    assert settings.source("ring_bytes") == "policy"
    assert not settings.is_explicitly_set("ring_bytes")
    for source in SOURCES[:-1]:
        with pytest.raises(SettingsError, match="None"):
            ComponentSettings("dit").with_value("ring_bytes", None, source)


def test_the_selection_speaks_about_placements_only() -> None:
    with pytest.raises(SettingsError, match="selection"):
        ComponentSettings().with_value("ring_bytes", 5, "selection")


def test_merging_keeps_both_and_the_stronger_wins() -> None:
    node = ComponentSettings("vae").with_value("placement", "auto", "node").with_value("ring_bytes", 7, "node")
    options = ComponentSettings("vae").with_value("placement", "cpu", "options").with_value("ring_bytes", 9, "options")
    merged = node.merged(options)
    assert merged == options.merged(node)
    assert (merged.value("placement"), merged.source("placement")) == ("cpu", "options")
    assert (merged.value("ring_bytes"), merged.source("ring_bytes")) == (7, "node")


def test_two_options_nodes_that_disagree_are_an_error() -> None:
    one = ComponentSettings("vae").with_value("placement", "cpu", "options")
    other = ComponentSettings("vae").with_value("placement", "whole", "options")
    with pytest.raises(SettingsError, match=r"vae.placement = 'cpu' and vae.placement = 'whole'.*options node"):
        one.merged(other)
    assert one.merged(one) == one


@pytest.mark.parametrize(("gigabytes", "count"), [(8, 8 * 10**9), (0.5, 5 * 10**8), (1e-12, 1)])
def test_gb_widgets_count_in_powers_of_ten(gigabytes: float, count: int) -> None:
    assert bytes_from_gb(gigabytes) == count


@pytest.mark.parametrize("nothing", [0, 0.0, "auto", UNSET])
def test_a_gb_widget_on_zero_is_unset(nothing: object) -> None:
    assert bytes_from_gb(nothing) is UNSET


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), 1e300, 10**400, True, "8", None, [8]])
def test_gb_widgets_refuse_what_is_no_size(bad: object) -> None:
    with pytest.raises(SettingsError, match="budget_gb"):
        bytes_from_gb(bad, "budget_gb")


def test_unset_is_falsy_and_prints_its_name() -> None:
    assert not UNSET
    assert repr(UNSET) == "UNSET"
