"""What a part `app-...` does and measures, as ComfyUI's nodes would: loading, prompts, LoRAs and steps."""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from typing import Any

import torch

from bench.device import Device, DriverMemory, memory_of_machine
from bench.kit import app_process
from bench.kit.app_models import MODELS, AppModel
from bench.kit.rows import Rows, read_rows
from bench.pack import pack_module

PROMPTS = ("a lighthouse at dusk", "two foxes in the snow", "a street market in the rain")
STRENGTHS = (0.8, 0.8, 0.6)
"""The second is the first once more: what a strength costs that did not change."""
LORA_RANK = 16
SEED = 1
POLL_S = 0.02


class Peak:
    """The most device memory in use, by the driver, above what was in use at the start."""

    def __init__(self, device: Device) -> None:
        self.memory = DriverMemory(device)
        self._base = self.memory.used()
        self._peak = 0
        if self._base is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(POLL_S)

    def _look(self) -> None:
        self._peak = max(self._peak, (self.memory.used() or 0) - (self._base or 0))

    def take(self) -> int | None:
        """Bytes since the last call; None where it cannot be read."""
        if self._base is None:
            return None
        self._look()
        peak, self._peak = self._peak, 0
        return peak


class Flow:
    """One way, from loading to the last step."""

    def __init__(self, arguments: argparse.Namespace, rows: Rows, library: Any) -> None:
        self.way = arguments.way
        self.model: AppModel = MODELS[arguments.model]
        self.arguments = arguments
        self.rows = rows
        self.device = Device(arguments.device)
        self.management = app_process.start(self.device, arguments.tree, library, crowded=self.way != "full")
        self.free_bytes = None if self.device.module is None else int(self.device.module.mem_get_info()[0])
        self.api = pack_module("bridge.api") if self.way.startswith("ours") else None
        self.peak = Peak(self.device)
        self.link = self._link()
        self.dit: Any = None
        self.clip: Any = None

    def _link(self) -> float | None:
        """Bytes per second of a page-locked copy by the app's own torch; None on the CPU."""
        if self.device.module is None:
            return None
        nbytes = (256 << 20) if self.device.kind == "cuda" else (4 << 20)
        source = torch.ones(nbytes, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(nbytes, dtype=torch.uint8, device=self.device.name)
        target.copy_(source)
        return nbytes / self.device.seconds(lambda: target.copy_(source, non_blocking=True), 4)

    # ------------------------------------------------------------------ nodes

    def load_dit(self) -> Any:
        path = str(self.arguments.folder / self.model.dit.file)
        if self.api is not None:
            return self.api.load_diffusion_model(path, "default", self._asked("dit", "auto"))
        import comfy.sd

        return comfy.sd.load_diffusion_model(path)

    def load_clip(self) -> Any:
        paths = [str(self.arguments.folder / file.file) for file in self.model.encoders]
        if self.api is not None:
            placement = "whole" if self.way == "ours-whole" else "auto"
            return self.api.load_clip(paths, self.model.clip_type, self._asked("text_encoder", placement))
        import comfy.sd

        kind = comfy.sd.CLIPType[self.model.clip_type.upper()]
        clip = comfy.sd.load_clip(paths, embedding_directory=None, clip_type=kind)
        if self.way == "dynamic":
            app_process.place_loose(clip.cond_stage_model, self.device)
        return clip

    def _asked(self, component: str, placement: str) -> Any:
        return self.api.Requested(self.api.ComponentSettings(component).with_value("placement", placement, "node"))

    def encode(self, text: str, times: dict[str, Any]) -> Any:
        with app_process.node(self.device, times, "encode_s"):
            return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(self, model: Any, cond: Any, pixels: int, times: dict[str, Any]) -> None:
        """The sampler's node: seconds in all and by step, and the latent's hash, into `times`."""
        import comfy.sample

        latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(self.model.latent_shape(pixels)))
        noise = comfy.sample.prepare_noise(latent, SEED)
        ends = []

        def after_step(*_: Any) -> None:  # one wait a step, the same for every way
            self.device.synchronize()
            ends.append(time.perf_counter())

        options = {"callback": after_step, "disable_pbar": True, "seed": SEED}
        steps = self.arguments.steps
        with app_process.node(self.device, times, "sample_s"):
            began = time.perf_counter()
            made = comfy.sample.sample(model, noise, steps, 1.0, "euler", "simple", cond, cond, latent, **options)
        steps_s = [end - start for start, end in zip([began, *ends], ends)]
        times |= {"first_step_s": steps_s[0], "steady_step_s": min(steps_s[1:], default=steps_s[0]), "steps_s": steps_s}
        times["latent"] = hashlib.sha256(made.float().cpu().numpy().tobytes()).hexdigest()[:16]
        times["finite"] = bool(torch.isfinite(made).all())

    # ------------------------------------------------------------------ the flow

    def run(self) -> None:
        sizes = self.arguments.pixels
        times: dict[str, Any] = {}
        with app_process.node(self.device, times, "load_dit_s"):
            self.dit = self.load_dit()
        with app_process.node(self.device, times, "load_clip_s"):
            self.clip = self.load_clip()
        cond: Any = None
        for number, text in enumerate(PROMPTS):
            cond = self.encode(text, times)
            self.sample(self.dit, cond, sizes[0], times)
            times["prompt_s"] = times["encode_s"] + times["sample_s"]
            if number == 0:
                times["load_to_first_step_s"] = times["load_dit_s"] + times["load_clip_s"] + times["encode_s"]
                times["load_to_first_step_s"] += times["first_step_s"]
            self.row("first prompt" if number == 0 else f"new prompt {number}", sizes[0], times)
            times = {}
        self.sample(self.dit, cond, sizes[0], times)
        self.row("same prompt again", sizes[0], times)
        for pixels in sizes[1:]:
            times = {}
            self.sample(self.dit, cond, pixels, times)
            self.row("steps", pixels, times)
        if self.arguments.lora:
            self.lora(cond, sizes[0])
        self.plans()

    def lora(self, cond: Any, pixels: int) -> None:
        import comfy.sd

        state = self._lora_state()
        for number, strength in enumerate(STRENGTHS):
            times: dict[str, Any] = {}
            with app_process.node(self.device, times, "lora_node_s"):
                patched, _ = comfy.sd.load_lora_for_models(self.dit, None, state, strength, 0)
            self.sample(patched, cond, pixels, times)
            self.row(f"lora {number + 1}: {strength}", pixels, times, strength=strength, keys=len(state) // 3)

    def _lora_state(self) -> dict[str, torch.Tensor]:
        """A LoRA of noise over every matrix of the blocks, named as the app's own."""
        generator = torch.Generator().manual_seed(5)
        state: dict[str, torch.Tensor] = {}
        for name, weight in self.dit.model.diffusion_model.named_parameters():
            if weight.ndim != 2 or not name.endswith(".weight") or "blocks" not in name:
                continue
            key = "diffusion_model." + name.removesuffix(".weight")
            for side, shape in (("up", (weight.shape[0], LORA_RANK)), ("down", (LORA_RANK, weight.shape[1]))):
                state[f"{key}.lora_{side}.weight"] = (torch.randn(shape, generator=generator) * 0.01).bfloat16()
            state[f"{key}.alpha"] = torch.tensor(float(LORA_RANK))
        return state

    # ------------------------------------------------------------------ rows

    def row(self, name: str, pixels: int, times: dict[str, Any], **more: Any) -> None:
        """A row of this way. `case` is what is to have the same latent in every way."""
        module = self.device.module
        self.rows.write(
            f"{self.way}: {name}, {pixels}",
            way=self.way,
            model=self.arguments.model,
            pixels=pixels,
            case=name,
            free_bytes_at_start=self.free_bytes,
            **times,
            **more,
            **self._ratio(pixels, times),
            peak_device_bytes=self.peak.take(),
            peak_by=self.peak.memory.source,
            torch_reserved_bytes=None if module is None else module.max_memory_reserved(),
            page_locked_bytes=self._page_locked(),
            **memory_of_machine(),
        )

    def _ratio(self, pixels: int, times: dict[str, Any]) -> dict[str, Any]:
        """What a step's copies and its compute take; the compute is that of the full load, if this run has it."""
        if self.link is None:
            return {}
        weights = self.dit.model.diffusion_model.parameters()
        copy_s = sum(weight.numel() * weight.element_size() for weight in weights) / self.link
        if self.way == "full":
            compute_s = times["steady_step_s"]
        else:
            rows = read_rows(self.rows.path) if self.rows.path is not None else []
            alike = [row["steady_step_s"] for row in rows if self._is_reference(row, pixels)]
            compute_s = min(alike, default=None)
        ratio = None if compute_s is None else compute_s / copy_s
        return {"copy_s": copy_s, "compute_s": compute_s, "r": ratio, "link_bytes_per_s": self.link}

    def _is_reference(self, row: dict[str, Any], pixels: int) -> bool:
        alike = row.get("way") == "full" and row.get("model") == self.arguments.model and row.get("pixels") == pixels
        return alike and "strength" not in row

    def _page_locked(self) -> dict[str, int]:
        """Bytes that are page-locked, by the app's own account and by ours."""
        found = {"app": int(getattr(self.management, "TOTAL_PINNED_MEMORY", 0))}
        found["app_at_most"] = int(getattr(self.management, "MAX_PINNED_MEMORY", 0))
        for one in self._components():
            found[one.name] = one.controller.host_bytes().get("pinned", 0) if one.plan is not None else 0
        return found

    def _components(self) -> list[Any]:
        if self.api is None:
            return []
        return list(pack_module("bridge.component.component").live_components())

    def plans(self) -> None:
        """What our engine did, by component."""
        for one in self._components():
            if one.plan is not None:
                facts = {
                    "plan": pack_module("offload_core.planning.plan_text").plan_to_text(one.plan)[:3000],
                    "counters": one.controller.counters.as_dict(),
                }
                facts |= {"link": one.controller.link_rates().from_host, "host_bytes": one.controller.host_bytes()}
                facts["warnings"] = [notice.line for notice in one.notices]
                self.rows.write(f"{self.way}: plan of {one.name}", way=self.way, **facts)
