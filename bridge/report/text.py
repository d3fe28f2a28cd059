"""The report of all components, for people and for programs. Formatting only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...offload_core.units import count


def report_text(document: Mapping[str, Any]) -> str:
    """Settings, plan, last run and warnings of each component, a paragraph each; then what goes the app's own way."""
    paragraphs = ["\n".join(_paragraph(component)) for component in document["components"]]
    paragraphs += ["\n".join(_expected(report)) for report in document["expected"]]
    paragraphs += [
        f"{bystander['component']}: {bystander['model']}: ComfyUI's own way: {bystander['reason']}"
        for bystander in document["bystanders"]
    ]
    return "\n\n".join(paragraphs) or "Layerwise Offload: no component has been loaded yet."


def _expected(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{report['component']}: {report['model']} (not loaded yet; as things stand now:)"]
    return lines + [f"  {line}" for line in report.get("plan_text", report.get("error", "")).splitlines()]


def _paragraph(component: dict[str, Any]) -> list[str]:
    summary = component["summary"]
    state = "loaded" if component["loaded"] else "not on the device now"
    lines = [f"{component['component']}: {component['model']} ({state})"]
    for name, setting in component["settings"].items():
        value = setting["value"]
        if value is not None:
            shown = f"{value / 1e9:.2f} GB" if isinstance(value, int) else value
            lines.append(f"  {name} = {shown}: {setting['reason']}")
    lines.extend(f"  {line}" for line in component["plan_text"].splitlines())
    lines.append(
        f"  so far: {count(summary['passes'], 'pass', 'passes')}, {summary['bytes_copied'] / 1e9:.3f} GB copied, "
        f"{count(summary['prefetch_hits'], 'layer', 'layers')} fetched ahead, {summary['demand_loads']} on demand, "
        f"{count(summary['resident_visits'], 'visit', 'visits')} of resident layers, "
        f"{count(summary['early_copies'], 'copy', 'copies')} before its turn"
    )
    if summary["timed_visits"]:
        waited, computed = summary["stall_ns"] / 1e6, summary["compute_ns"] / 1e6
        visits = count(summary["timed_visits"], "visit", "visits")
        lines.append(f"  measured in {visits}: {computed:.1f} ms compute, {waited:.1f} ms waiting")
    host = ", ".join(f"{size / 1e9:.3f} GB {tier}" for tier, size in summary["host_bytes"].items() if size)
    lines.append(
        f"  in system memory: {host or 'nothing'}" + (" (mapped: in the file only)" if "mapped" in host else "")
    )
    if summary["peer_bytes"]:
        lines.append(f"  on {summary['peer_device']}, to be copied from there: {summary['peer_bytes'] / 1e9:.3f} GB")
    now, most = summary["device_bytes"] / 1e9, summary["peak_device_bytes"] / 1e9
    lines.append(f"  on the device: {now:.3f} GB now, {most:.3f} GB at most")
    lines.extend(f"  warning: {warning}" for warning in component["warnings"])
    return lines
