"""Properties of resolution over random graphs, devices and wishes."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from offload_core.errors import OffloadError
from offload_core.settings.component_settings import EXPLICIT_SOURCES, OF_THE_WORKFLOW, SETTINGS
from offload_core.settings.groups import group_of
from offload_core.settings.policy import MODES, Component, Device, headroom_bytes
from offload_core.settings.resolver import Request, Resolution, Wish, resolve

MB = 10**6
GB = 10**9
NAMES = (
    "dit",
    "dit_2",
    "text_encoder",
    "text_encoder_2",
    "image_encoder",
    "vae",
    "video_vae",
    "audio_vae",
    "vocoder",
    "condition_image_encoder",
    "spatial_upsampler",
    "controlnet",
)
VALUES = {
    "placement": st.sampled_from(["layerwise", "resident", "whole", "cpu", "auto"]),
    "budget_bytes": st.sampled_from([0, MB, 2 * GB, 5 * GB, 50 * GB]),
    "ring_bytes": st.sampled_from([0, MB, GB]),
    "host_tier": st.sampled_from(["auto", "pinned", "pageable", "mapped", "cuda:1"]),
    "pin_budget_bytes": st.sampled_from([0, GB]),
    "peer_budget_bytes": st.sampled_from([0, GB]),
    "precision": st.sampled_from(["auto", "bf16"]),
    "lora_mode": st.sampled_from(["auto", "host"]),
    "workflow_budget_bytes": st.sampled_from([0, 8 * GB]),
    "workflow_host_bytes": st.sampled_from([0, 16 * GB]),
}
SIZES = st.one_of(st.integers(0, 20 * GB), st.sampled_from([0, 1, MB, GB, 12 * GB, 40 * GB]))
quick = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@st.composite
def components(draw: st.DrawFn) -> tuple[Component, ...]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=7))
    rows = []
    for name in names:
        size = draw(SIZES)
        smallest = draw(st.none() | st.integers(0, max(1, size // 4)))
        rows.append(Component(name, size, smallest, draw(st.sampled_from([True, True, True, False]))))
    return tuple(rows)


@st.composite
def devices(draw: st.DrawFn) -> Device | None:
    total = draw(st.sampled_from([8 * GB, 12 * GB, 24 * GB, 80 * GB]))
    known = Device("cuda", total, draw(st.integers(0, total)))
    return draw(st.sampled_from([known, known, known, known, Device("cuda", total), Device("cuda"), None]))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    parts = draw(components())
    wishes = []
    if parts:
        keys = draw(
            st.lists(
                st.tuples(
                    st.sampled_from(EXPLICIT_SOURCES),
                    st.sampled_from([part.name for part in parts]),
                    st.sampled_from(("placement", "placement", *SETTINGS)),
                ),
                unique=True,
                max_size=6,
            )
        )
        keys = sorted({(src, "all" if setting in OF_THE_WORKFLOW else name, setting) for src, name, setting in keys})
        wishes = [Wish(source, name, setting, draw(VALUES[setting])) for source, name, setting in keys]
    names = st.lists(st.sampled_from([part.name for part in parts]), max_size=2) if parts else st.none()
    return Request(
        components=parts,
        mode=draw(st.sampled_from(MODES)),
        selection=draw(st.one_of(st.none(), st.none(), names)),
        wishes=tuple(wishes),
        device=draw(devices()),
        host_available_bytes=draw(st.sampled_from([None, 16 * GB, 256 * GB])),
    )


def answered(request: Request) -> Resolution:
    try:
        return resolve(request)
    except OffloadError:
        assume(False)
        raise


def policy_placements(resolution: Resolution) -> dict[str, object]:
    return {
        name: one.value("placement")
        for name, one in resolution.components.items()
        if one.source("placement") == "policy"
    }


@quick
@given(requests())
def test_explicit_settings_are_never_overridden(request: Request) -> None:
    resolution = answered(request)
    for part in request.components:
        for setting in SETTINGS:
            said = {
                wish.source: wish.value
                for wish in request.wishes
                if wish.component in (part.name, "all") and wish.setting == setting and wish.value not in ("auto", 0)
            }
            if setting == "placement" and request.selection and part.name in _selected(request):
                said["selection"] = "layerwise"
            strongest = next((source for source in (*EXPLICIT_SOURCES, "selection") if source in said), None)
            one = resolution.components[part.name]
            if strongest is None:
                assert one.source(setting) == "policy"
            else:
                assert (one.source(setting), one.value(setting)) == (strongest, said[strongest])


def _selected(request: Request) -> set[str]:
    tokens = set(request.selection or ())
    return {part.name for part in request.components if part.name in tokens or group_of(part.name) in tokens}


@quick
@given(requests())
def test_resolution_is_deterministic_and_idempotent(request: Request) -> None:
    first = answered(request)
    assert resolve(request) == first
    again = resolve(replace(request, wishes=(), settings=first.components))
    assert again == first


@quick
@given(requests())
def test_what_was_resolved_can_be_asked_for(request: Request) -> None:
    first = answered(request)
    asked = tuple(
        Wish("node", name, said.name, said.value)
        for name, one in first.components.items()
        for said in one
        if said.value is not None and said.name in ("placement", "budget_bytes")
    )
    others = tuple(wish for wish in request.wishes if wish.setting not in ("placement", "budget_bytes"))
    second = resolve(replace(request, wishes=(*asked, *others), selection=None))
    for name, one in first.components.items():
        for setting in SETTINGS:
            assert second.components[name].value(setting) == one.value(setting)


@quick
@given(requests(), st.randoms(use_true_random=False))
def test_the_order_of_components_and_wishes_does_not_matter(request: Request, random: object) -> None:
    def shuffled(rows: tuple[object, ...]) -> tuple[object, ...]:
        copy = list(rows)
        random.shuffle(copy)  # type: ignore[attr-defined]
        return tuple(copy)

    def outcome(asked: Request) -> object:
        try:
            return resolve(asked)
        except OffloadError as error:
            return str(error)

    other = replace(request, components=shuffled(request.components), wishes=shuffled(request.wishes))
    assert outcome(other) == outcome(request)


@quick
@given(requests())
def test_what_the_policy_keeps_resident_fits(request: Request) -> None:
    resolution = answered(request)
    kept = [name for name, placement in policy_placements(resolution).items() if placement == "resident"]
    if not kept:
        return
    device = request.device
    assert device is not None and device.free_bytes is not None
    residents = sum(
        part.bytes for part in request.components if resolution.components[part.name].value("placement") == "resident"
    )
    wholes = [part.bytes for part in request.components if _takes_turns_whole(resolution, part.name)]
    usable = max(0, device.free_bytes - headroom_bytes(request.mode, device))
    assert residents + max(wholes, default=0) <= usable
    for name, one in resolution.components.items():
        budget = one.value("budget_bytes")
        if one.source("budget_bytes") == "policy" and isinstance(budget, int):
            assert residents + budget <= usable, name


def _takes_turns_whole(resolution: Resolution, name: str) -> bool:
    return resolution.components[name].value("placement") == "whole"


@quick
@given(requests(), st.integers(0, 80 * GB))
def test_more_free_memory_never_streams_more(request: Request, free_bytes: int) -> None:
    device = request.device
    assume(device is not None and device.free_bytes is not None and device.total_bytes is not None)
    assert device is not None and device.free_bytes is not None and device.total_bytes is not None
    more = replace(device, free_bytes=max(device.free_bytes, min(free_bytes, device.total_bytes)))
    before = policy_placements(answered(request))
    after = policy_placements(answered(replace(request, device=more)))
    for name, placement in before.items():
        if placement == "resident":
            assert after[name] == "resident"


@quick
@given(requests())
def test_encoders_give_way_before_the_diffusion_model(request: Request) -> None:
    resolution = answered(replace(request, mode="auto", wishes=(), selection=None))
    placed = policy_placements(resolution)
    if any(placement != "resident" and group_of(name) == "dit" for name, placement in placed.items()):
        assert not any(placement == "resident" for name, placement in placed.items() if group_of(name) != "dit")


@quick
@given(requests())
def test_manual_and_memory_keep_their_word(request: Request) -> None:
    plain = replace(request, wishes=tuple(wish for wish in request.wishes if wish.setting == "placement"))
    assert set(policy_placements(answered(replace(plain, mode="manual"))).values()) <= {"whole"}
    memory = answered(replace(plain, mode="memory", selection=None))
    for part in request.components:
        if part.streamable and group_of(part.name) and part.name in policy_placements(memory):
            assert policy_placements(memory)[part.name] == "layerwise"


@quick
@given(requests())
def test_answers_are_plain_json_in_one_line_each(request: Request) -> None:
    answer = answered(request).to_json()
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    for line in answer["warnings"]:
        assert "\n" not in line and line.isascii()
