"""Explicit wishes that cannot be honoured: an error that says what was asked, what was found and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from offload_core.errors import BudgetError, OffloadError, SettingsError
from offload_core.settings.component_settings import ComponentSettings
from offload_core.settings.feasibility import require_device
from offload_core.settings.policy import Component, Device
from offload_core.settings.resolver import Request, Resolution, Wish, resolve

GB = 10**9
CARD = Device("cuda", 24 * GB, 23 * GB)
SIZES = {"dit": 12 * GB, "text_encoder": 9_800_000_000, "vae": 170_000_000}


def request(sizes: dict[str, int] | None = None, **fields: Any) -> Request:
    sizes = SIZES if sizes is None else sizes
    components = tuple(Component(name, size) for name, size in sizes.items())
    return Request(components, **{"device": CARD, "host_available_bytes": 64 * GB, **fields})


def warnings(resolution: Resolution) -> tuple[str, ...]:
    """What its notices say, as lines."""
    return tuple(resolution.to_json()["warnings"])


def wish(component: str, value: object, source: str = "node", setting: str = "placement") -> Wish:
    return Wish(source, component, setting, value)


def refused(asked: Request) -> str:
    with pytest.raises(OffloadError) as caught:
        resolve(asked)
    message = str(caught.value)
    assert message.startswith("asked ") and "; found " in message and "; do " in message
    assert "\n" not in message and message.isascii()
    return message


def test_resident_larger_than_the_device() -> None:
    with pytest.raises(BudgetError) as caught:
        resolve(request({"dit": 30 * GB}, wishes=(wish("dit", "resident"),)))
    assert (caught.value.asked_bytes, caught.value.smallest_bytes) == (24 * GB, 30 * GB)
    assert "dit.placement = resident" in str(caught.value) and "30.00 GB" in str(caught.value)


def test_resident_larger_than_what_is_free_is_said() -> None:
    resolution = resolve(
        request({"dit": 20 * GB}, device=Device("cuda", 24 * GB, GB), wishes=(wish("dit", "resident"),))
    )
    assert any("the app will have to make room" in line for line in warnings(resolution))


@pytest.mark.parametrize("placement", ["resident", "whole"])
def test_a_placement_that_does_not_fit_its_budget(placement: str) -> None:
    wishes = (wish("dit", placement), wish("dit", 5 * GB, "graph", "budget_bytes"))
    with pytest.raises(BudgetError) as caught:
        resolve(request(wishes=wishes))
    assert (caught.value.asked_bytes, caught.value.smallest_bytes) == (5 * GB, 12 * GB)


def test_a_budget_smaller_than_streaming_needs() -> None:
    dit = Component("dit", 12 * GB, smallest_bytes=2 * GB)
    wishes = (wish("dit", GB, setting="budget_bytes"),)
    with pytest.raises(BudgetError) as caught:
        resolve(Request((dit,), wishes=wishes, device=CARD))
    assert (caught.value.asked_bytes, caught.value.smallest_bytes) == (GB, 2 * GB)
    assert "give at least 2000000000 bytes" in str(caught.value)


def test_a_ring_larger_than_its_budget() -> None:
    wishes = (wish("dit", 2 * GB, setting="budget_bytes"), wish("dit", 3 * GB, setting="ring_bytes"))
    with pytest.raises(BudgetError, match="a budget includes the ring"):
        resolve(request(wishes=wishes))


def test_a_ring_larger_than_the_device() -> None:
    wishes = (wish("dit", "layerwise"), wish("dit", 30 * GB, setting="ring_bytes"))
    assert "dit.ring_bytes = 30.00 GB" in refused(request(wishes=wishes))


def test_a_budget_for_what_cannot_be_streamed() -> None:
    stuck = Component("dit", 12 * GB, streamable=False)
    with pytest.raises(BudgetError):
        resolve(Request((stuck,), wishes=(wish("dit", GB, setting="budget_bytes"),), device=CARD))


def test_a_budget_larger_than_the_device_is_said() -> None:
    resolution = resolve(request({"dit": 40 * GB}, wishes=(wish("dit", 30 * GB, setting="budget_bytes"),)))
    assert resolution.components["dit"].value("budget_bytes") == 30 * GB
    (notice,) = (one for one in resolution.notices if one.code == "budget_beyond_device")
    assert "clamped to its 24.00 GB" in notice.text and notice.component == "dit"
    assert notice.do.text.startswith("set a budget")
    assert notice.text in warnings(resolution)


def test_pins_beyond_the_memory_there_is() -> None:
    wishes = (wish("dit", "layerwise"), wish("dit", 100 * GB, setting="pin_budget_bytes"))
    assert "64.00 GB of memory available" in refused(request(wishes=wishes))


def test_host_copies_beyond_the_memory_there_is() -> None:
    wishes = (wish("dit", "layerwise"), wish("dit", "pinned", setting="host_tier"))
    short = {"device": Device("cuda", 8 * GB, 8 * GB), "host_available_bytes": 3 * GB}
    assert "at least 4.00 GB of host copies" in refused(request({"dit": 12 * GB}, wishes=wishes, **short))
    resolve(request({"dit": 10 * GB}, wishes=wishes, **short))
    mapped = (wishes[0], wish("dit", "mapped", setting="host_tier"))
    resolve(request({"dit": 12 * GB}, wishes=mapped, **short))


def test_pinned_beyond_the_budget_of_page_locked_memory() -> None:
    wishes = (wish("dit", "layerwise"), wish("dit", "pinned", setting="host_tier"))
    short = {"device": Device("cuda", 8 * GB, 8 * GB)}
    pins = wish("dit", 3 * GB, "graph", "pin_budget_bytes")
    found = refused(request({"dit": 12 * GB}, wishes=(*wishes, pins), **short))
    assert "dit.host_tier = pinned (the node's own widget) and dit.pin_budget_bytes = 3.00 GB (the graph's" in found
    assert "at least 4.00 GB of host copies to be page-locked" in found
    resolve(request({"dit": 11 * GB}, wishes=(*wishes, pins), **short))
    pageable = (wishes[0], wish("dit", "pageable", setting="host_tier"), pins)
    resolve(request({"dit": 12 * GB}, wishes=pageable, **short))


def test_another_device_asks_for_no_host_copies() -> None:
    """What has no room there waits where each layer can: nothing is certain to be page-locked or in memory."""
    wishes = (wish("dit", "layerwise"), wish("dit", "cuda:1", setting="host_tier"))
    short = {"device": Device("cuda", 8 * GB, 8 * GB), "host_available_bytes": 3 * GB}
    resolution = resolve(request({"dit": 12 * GB}, wishes=wishes, **short))
    dit = resolution.components["dit"]
    assert dit.value("host_tier") == "cuda:1" and dit.value("peer_budget_bytes") is None
    assert dit.reason("peer_budget_bytes").text == "what is free on cuda:1" and warnings(resolution) == ()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (
            ["cuda:0", "cuda:1"],
            "found cuda:0, cuda:1 to choose from on this machine; do choose one of these, auto",
        ),
        ([], "found no second device that ComfyUI sees to choose from on this machine; do choose auto"),
    ],
)
def test_a_device_that_this_machine_has_not(names: list[str], found: str) -> None:
    settings = ComponentSettings("dit").with_value("host_tier", "cuda:7", "graph")
    with pytest.raises(SettingsError) as caught:
        require_device(settings, names)
    assert str(caught.value).startswith(f"asked dit.host_tier = cuda:7 (the graph's options); {found}")
    require_device(settings, [*names, "cuda:7"])
    require_device(settings.with_value("host_tier", "pinned", "node"), names)
    require_device(ComponentSettings("dit"), names)


@pytest.mark.parametrize(
    ("source", "tier", "said"),
    [("options", "auto", True), ("graph", "pinned", True), ("settings", "auto", False), ("options", "cuda:1", False)],
)
def test_a_budget_of_another_device_where_none_is_named(source: str, tier: str, said: bool) -> None:
    wishes = (
        wish("dit", "layerwise"),
        wish("all", tier, "options", "host_tier"),
        wish("all", 2 * GB, source, "peer_budget_bytes"),
    )
    resolution = resolve(request({"dit": 12 * GB}, wishes=wishes))
    notices = [notice for notice in resolution.notices if notice.code == "no_effect_without_device"]
    assert bool(notices) == said
    if said:
        assert (
            notices[0].text.startswith("dit.peer_budget_bytes = 2.00 GB (") and "another device" in notices[0].do.text
        )
    whole = (wish("dit", "whole"), *wishes[1:])
    assert warnings(resolve(request({"dit": 12 * GB}, wishes=whole))) == (), "said for those that it suits"


def test_host_copies_are_counted_as_they_lie_on_the_host() -> None:
    wishes = (wish("dit", "layerwise"), wish("dit", "pageable", setting="host_tier"))
    rounded_up = Component("dit", 12 * GB, layers_bytes=10 * GB)
    fields = {"wishes": wishes, "device": Device("cuda", 8 * GB, 8 * GB), "host_available_bytes": 3 * GB}
    resolve(Request((rounded_up,), **fields))


def test_on_the_cpu_there_is_no_host_memory_to_ask_for() -> None:
    wishes = (wish("dit", "layerwise"), wish("dit", "pinned", "graph", "host_tier"))
    resolve(request({"dit": 12 * GB}, wishes=wishes, device=Device("cpu"), host_available_bytes=3 * GB))


def test_settings_without_effect_are_said_not_refused() -> None:
    wishes = (wish("vae", "whole"), wish("vae", GB // 10, setting="ring_bytes"))
    (line,) = (line for line in warnings(resolve(request(wishes=wishes))) if line.startswith("vae."))
    assert line == "vae.ring_bytes = 100.0 MB (the node's own widget) has no effect: the component is whole"
    assert warnings(resolve(request(wishes=(wish("all", GB // 10, "graph", "ring_bytes"),)))) == ()
    for_all = (wish("vae", "whole"), wish("all", "pageable", "options", "host_tier"))
    assert warnings(resolve(request(wishes=for_all))) == (), "an options node says it of all components at once"
