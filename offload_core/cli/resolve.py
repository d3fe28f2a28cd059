"""``python -m offload_core resolve < request.json``: who gets which settings, from which source, and why.

The form of requests and answers, schema 1, is in ``docs/policy.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final, NoReturn

from ..errors import OffloadError, SettingsError, shown
from ..fields import MAX_BYTES, no_duplicates
from ..settings.groups import normalise_name, normalise_selection
from ..settings.policy import Component, Device, check_mode
from ..settings.resolver import MAX_COMPONENTS, Request, Wish, resolve

_refused = SettingsError.refused
_MAX_REQUEST_BYTES: Final = 4 << 20
_MAX_WISHES: Final = 4096
_DEVICE_KINDS: Final = ("cpu", "cuda", "hip", "xpu", "mps", "npu", "mlu", "hpu", "musa", "privateuseone")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    subparsers.add_parser(
        "resolve",
        help="resolve the settings of every component from a JSON request on standard input",
        description="Reads a JSON request on standard input; prints value, source and reason of every setting.",
    )


def run(_args: argparse.Namespace) -> int:
    """Answers the request on standard input. Returns the exit status: 0, or 2 for a request that cannot be answered."""
    try:
        answer = resolve(parse_request(sys.stdin.buffer.read(_MAX_REQUEST_BYTES + 1))).to_json()
    except OffloadError as error:
        print(f"offload_core resolve: {error}", file=sys.stderr)
        return 2
    print(json.dumps(answer, indent=2))
    return 0


def parse_request(data: bytes) -> Request:
    """The request in ``data``. Raises SettingsError for anything that is not a well-formed request."""
    if len(data) > _MAX_REQUEST_BYTES:
        raise _refused("the request", f"more than {_MAX_REQUEST_BYTES} bytes", "is too long", "send a shorter one")
    try:
        once = no_duplicates(lambda name: _refused("the request", name, "appears twice in one object", "send it once"))
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=once, parse_constant=_constant)
    except SettingsError:
        raise
    except RecursionError:
        raise _refused("the request", data[:20], "is nested too deeply", "send plain objects and lists") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        problem = f"is not JSON ({' '.join(str(error).split())[:120]})"
        raise _refused("the request", data[:40], problem, "send one JSON object") from None
    return request_from_json(value)


def request_from_json(value: object) -> Request:
    """The request an already parsed JSON value stands for. Raises SettingsError naming the offending value."""
    optional = ("mode", "selection", "explicit", "device", "host")
    top = _fields("the request", value, required=("schema", "components"), optional=optional)
    if isinstance(top["schema"], bool) or top["schema"] != 1:
        raise _refused("schema", top["schema"], "is not one this version reads", "send schema 1")
    selection = top.get("selection")
    normalise_selection(selection)
    device = top.get("device")
    host = top.get("host")
    return Request(
        components=_components(top["components"]),
        mode=check_mode(top.get("mode", "auto")),
        selection=selection,
        wishes=_wishes(top.get("explicit", [])),
        device=None if device is None else _device(device),
        host_available_bytes=None if host is None else _host(host),
    )


def _components(value: object) -> tuple[Component, ...]:
    if not isinstance(value, dict):
        raise _refused("components", value, "is not an object", "send one entry per component: its name and its bytes")
    if len(value) > MAX_COMPONENTS:
        raise _refused("components", len(value), "is too many of them", f"send at most {MAX_COMPONENTS}")
    names: dict[str, str] = {}
    components = []
    for written, entry in value.items():
        name = normalise_name(written)
        if name in names:
            raise _refused("the component", written, f"is the same as {shown(names[name])}", "send each component once")
        names[name] = written
        components.append(_component(name, entry))
    return tuple(components)


def _component(name: str, entry: object) -> Component:
    where = f"components.{name}"
    members = _fields(where, entry, required=("bytes",), optional=("smallest_bytes", "streamable", "why_not"))
    streamable = members.get("streamable", True)
    if not isinstance(streamable, bool):
        raise _refused(f"{where}.streamable", streamable, "is not a truth value", "send true or false")
    why_not = members.get("why_not", "")
    if not isinstance(why_not, str) or len(why_not) > 200 or not (why_not.isprintable() and why_not.isascii()):
        raise _refused(f"{where}.why_not", why_not, "is not a line of plain text", "send at most 200 ASCII characters")
    size_bytes = _whole(f"{where}.bytes", members["bytes"])
    return Component(name, size_bytes, _bytes(where, members, "smallest_bytes"), streamable, why_not)


def _wishes(value: object) -> tuple[Wish, ...]:
    if not isinstance(value, list):
        raise _refused("explicit", value, "is not a list", "send a list of {source, component, setting, value}")
    if len(value) > _MAX_WISHES:
        raise _refused("explicit", len(value), "is too many entries", f"send at most {_MAX_WISHES}")
    wishes = []
    for index, entry in enumerate(value):
        where = f"explicit[{index}]"
        members = _fields(where, entry, required=("source", "component", "setting", "value"), optional=())
        for name in ("source", "component", "setting"):
            if not isinstance(members[name], str):
                raise _refused(f"{where}.{name}", members[name], "is not text", "send a name")
        wishes.append(Wish(**members))
    return tuple(wishes)


def _device(value: object) -> Device:
    members = _fields("device", value, required=("kind",), optional=("total_bytes", "free_bytes"))
    kind = members["kind"]
    if not isinstance(kind, str) or kind not in _DEVICE_KINDS:
        raise _refused("device.kind", kind, "is not a kind of device", f"send one of: {', '.join(_DEVICE_KINDS)}")
    total_bytes = _bytes("device", members, "total_bytes", low=0 if kind == "cpu" else 1)
    free_bytes = _bytes("device", members, "free_bytes")
    if total_bytes is not None and free_bytes is not None and free_bytes > total_bytes:
        raise _refused(
            "device.free_bytes",
            members["free_bytes"],
            f"is more than the total of {total_bytes}",
            "send what is free of that total",
        )
    return Device(kind, total_bytes, free_bytes)


def _host(value: object) -> int | None:
    return _bytes("host", _fields("host", value, (), ("available_bytes",)), "available_bytes")


def _bytes(where: str, members: dict[str, Any], name: str, low: int = 0) -> int | None:
    """The bytes in a member of an object; None where it is null or left out."""
    value = members.get(name)
    return None if value is None else _whole(f"{where}.{name}", value, low)


def _whole(where: str, value: object, low: int = 0) -> int:
    if isinstance(value, float) and value.is_integer():  # JSON writers spell 8000000000 as 8e9
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_BYTES:
        raise _refused(where, value, "is not acceptable", f"send a whole number from {low} to {MAX_BYTES}")
    return value


def _fields(where: str, value: object, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """The members of an object. A name that is not expected is refused: a misspelt wish must not be lost in silence."""
    known = (*required, *optional)
    if not isinstance(value, dict):
        raise _refused(where, value, "is not an object", f"send an object with: {', '.join(known)}")
    for name in value:
        if name not in known:
            raise _refused(where, name, "is not a member of it", f"use only: {', '.join(known)}")
    for name in required:
        if name not in value:
            raise _refused(where, value, f"lacks {name}", f"send {name} too")
    return value


def _constant(name: str) -> NoReturn:
    raise _refused("the request", name, "is not a number", "send finite numbers")
