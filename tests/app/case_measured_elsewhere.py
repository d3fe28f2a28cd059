"""A diffusion model that was measured on one device is attached on another. `python -m` this, with its file, prints
by what the plan there was made; run by `test_two_devices.py` in a process of its own."""

import json
import sys

import torch

from bench.load import start_app
from bench.pack import pack_module


def alone(plan, request, number_bytes):
    """What makes way for a plan where there is no other component."""
    return plan, request


def main(path: str) -> None:
    asked_module, component_module = pack_module("bridge.requests.requested"), pack_module("bridge.component.component")
    settings = pack_module("offload_core.settings.component_settings").ComponentSettings("dit")
    asked = asked_module.Requested(settings.with_value("placement", "layerwise", "node"))
    patcher = pack_module("bridge.load.loaders").load_diffusion_model(path, "default", asked)
    component = component_module.Component.of(patcher.model)
    component.attach(patcher.model, patcher.load_device)
    component.load(asked, 1 << 30, alone)
    controller = component.controller
    rates = pack_module("offload_core.runtime").LinkRates(3e8, None, None)  # as after measured passes
    component._better_plan(controller.plan, controller.measured_inventory(), rates)
    component.detach()
    component.attach(patcher.model, torch.device("cpu"))
    component.load(asked, 1 << 30, alone)
    plan, inventory = component.controller.plan, component.controller.inventory
    segments = plan.segment_bytes == inventory.segment_bytes
    print(json.dumps({"device": plan.device, "segments": segments, "link": component.request.link_source}))


if __name__ == "__main__":
    file = sys.argv[1]  # the app gets a command line of its own
    start_app()
    with torch.inference_mode():
        main(file)
