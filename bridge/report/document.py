"""What there is to say of all components, as plain data: the documents of `docs/formats.md`. Reads, changes nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import psutil
import torch

from ...offload_core.errors import OffloadError
from ...offload_core.notices import Notice, notices_json
from ...offload_core.planning.cost_model import assumed_times, compute_times
from ...offload_core.planning.plan import Plan
from ...offload_core.planning.plan_text import plan_to_text
from ...offload_core.planning.planner import make_plan, smallest_budget_for
from ...offload_core.planning.request import PlanRequest
from ...offload_core.planning.simulate import steady_events
from ...offload_core.sentences import reason_json, sentence
from ...offload_core.settings.component_settings import ComponentSettings, budget_set
from ...offload_core.trace.events import Event, newest_pass
from ...offload_core.trace.trace_summary import run_numbers
from ...offload_core.units import widget_gb_at_least
from ..app.device import ring_there, streams_to, total_bytes
from ..app.recording import recording
from ..component.component import Component, live_components
from ..component.left_alone import left_alone
from ..component.patches import not_kept
from ..memory.allowances import host_available_bytes
from ..memory.host_memory import host_memory
from ..planning.decide import decide, plan_decision
from ..planning.placing import Situation, left_to_the_app
from ..planning.refused_budget import refusal
from .picture import draw_report

SCHEMA = 1

WHAT_IF_BYTES = (-1_000_000_000, 0, 1_000_000_000)


def live_document() -> dict[str, Any]:
    """The whole report. Plans ahead for the what-ifs: not for a thread that must not wait some milliseconds."""
    expected = expected_reports()
    return {
        "schema": SCHEMA,
        "components": live_reports(),
        "expected": expected,
        "bystanders": live_bystanders(),
        "devices": devices(expected),
        "host": host(),
    }


def report_image(document: dict[str, Any]) -> torch.Tensor:
    """The picture of a report as the app's IMAGE, with the timelines of this moment."""
    return draw_report(document, timelines(document["expected"])).tensor()


def live_reports() -> list[dict[str, Any]]:
    """The reports of all components that have been loaded and still exist, in the order of their names."""
    return sorted(filter(None, map(component_report, live_components())), key=_names)


def component_report(component: Component) -> dict[str, Any] | None:
    """Plan, run summary and state of one component; None if it has never been loaded."""
    plan = component.plan
    if plan is None:
        return None
    controller = component.controller
    controller.prefetcher.read_times()
    summary = controller.counters.as_dict() | {
        "peak_device_bytes": component.peak_device_bytes,
        "device_bytes": component.device_bytes(),
        "ring_bytes": plan.ring_bytes,
        "resident_bytes": plan.resident_bytes,
        "loose_bytes": plan.loose_bytes,
        "pinned_bytes": controller.pinned_bytes(),
        "version_bytes": controller.versions.held_bytes,
        "host_bytes": _in_host(controller.host_bytes()),
        "peer_device": controller.peer_device,
        "peer_bytes": controller.peer_bytes(),
    }
    of_runs = not_kept(controller.versions)
    if touched := controller.outside_touches:
        names = ", ".join(sorted(touched)[:3])
        of_runs.append(sentence("outside_their_call", layers=len(touched), names=names))
    notices = [*component.notices, *(Notice(component.name, what) for what in of_runs)]
    request = component.request
    return {
        **live_state(component),
        "kind": component.kind.name,
        "device": str(component.device),
        "plan": plan.to_json(),
        "plan_text": plan_to_text(plan),
        "summary": summary,
        "host": _tiers(controller.host_bytes()),
        "budget_bytes": None if request is None else request.budget_bytes,
        "what_if": [] if request is None else what_if(request, plan),
        "assumed_times": None if request is None else assumed_times(request.inventory),
        "nodes": list(component.nodes()),
        "settings": component.resolved.to_json() if component.resolved is not None else {},
        **notices_json(notices),
    }


def live_state(component: Component) -> dict[str, Any]:
    """What of a component changes while it runs. Cheap, from any thread."""
    controller = component.controller
    recorder = controller.prefetcher.recorder
    numbers = run_numbers(
        controller.counters.as_dict(),
        component.run_began,
        recorder.last_pass_bytes if recorder is not None else None,
        int(mm.get_free_memory(component.device)),
    )
    return {
        "id": component.id,
        "component": component.name,
        "model": component.model_name,
        "loaded": controller.loaded,
        "running": controller.prefetcher.in_pass or controller.is_running(),
        "layer_states": controller.layer_states(),
        "numbers": numbers,
        "pass": controller.counters.passes,
    }


def _patched() -> Iterator[tuple[Component, Any, dict[str, Any]]]:
    """The components that have a patcher of ours, with one of these and what names them in a report."""
    for component in live_components():
        patcher = next(iter(component.patchers), None)
        if patcher is not None:
            model = component.model_name or type(patcher.model).__name__
            yield component, patcher, {"component": component.name, "model": model}


def live_bystanders() -> list[dict[str, Any]]:
    """The components that nodes of ours have handled and that go the app's own way, with the reason."""
    bystanders = [
        {**names, **reason_json(reason), "nodes": list(component.nodes())}
        for component, patcher, names in _patched()
        if (reason := left_to_the_app(patcher.requested))
    ]
    for left in left_alone():
        reason = left_to_the_app(left.requested) or left.why
        names = {"component": left.requested.component, "model": left.model}
        bystanders.append({**names, **reason_json(reason), "nodes": sorted(left.requested.nodes)})
    return sorted(bystanders, key=_names)


def _names(report: Mapping[str, Any]) -> tuple[str, str]:
    return report["component"], report["model"]


# ---------------------------------------------------------------------- before the first run


def expected_reports() -> list[dict[str, Any]]:
    """Components that nodes have asked to stream and that have not been loaded yet: the plan as things stand."""
    reports = []
    for component, patcher, names in _patched():
        if component.plan is not None or not patcher.streams:
            continue
        device = patcher.load_device
        report = {"id": component.id, **names, "device": str(device), "nodes": list(component.nodes())}
        try:
            plan, request = _expected_plan(component, patcher, names["model"])
        except OffloadError as error:
            report |= refusal(error, patcher.requested.settings, device)
        else:
            report |= {"plan": plan.to_json(), "plan_text": plan_to_text(plan), "budget_bytes": request.budget_bytes}
        reports.append(report)
    return sorted(reports, key=_names)


def _expected_plan(component: Component, patcher: Any, model: str) -> tuple[Plan, PlanRequest]:
    """What it would be planned for if it were loaded now, and the plan. Raises what a load would raise."""
    inventory, device = component.inventory_of(patcher.model, patcher.load_device), patcher.load_device
    situation = Situation.guessed(
        device, component.device_bytes(), component.neighbours(), members=component.members(patcher.requested, device)
    )
    decision = decide(patcher.requested, component.kind, inventory, situation)
    return plan_decision(decision, patcher.requested.settings, situation, model)


def timelines(expected: Sequence[dict[str, Any]]) -> dict[str, tuple[list[Event], bool]]:
    """By id, one pass on the device of each component, and whether it was measured; else it is the simulator's."""
    events, _ = recording().since()
    by_id = {}
    for component in live_components():
        plan, request = component.plan, component.request
        if plan is not None and request is not None:
            measured = newest_pass(events, component.id)
            by_id[component.id] = (measured or simulated(plan, request, component.id), bool(measured))
    planned = {report["id"] for report in expected if "plan" in report}
    for component, patcher, names in _patched():
        if component.id in planned:
            with contextlib.suppress(OffloadError):  # there may be less memory than when the report was made
                plan, request = _expected_plan(component, patcher, names["model"])
                by_id[component.id] = (simulated(plan, request, component.id), False)
    return by_id


def simulated(plan: Plan, request: PlanRequest, name: str) -> list[Event]:
    times, _ = compute_times(request.inventory, request.in_place)
    return steady_events(plan, times, request.h2d_bytes_per_s, name, request.peer_bytes_per_s)


@functools.lru_cache(maxsize=64)
def _what_if(request: PlanRequest, budget_bytes: int) -> dict[str, Any]:
    if budget_bytes < (smallest := smallest_budget_for(request)):
        budget = f"{max(0, budget_bytes) // 10**7 / 100:.2f} GB"  # rounded down and up: else both may look the same
        why = sentence("budget_too_small", budget=budget, needed=f"{widget_gb_at_least(smallest):.2f} GB")
        return {"error": why.text, "why": why.to_json()}
    try:
        plan = make_plan(replace(request, budget_bytes=budget_bytes))
    except OffloadError as error:
        return {"error": str(error), "why": None}
    return {"pass_ns": plan.predicted.pass_ns, "resident_layers": len(plan.residents)}


def what_if(request: PlanRequest, plan: Plan) -> list[dict[str, Any]]:
    """What another budget would give, by the planner and the simulator, with the times that are known now."""
    budget = request.budget_bytes if request.budget_bytes is not None else plan.device_bytes
    return [{"delta_bytes": delta, **_what_if(request, budget + delta)} for delta in WHAT_IF_BYTES]


# ---------------------------------------------------------------------- memory


def devices(planned: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """The memory of every device on which components of ours are or have layers, and of the app's, if it has memory of
    its own.

    `planned`: reports of components that have not been loaded, which may be planned to have layers on further devices.
    """
    components = [component for component in live_components() if component.attached]
    peers = [component.peer_store.device for component in components]
    peers += [report.get("plan", {}).get("peer_device") for report in planned]
    every = [mm.get_torch_device(), *(component.device for component in components)]
    every += [torch.device(peer) for peer in peers if peer is not None]
    return [_device(device, components) for device in dict.fromkeys(every) if streams_to(device)]


def _device(device: torch.device, components: Sequence[Component]) -> dict[str, Any]:
    name, free, total = str(device), int(mm.get_free_memory(device)), total_bytes(device)
    here = [component for component in components if component.loaded and component.device == device]
    plans = [component.plan for component in here if component.plan is not None]
    stores = [component.peer_store for component in components if component.peer_store.device == name]
    ours = {
        "ring_bytes": ring_there(device),
        "resident_bytes": sum(plan.resident_bytes for plan in plans),
        "loose_bytes": sum(plan.loose_bytes for plan in plans),
        "stored_bytes": sum(store.held_bytes() for store in stores),
    }
    others = max(0, total - free - sum(ours.values()))
    budget = budget_set([component.resolved or ComponentSettings(component.name) for component in here])
    return {
        "name": name,
        "total_bytes": total,
        "free_bytes": free,
        **ours,
        "others_bytes": others,
        "budget_bytes": None if budget is None else min(budget, total),
    }


def host() -> dict[str, int]:
    """Host memory: our masters by tier, shared ones counted once, and what there is."""
    total = int(psutil.virtual_memory().total)
    return {**_tiers(host_memory().in_use()), "available_bytes": host_available_bytes(), "total_bytes": total}


def _tiers(by_tier: Mapping[Any, int]) -> dict[str, int]:
    return {f"{tier}_bytes": nbytes for tier, nbytes in _in_host(by_tier).items()}


def _in_host(by_tier: Mapping[Any, int]) -> dict[str, int]:
    """The tiers of host memory and files: layers on another device are in that device's row."""
    return {tier: nbytes for tier, nbytes in by_tier.items() if tier != "peer"}
