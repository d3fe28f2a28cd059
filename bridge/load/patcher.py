"""A ModelPatcher that streams weights instead of moving them, or else calls the app's methods.

Clones carry settings and patches; the state of the weights belongs to the component, one per module. Every override
accepts further arguments and passes them on, since a newer app may add some (decision 164). Arguments that an override
in `REPLACED` does not name have no effect on streamed layers; `compat.compare` logs them at start.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import comfy.model_patcher
import comfy.utils
import torch

from ...offload_core.errors import OffloadError
from ...offload_core.runtime.host.host_parameter import check_files
from ...offload_core.settings.component_settings import ComponentSettings
from ..app import compat
from ..app.device import streams_to
from ..app.foreign import Foreign, foreign_of
from ..app.kinds import TEXT_ENCODER
from ..component import patches, true_values
from ..component.component import Component
from ..component.giving_back import UNLOAD_ORDER_BYTES, brings_no_user_code, give_back, make_room, make_way
from ..component.mapped_load import Built, MappedFiles, bring_weights_into_memory, settle_types_and_strides
from ..component.patches import changes_with
from ..memory.host_memory import host_memory
from ..memory.peers import require_peer
from ..planning.placing import left_to_the_app
from ..report import telemetry
from ..requests.requested import Requested

weights_stay_in_file: ContextVar[bool] = ContextVar("weights_stay_in_file", default=False)
"""During a load: the app assigns the mapped tensors of a file to the models that it builds, instead of copying them."""

REPLACED = (
    *("is_dynamic", "load", "loaded_size", "model_size", "partially_load", "partially_unload"),
    *("patch_hooks", "unpatch_hooks", "unpatch_model"),
)
"""The methods that replace the app's while layers are streamed; all other overrides call the app's method."""


class LayerwiseModelPatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher that keeps the weights on the host and streams them layer by layer."""

    built: Mapping[str, Built] = MappingProxyType({})
    """During a load: the layouts by tensor name that the model was built with."""
    foreign: Foreign | None = None
    """The patching of another pack, if its patcher was taken over."""

    def __init__(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        if weights_stay_in_file.get():
            tensors = itertools.chain(model.named_parameters(), model.named_buffers())
            self.built = {name: Built.of(tensor) for name, tensor in tensors}
        self.join_component()

    def is_dynamic(self, *args: Any, **kwargs: Any) -> bool:
        """True only during its own load, where it makes the app assign mapped tensors."""
        return bool(self.built) and weights_stay_in_file.get()

    def join_component(self, foreign: Foreign | None = None) -> None:
        """Register with the module's component, with default settings; `foreign`: what it was in another pack."""
        self.foreign = foreign
        true_values.show_true_state_dicts(self.model)
        self.component = Component.of(self.model)
        self.component.add_patcher(self, telemetry.tell_resolved)
        self.requested = Requested(ComponentSettings(self.component.name))

    def take(self, requested: Requested) -> None:
        """Set the nodes' request. The component keeps the name of its first request. Raises SettingsError if it names
        another device for layers from which they cannot be copied."""
        self.requested = requested.named(self.component.named(requested.component))
        if self.streams:
            require_peer(self.requested.settings, self.load_device)
            self.component.watch_shape(self.model)

    def settle_weights(self, files: MappedFiles, leave: bool, convert: bool) -> None:
        """The app has assigned the file's weights; see `mapped_load.settle_types_and_strides`."""
        settle_types_and_strides(self.model, self.built, files, leave, convert)
        self.built = {}

    def give_back_to_its_pack(self, foreign: Foreign) -> comfy.model_patcher.ModelPatcher:
        """Undo the take-over in place: the patcher gets back its class and attributes of the other pack."""
        self.component.patchers.discard(self)
        for name in ("component", "requested", "foreign"):
            self.__dict__.pop(name, None)
        self.__class__ = foreign.kind  # type: ignore[assignment]
        self.__dict__.update(foreign.own)
        return self

    @property
    def streams(self) -> bool:
        """Whether weights are streamed; otherwise every method calls the app's."""
        can_stream = streams_to(self.load_device) or self.component.reads_file
        return can_stream and not left_to_the_app(self.requested)

    def clone(self, *args: Any, **kwargs: Any) -> LayerwiseModelPatcher:
        clone: LayerwiseModelPatcher = super().clone(*args, **kwargs)
        clone.requested, clone.foreign = self.requested, self.foreign
        clone.size = self.size  # the app has set it to the bytes loaded now, not to the model's size
        return clone

    def deepclone_multigpu(self, new_load_device: torch.device | None = None, *args: Any, **kwargs: Any) -> Any:
        """A patcher for another device: over a model read anew; for text encoders over the same module.

        The app's node for CLIPs takes the patcher but computes with the CLIP's original module: with a second module
        our ring would be idle, and the weights of the first would be cast one by one.
        """
        if self.component.kind is TEXT_ENCODER and self.streams and new_load_device is not None:
            clone = self.clone()
            clone.load_device = new_load_device
            return clone
        return super().deepclone_multigpu(new_load_device, *args, **kwargs)

    # ------------------------------------------------------------------ sizes for the app's accounting

    def model_size(self, *args: Any, **kwargs: Any) -> int:
        """Device bytes that the model needs; once loaded, those that it holds, so that no model is evicted for more.

        Those that are not `resident` add a share of `UNLOAD_ORDER_BYTES`, by which the app orders who is to unload.
        """
        if not self.streams:
            return cast(int, super().model_size(*args, **kwargs))
        component = self.component
        if not component.loaded:
            return component.wanted_bytes(self.model, self.requested, self.load_device)
        order = 0 if self.requested.value("placement") == "resident" else UNLOAD_ORDER_BYTES // component.kind.passes
        return component.freeable_bytes() + order

    def loaded_size(self, *args: Any, **kwargs: Any) -> int:
        """Device bytes that unloading frees."""
        return self.component.freeable_bytes() if self.streams else super().loaded_size(*args, **kwargs)

    # ------------------------------------------------------------------ loading and unloading

    def load(
        self,
        device_to: torch.device | None = None,
        lowvram_model_memory: float = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if not self.streams or device_to is None:
            self.component.peer_store.let_go()
            bring_weights_into_memory(self.model)
            super().load(device_to, lowvram_model_memory, force_patch_weights, full_load, *args, **kwargs)
            if device_to is not None:
                telemetry.tell_left_to_the_app(self.component, self.requested, super().loaded_size())
            return
        with self.use_ejected():
            self.unpatch_hooks()
            component = self.component
            if not component.loaded:
                self._undo_foreign_patches()
            if component.attached and component.device != self.load_device:
                self._take_off_device()  # a clone was loaded on another device: release its queue and masters
                component.detach()
            component.attach(self.model, self.load_device)
            component.controller.when_full(functools.partial(make_room, component), brings_no_user_code)
            patches.keep_patched(component, self.requested.value("lora_mode"))
            component.controller.set_changes(patches.changes_of(self, device_to, shows_progress=True))
            self._prepare_modules(device_to)
            offered_bytes = 10**30 if full_load else lowvram_model_memory
            requested = replace(self.requested, in_split=self._in_split())
            component.load(requested, offered_bytes, functools.partial(make_way, component))
            patches.check_room(component.controller, component.name, self.requested.value("lora_mode"))
            self._tell_model(device_to)
            for callback in self.get_all_callbacks(comfy.model_patcher.CallbacksMP.ON_LOAD):
                callback(self, device_to, lowvram_model_memory, force_patch_weights, full_load)
            self.apply_hooks(self.forced_hooks, force_apply=True)
            telemetry.tell_resolved(component)

    def _in_split(self) -> bool:
        """Whether the app divides each step of the model between devices (the node *MultiGPU CFG Split*)."""
        is_part = getattr(self, "is_multigpu_base_clone", False)  # older versions of the app have no such node
        return is_part or bool(self.additional_models.get("multigpu"))

    def _undo_foreign_patches(self) -> None:
        """Restore the weights that another patcher over the module has patched in place."""
        if self.foreign is not None:
            self.foreign.undo(self.model)
        if self.backup or self.model.model_lowvram:
            objects = dict(self.object_patches_backup)  # our object patches stay applied
            self.object_patches_backup.clear()
            super().unpatch_model(self.offload_device, unpatch_weights=True)
            self.object_patches_backup.update(objects)

    def _prepare_modules(self, device: torch.device) -> None:
        """Set up each module as the app's full load does: forced casts and weight functions."""
        for name, module in self.model.named_modules():
            if not hasattr(module, "comfy_cast_weights"):
                continue
            comfy.model_patcher.wipe_lowvram_weight(module)
            module.comfy_force_cast_weights = self.force_cast_weights
            if self.force_cast_weights:
                module.prev_comfy_cast_weights = module.comfy_cast_weights
                module.comfy_cast_weights = True
            for kind in ("weight", "bias"):
                functions = self.weight_wrapper_patches.get(f"{name}.{kind}")
                if functions:
                    getattr(module, f"{kind}_function").extend(functions)
            comfy.model_patcher.move_weight_functions(module, device)
            vars(module).pop("comfy_patched_weights", None)  # the masters, which savers read, are unpatched

    def _tell_model(self, device: torch.device) -> None:
        """Set the attributes of a loaded model that the app reads."""
        model = self.model
        model.device = device
        model.model_lowvram = False
        model.lowvram_patch_counter = 0
        model.model_loaded_weight_memory = self.loaded_size()
        model.model_offload_buffer_memory = 0
        model.current_weight_patches_uuid = self.patches_uuid

    def partially_load(
        self,
        device_to: torch.device,
        extra_memory: float = 0,
        force_patch_weights: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        if not self.streams:
            return cast(int, super().partially_load(device_to, extra_memory, force_patch_weights, *args, **kwargs))
        with self.use_ejected(skip_and_inject_on_exit_only=True):
            before, held = self.loaded_size(), self.component.device_bytes()
            super().unpatch_model(None, unpatch_weights=False)  # object patches of another clone; weights stay
            self.patch_model(load_weights=False)
            try:
                self.load(device_to, held + extra_memory, force_patch_weights)
            except BaseException:
                self.detach()
                raise
            return self.loaded_size() - before

    def partially_unload(
        self,
        device_to: torch.device,
        memory_to_free: float = 0,
        force_patch_weights: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        if not self.streams or not self.component.loaded:
            return cast(int, super().partially_unload(device_to, memory_to_free, force_patch_weights, *args, **kwargs))
        freed = give_back(self.component, self.requested, int(memory_to_free))
        self.model.model_loaded_weight_memory = self.loaded_size()
        return freed

    def unpatch_model(
        self, device_to: torch.device | None = None, unpatch_weights: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        if not self.streams:
            if self.component.loaded:  # by a clone that streams; the app counts the module as unloaded
                self._take_off_device()
            super().unpatch_model(device_to, unpatch_weights, *args, **kwargs)
            return
        if unpatch_weights and self.component.attached:
            self.eject_model()
            self.unpatch_hooks()
            self._take_off_device()
            host_memory().free_until_not_short()
        super().unpatch_model(None, False, *args, **kwargs)

    def _take_off_device(self) -> None:
        """Release the component's device memory. The masters hold the unpatched values."""
        component, model = self.component, self.model
        component.unload()
        model.current_weight_patches_uuid = None
        model.model_loaded_weight_memory = 0
        model.device = self.offload_device

    def __del__(self) -> None:
        component = self.__dict__.get("component")
        if component is None:
            return
        component.patchers.discard(self)
        self.eject_model()
        # Not by the set's length: patchers that die in one collection of a reference cycle are still counted.
        if any(other is not self for other in component.patchers):
            return
        if component.attached:
            self._take_off_device()
            component.close()
        component.stop_watching()

    # ------------------------------------------------------------------ true values for code that reads weights

    @contextlib.contextmanager
    def _true_values(self, *of: torch.Tensor) -> Iterator[None]:
        """In the block, the module shows its unpatched weights. Raises FileReadError if a file of theirs has changed.

        of: check the files of these tensors only.
        """
        with self.component.controller.masters_shown() if self.component.loaded else contextlib.nullcontext():
            check_files(of or self.model.parameters())
            yield

    def get_key_patches(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Each unpatched weight with its patches, for merges and LoRA extraction."""
        with self._true_values():
            key_patches: dict[str, Any] = super().get_key_patches(*args, **kwargs)
        return {
            key: [(true_values.deferred_weight(weight), convert), *patches]
            for key, [(weight, convert), *patches] in key_patches.items()
        }

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        with self._true_values(comfy.utils.get_attr(self.model, key)), contextlib.ExitStack() as stack:
            if kwargs.get("return_weight"):
                stack.enter_context(true_values.read_from_file(self.model, key))
            return super().patch_weight_to_device(key, *args, **kwargs)

    def model_state_dict_for_saving(
        self, model: torch.nn.Module | None = None, prefix: str = "", *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The app's state dict, with patched values where the app expects the module's weights to be patched."""
        if self.foreign is not None and self.foreign.quantised:
            raise OffloadError(
                f"asked to save a model that came as a {self.foreign.kind.__name__}; found quantised weights that only "
                "its own pack can write; save the model from which the file was made"
            )
        with self._true_values(), true_values.in_their_types(self.model):
            state: dict[str, Any] = super().model_state_dict_for_saving(model, prefix, *args, **kwargs)
            ours = self.streams and self.component.attached
            return true_values.fill_in_patched(self, state, prefix) if ours else state

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Before 0.24 the app makes lazy weights from the module here; later versions call the method above."""
        with contextlib.ExitStack() as stack:
            if not compat.saves_lazily():
                stack.enter_context(self._true_values())
                stack.enter_context(true_values.in_their_types(self.model))
            return cast(dict[str, Any], super().state_dict_for_saving(*args, **kwargs))

    # ------------------------------------------------------------------ weight hooks

    def patch_hooks(self, hooks: Any, *args: Any, **kwargs: Any) -> None:
        """Activate the hooks (a scheduled LoRA): from the next arrival on, layers have their weights."""
        if not self.streams:
            super().patch_hooks(hooks, *args, **kwargs)
            return
        self.current_hooks = None
        if self.component.loaded:
            with self.use_ejected():
                self.component.controller.set_changes(changes_with(self, hooks, self.load_device))
            self.current_hooks = hooks

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None, *args: Any, **kwargs: Any) -> None:
        if not self.streams:
            super().unpatch_hooks(whitelist_keys_set, *args, **kwargs)
        elif self.current_hooks is not None:
            self.patch_hooks(None)


def become_ours(patcher: comfy.model_patcher.ModelPatcher) -> LayerwiseModelPatcher:
    """Take over a patcher in place, of the app's class or one that `foreign_of` supports. Raises OffloadError."""
    foreign = foreign_of(patcher)
    patcher.__class__ = LayerwiseModelPatcher
    ours = cast(LayerwiseModelPatcher, patcher)
    ours.join_component(foreign)
    return ours
