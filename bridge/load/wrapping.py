"""Takes over what other nodes have loaded: a layerwise patcher over the module behind a MODEL, CLIP, VAE and so on.

The object that went in stays as it was, so that it can also be used without us in the same graph.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import torch

from ...offload_core.errors import OffloadError
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import ComponentSettings
from ...offload_core.settings.node_table import APPLY_ONLY, DECLARED_AS
from ..app import compat
from ..app.foreign import foreign_of
from ..app.kinds import kind_of
from ..component.component import Component
from ..component.left_alone import LeftAlone, leave_alone
from ..planning.placing import left_to_the_app
from ..report.telemetry import tell_left_alone
from ..requests.node_context import NodeContext
from .loading import check_placement, patcher_class
from .patcher import LayerwiseModelPatcher, become_ours

_HOLDERS = {
    "text_encoder": ("patcher", "cond_stage_model"),
    "vae": ("patcher", "first_stage_model"),
    "image_encoder": ("patcher", "model"),
    "controlnet": ("control_model_wrapped", "control_model"),
}
"""The attributes of the app's objects by kind: the patcher, and the module that it is over."""

_AppPatcher = comfy.model_patcher.ModelPatcher


def wrap(connected: Any, kind: str, settings: ComponentSettings, context: NodeContext) -> Any:
    """A copy of a MODEL, CLIP, VAE, CLIP_VISION or CONTROL_NET over a layerwise patcher; a MODEL is such a patcher.

    Control nets chained in front stay as they are. What is of a kind of `APPLY_ONLY` and cannot be streamed is handed
    on as it is, and why is told. Raises OffloadError and SettingsError.
    """
    with compat.checked(f"to apply layerwise offload to a {kind}", LayerwiseModelPatcher):
        if kind in APPLY_ONLY:
            return _wrapped_or_left(connected, kind, settings, context)
        if kind == "dit":
            return _wrapped(connected, kind, settings, context)
        of_patcher, of_model = _HOLDERS[kind]
        patcher = getattr(connected, of_patcher, None)
        if patcher is None:
            raise OffloadError(
                f"asked to apply layerwise offload to a {type(connected).__name__}; found that it has no weights of "
                "its own to stream; use it without layerwise offload"
            )
        if kind == "text_encoder":
            holder = connected.clone()
        elif kind == "controlnet":
            holder = connected.copy()
            holder.previous_controlnet = connected.previous_controlnet
        else:  # these have no copying method of their own
            holder = copy.copy(connected)
        ours = _wrapped(patcher, kind, settings, context)
        setattr(holder, of_patcher, ours)
        setattr(holder, of_model, ours.model)
        return holder


def _wrapped_or_left(connected: Any, kind: str, settings: ComponentSettings, context: NodeContext) -> Any:
    """For a patcher, or an object that has one as its `patcher`: the same over a layerwise patcher.

    Of what cannot be streamed, a copy as it is; a bare module itself, which the node that uses it moves.
    """
    patcher = connected if isinstance(connected, _AppPatcher) else getattr(connected, "patcher", None)
    why, do = _why_not(patcher)
    if why is None:
        ours = _wrapped(patcher, kind, settings, context)
        if connected is patcher:
            return ours
        holder = copy.copy(connected)
        holder.patcher = ours  # over the same module, which the holder has already
        return holder
    if isinstance(connected, torch.nn.Module):
        handed_on = connected
    elif isinstance(connected, _AppPatcher):
        handed_on = connected.clone()
    else:
        handed_on = copy.copy(connected)
    requested = context.ask(replace(settings, component=context.name(kind)))
    check_placement(requested, at_load=False)
    left = LeftAlone(requested, type(getattr(connected, "model", connected)).__name__, why, do)
    leave_alone(handed_on, left)
    tell_left_alone(left)
    return handed_on


def _why_not(patcher: Any) -> tuple[Sentence | None, Sentence | None]:
    """Why the weights behind `patcher` cannot be streamed, and what the user can do about it; None if they can be."""
    if not isinstance(patcher, _AppPatcher):
        return sentence("no_patcher"), None
    if isinstance(patcher, LayerwiseModelPatcher):
        return None, None
    if patcher.is_dynamic():
        return sentence("only_dynamic"), sentence("do_without_dynamic")
    try:
        foreign_of(patcher)
    except OffloadError:
        return sentence("moved_its_own_way", patcher=type(patcher).__name__), None
    return None, None


def _wrapped(
    model: comfy.model_patcher.ModelPatcher, kind: str, settings: ComponentSettings, context: NodeContext
) -> comfy.model_patcher.ModelPatcher:
    """A layerwise patcher over the module of `model`, which is to be a component of `kind`.

    Patches, options, wrappers and the rest are carried over as the app's own `clone` does. A Dynamic VRAM model is
    first turned into an ordinary one by the app's factory, which loads the file a second time; one that is to be left
    to the app stays what it is, block prefetch of the app's included.
    """
    component_kind = kind_of(model.model, kind)
    if DECLARED_AS.get(component_kind.name, component_kind.name) != kind:
        raise OffloadError(
            f"asked to apply layerwise offload to a {kind}; found a {component_kind.name} "
            f"({type(model.model).__name__}); connect it to the input for a {component_kind.name}"
        )
    ours = model if isinstance(model, LayerwiseModelPatcher) else None
    if ours is None:
        settings = replace(settings, component=context.name(kind, component_kind.name))
    requested = context.ask(settings, before=ours and ours.requested)
    check_placement(requested, at_load=False)
    dynamic = model.is_dynamic()
    if dynamic and left_to_the_app(requested, by_number=model.cached_patcher_init is not None):
        return model.clone()
    if dynamic:
        model = _without_dynamic_vram(model)
    Component.of(model.model, kind)
    clone = ours.clone() if ours is not None else become_ours(model.clone())
    clone.take(requested)
    if clone.foreign is not None and not clone.streams:
        return clone.give_back_to_its_pack(clone.foreign)
    if dynamic:
        clone.component.warn(sentence("loaded_twice"), do=sentence("do_load_once"))
    return clone


def _without_dynamic_vram(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    if model.cached_patcher_init is None:
        raise OffloadError(
            "asked to apply layerwise offload to a Dynamic VRAM model; found that its loader registered no factory "
            "to load it without; use a Layerwise Offload loader node for it, or start the app with "
            "--disable-dynamic-vram"
        )
    # The app's factory for VAEs does not listen to `disable_dynamic`: its weights would be the file's, uncast.
    with patcher_class(comfy.model_patcher.ModelPatcher):
        return model.clone(disable_dynamic=True)
