"""Whether what was explicitly asked of a component can be honoured: an error if not, never a silent change.

Also says which explicit settings have nothing to act on under the placement a component ended up with, or are stronger
than the selection. Knows nothing about how the policy chose a placement, about modes or layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..errors import BudgetError, SettingsError
from ..notices import Notice
from ..sentences import Sentence, sentence
from ..units import format_bytes
from .component_settings import SOURCE_SENTENCES, ComponentSettings, Setting, Source, peer_of
from .policy import Component, Device

_OF_STREAMING: Final = ("ring_bytes", "host_tier", "pin_budget_bytes", "peer_budget_bytes")
# Settings without effect under a placement; `budget_bytes` on a resident is checked, so it has one.
_UNUSED: Final[dict[str, tuple[str, ...]]] = {
    "resident": _OF_STREAMING,
    "whole": _OF_STREAMING,
    "cpu": ("budget_bytes", *_OF_STREAMING),
}
_SAID_OF_ALL: Final = ("host_tier", "pin_budget_bytes", "peer_budget_bytes")
# An options node has one of each, for all components.
NO_EFFECT: Final = "no_effect"
"""The code of a notice that a setting has nothing to act on under the placement."""


def check_component(component: Component, settings: ComponentSettings, device: Device, host_bytes: int | None) -> None:
    """Raises SettingsError or BudgetError for the first explicit wish that cannot be honoured.

    ``settings`` hold the placement the component ended up with, from whatever source.
    """
    _check_placement(component, settings, device)
    _check_budget(component, settings, device)
    _check_host(component, settings, device, host_bytes)


def remarks(component: Component, settings: ComponentSettings, device: Device) -> list[Notice]:
    """Notices of explicit settings that hold, but do less, or cost more, than a person may expect."""
    chosen, *weaker = settings.entries(Setting.PLACEMENT)
    placement = str(chosen.value)
    budget_bytes, device_bytes = settings.explicit(Setting.BUDGET_BYTES, int), device.total_bytes
    notices = []
    if placement != "cpu" and device_bytes is not None and budget_bytes is not None and budget_bytes > device_bytes:
        setting = _setting(settings, Setting.BUDGET_BYTES)
        what = sentence("budget_beyond_device", setting=setting, size=format_bytes(device_bytes))
        notices.append(Notice(component.name, what, do=sentence("do_set_budget_of_device")))
    free_bytes = None if _total_bytes(device) is None else device.free_bytes
    asked_resident = settings.explicit(Setting.PLACEMENT, str) == "resident"
    if asked_resident and free_bytes is not None and component.bytes > free_bytes:
        setting = _setting(settings, Setting.PLACEMENT)
        size, free = format_bytes(component.bytes), format_bytes(free_bytes)
        notices.append(Notice(component.name, sentence("resident_beyond_free", setting=setting, size=size, free=free)))
    for name in _UNUSED.get(placement, ()):
        # What is said of all components at once is meant for those that it suits: no line for the others.
        if settings.source(name) == "node" or (settings.source(name) == "options" and name not in _SAID_OF_ALL):
            what = sentence(NO_EFFECT, setting=_setting(settings, name), placement=placement)
            notices.append(Notice(component.name, what))
    if placement == "layerwise" and (idle := _peer_budget_without_peer(settings)):
        notices.append(Notice(component.name, idle, do=sentence("do_name_device")))
    if any(other.source == Source.SELECTION for other in weaker):
        source = SOURCE_SENTENCES[chosen.source]
        what = sentence("stronger_than_selection", component=component.name, source=source, placement=placement)
        notices.append(Notice(component.name, what))
    return notices


def require_device(settings: ComponentSettings, device_names: Sequence[str]) -> None:
    """Raises SettingsError if `host_tier` names a device and it is none of these, which may be chosen here."""
    peer = peer_of(settings)
    if peer is None or peer in device_names:
        return
    have = ", ".join(device_names) if device_names else "no second device that ComfyUI sees"
    choices = "one of these, auto" if device_names else "auto"
    raise SettingsError(
        f"asked {_asked(settings, Setting.HOST_TIER)}; found {have} to choose from on this machine; do choose "
        f"{choices}, pinned, pageable or mapped"
    )


def _peer_budget_without_peer(settings: ComponentSettings) -> Sentence | None:
    """That the budget of another device has no effect, if `host_tier` names none; None otherwise.

    Nothing is said of a budget in the user's ComfyUI settings: it is meant for the workflows that name a device.
    """
    source = settings.source(Setting.PEER_BUDGET_BYTES)
    if source in (None, Source.SETTINGS, Source.POLICY) or peer_of(settings) is not None:
        return None
    return sentence("no_effect_without_device", setting=_setting(settings, Setting.PEER_BUDGET_BYTES))


def _setting(settings: ComponentSettings, name: str) -> Sentence:
    value = settings.value(name)
    return sentence(
        "setting",
        component=settings.component,
        setting=name,
        value=format_bytes(value) if isinstance(value, int) else str(value),
        source=SOURCE_SENTENCES[settings.source(name) or Source.POLICY],
    )


def _asked(settings: ComponentSettings, name: str) -> str:
    return _setting(settings, name).text


def _total_bytes(device: Device) -> int | None:
    """The size of the device the component runs on; None if it is the CPU, or not known."""
    return None if device.kind == "cpu" else device.total_bytes


def _check_placement(component: Component, settings: ComponentSettings, device: Device) -> None:
    placement = settings.explicit(Setting.PLACEMENT, str)
    if placement == "layerwise" and not component.streamable:
        why = component.why_not or "its layers cannot be streamed"
        wish = _asked(settings, Setting.PLACEMENT)
        raise SettingsError(f"asked {wish}; found that {why}; do choose resident, whole or auto")
    total_bytes = _total_bytes(device)
    if placement == "resident" and total_bytes is not None and component.bytes > total_bytes:
        wish = _asked(settings, Setting.PLACEMENT)
        raise BudgetError(
            f"asked {wish}; found {format_bytes(component.bytes)} of weights and a device of "
            f"{format_bytes(total_bytes)}; do choose layerwise or auto",
            asked_bytes=total_bytes,
            smallest_bytes=component.bytes,
        )


def _check_budget(component: Component, settings: ComponentSettings, device: Device) -> None:
    placement = settings.value(Setting.PLACEMENT)
    budget_bytes = settings.explicit(Setting.BUDGET_BYTES, int)
    ring_bytes = settings.explicit(Setting.RING_BYTES, int)
    total_bytes = _total_bytes(device)
    if placement == "layerwise" and ring_bytes is not None and total_bytes is not None and ring_bytes > total_bytes:
        raise SettingsError(
            f"asked {_asked(settings, Setting.RING_BYTES)}; found a device of {format_bytes(total_bytes)}; "
            "do give less, or leave it on auto"
        )
    if budget_bytes is None or placement == "cpu":
        return
    wish = _asked(settings, Setting.BUDGET_BYTES)
    if placement == "layerwise":
        ring_bytes = min(ring_bytes or 0, component.bytes)  # a ring never needs more than all of the layers
        if ring_bytes > budget_bytes:
            both = f"{wish} and {_asked(settings, Setting.RING_BYTES)}"
            _too_small(both, ": a budget includes the ring", budget_bytes, ring_bytes)
        smallest_bytes = min(component.bytes, component.smallest_bytes or 0)
        if budget_bytes < smallest_bytes:
            _too_small(wish, " to stream it", budget_bytes, smallest_bytes)
    elif budget_bytes < component.bytes:
        _too_small(f"{wish} with placement {placement}", " for all of it", budget_bytes, component.bytes)


def _too_small(wish: str, why: str, budget_bytes: int, smallest_bytes: int) -> None:
    raise BudgetError(
        f"asked {wish}; found that {format_bytes(smallest_bytes)} are needed{why}; "
        f"do give at least {smallest_bytes} bytes, or leave it on auto",
        asked_bytes=budget_bytes,
        smallest_bytes=smallest_bytes,
    )


def _check_host(component: Component, settings: ComponentSettings, device: Device, host_bytes: int | None) -> None:
    # On the CPU, streamed layers are read from their file.
    if settings.value(Setting.PLACEMENT) != "layerwise" or host_bytes is None or device.kind == "cpu":
        return
    pins_bytes = settings.explicit(Setting.PIN_BUDGET_BYTES, int)
    if pins_bytes is not None and pins_bytes > host_bytes:
        wish = _asked(settings, Setting.PIN_BUDGET_BYTES)
        have = format_bytes(host_bytes)
        raise SettingsError(f"asked {wish}; found {have} of memory available; do lower it or leave it on auto")
    tier = settings.explicit(Setting.HOST_TIER, str)
    if tier not in ("pinned", "pageable"):
        return
    # Layers that are resident need no copy on the host, so only what the device cannot hold is certain to need one.
    device_bytes = settings.explicit(Setting.BUDGET_BYTES, int)
    if device_bytes is None:
        device_bytes = device.total_bytes or 0
    layers_bytes = component.bytes if component.layers_bytes is None else component.layers_bytes
    copies_bytes = max(0, layers_bytes - device_bytes)
    wish = _asked(settings, Setting.HOST_TIER)
    if tier == "pinned" and pins_bytes is not None and pins_bytes < copies_bytes:
        raise SettingsError(
            f"asked {wish} and {_asked(settings, Setting.PIN_BUDGET_BYTES)}; found at least "
            f"{format_bytes(copies_bytes)} of host copies to be page-locked; do raise that budget, or choose pageable "
            "or auto"
        )
    if copies_bytes > host_bytes:
        raise SettingsError(
            f"asked {wish}; found {format_bytes(host_bytes)} of memory for at least {format_bytes(copies_bytes)} of "
            "host copies; do choose mapped or auto"
        )
