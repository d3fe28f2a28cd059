"""The policy alone: what is placed where when the placement is auto."""

from __future__ import annotations

import pytest

from offload_core.errors import SettingsError
from offload_core.settings.policy import MODES, Component, Decision, Device, Placed, check_mode, decide, headroom_bytes

GB = 10**9
FLUX = {"dit": 12 * GB, "text_encoder": 9_800_000_000, "text_encoder_2": 250_000_000, "vae": 170_000_000}


def card(total_gb: float, free_gb: float | None = None, kind: str = "cuda") -> Device:
    free = total_gb if free_gb is None else free_gb
    return Device(kind, int(total_gb * GB), int(free * GB))


def decided(
    sizes: dict[str, int], device: Device, mode: str = "auto", host_bytes: int | None = None, **placed: Placed
) -> Decision:
    rows = [placed.get(name, Placed(Component(name, size))) for name, size in sizes.items()]
    return decide(mode, device, host_bytes, rows)


def placements(decision: Decision) -> dict[str, str]:
    return {name: choice.placement for name, choice in decision.choices.items()}


def everything(placement: str, sizes: dict[str, int]) -> dict[str, str]:
    return dict.fromkeys(sizes, placement)


def test_auto_keeps_everything_resident_on_a_card_where_everything_fits() -> None:
    # The case where a static table offloads a model on an 80 GB card although all of it fits.
    decision = decided(FLUX, card(80, 78))
    assert placements(decision) == everything("resident", FLUX)
    assert decision.notices == ()
    assert "12.00 GB fit beside the rest: 22.22 GB needed, 78.00 GB free" in decision.choices["dit"].reason.text


def test_a_budget_that_holds_all_of_what_is_in_no_group_is_kept_by_us() -> None:
    net = Placed(Component("controlnet", 3 * GB), budget_bytes=4 * GB)
    choice = decided({"controlnet": 3 * GB}, card(24, 23), controlnet=net).choices["controlnet"]
    assert (choice.placement, choice.reason.text) == ("layerwise", "its budget of 4.00 GB holds all of its 3.00 GB")
    assert placements(decided({"controlnet": 3 * GB}, card(24, 23))) == {"controlnet": "whole"}


def test_auto_streams_the_largest_encoder_first() -> None:
    decision = decided(FLUX, card(24, 23))
    assert placements(decision) == {**everything("resident", FLUX), "text_encoder": "layerwise"}
    assert decision.notices == ()
    assert decision.choices["text_encoder"].reason.text == (
        "its 9.80 GB do not fit beside the rest: 22.22 GB needed, 23.00 GB free less 2.40 GB of headroom"
    )


def test_auto_streams_encoders_then_vae_then_dit() -> None:
    sizes = {"dit": 10 * GB, "vae": 2 * GB, "image_encoder": 2 * GB, "text_encoder": 2 * GB}
    order = []
    for free_gb in range(20, 3, -1):
        streamed = {
            name for name, where in placements(decided(sizes, card(20, free_gb))).items() if where != "resident"
        }
        order += sorted(streamed - set(order))
        assert streamed == set(order), "less room never brings a component back"
    assert order == ["text_encoder", "image_encoder", "vae", "dit"]


def test_numbered_variants_give_way_before_their_base() -> None:
    sizes = {"dit": 10 * GB, "text_encoder": 6 * GB, "text_encoder_2": 6 * GB}
    decision = decided(sizes, card(24, 23))
    assert placements(decision) == {"dit": "resident", "text_encoder": "resident", "text_encoder_2": "layerwise"}


def test_two_experts_that_take_turns_each_get_the_room_of_both() -> None:
    decision = decided({"dit": 14 * GB, "dit_2": 14 * GB}, card(24, 23))
    assert placements(decision) == {"dit": "layerwise", "dit_2": "layerwise"}
    assert {choice.budget_bytes for choice in decision.choices.values()} == {14 * GB}
    assert decision.notices == ()


def test_saying_what_auto_chose_changes_nothing_for_the_others() -> None:
    sizes = {"dit": 40 * GB, "text_encoder": 9 * GB, "vae": GB // 4}
    said = Placed(Component("dit", 40 * GB), placement="layerwise")
    assert placements(decided(sizes, card(24), dit=said)) == placements(decided(sizes, card(24)))


def test_a_streamed_dit_with_a_small_budget_leaves_room_for_encoders() -> None:
    said = Placed(Component("dit", 40 * GB), placement="layerwise", budget_bytes=6 * GB)
    decision = decided({"dit": 40 * GB, "text_encoder": 9 * GB}, card(24), dit=said)
    assert placements(decision) == {"dit": "layerwise", "text_encoder": "resident"}


def test_a_streamed_dit_gets_what_the_residents_leave() -> None:
    decision = decided({"dit": 40 * GB, "text_encoder": 9 * GB, "vae": GB // 4}, card(24, 23))
    assert placements(decision) == {"dit": "layerwise", "text_encoder": "layerwise", "vae": "layerwise"}
    assert decision.choices["dit"].budget_bytes == 23 * GB - 2_400_000_000
    assert decision.choices["text_encoder"].budget_bytes is None, "an encoder takes a ring only"
    assert "23.00 GB free leave beside 0 B of residents" in decision.choices["dit"].budget_reason.text


def test_the_budget_of_a_streamed_dit_leaves_room_for_a_controlnet() -> None:
    decision = decided({"dit": 40 * GB, "controlnet": 3 * GB}, card(24, 23))
    assert placements(decision) == {"dit": "layerwise", "controlnet": "whole"}
    assert decision.choices["dit"].budget_bytes == 23 * GB - 2_400_000_000 - 3 * GB


@pytest.mark.parametrize(
    ("name", "left_gb"), [("model_patch", 3), ("model_patch_2", 3), ("upscaler", 0), ("latent_upscaler", 0)]
)
def test_only_what_runs_inside_its_step_is_left_room_beside_a_streamed_dit(name: str, left_gb: int) -> None:
    decision = decided({"dit": 40 * GB, name: 3 * GB}, card(24, 23))
    assert decision.choices["dit"].budget_bytes == 23 * GB - 2_400_000_000 - left_gb * GB


def test_a_controlnet_needs_its_room_during_the_step_of_the_dit() -> None:
    beside = {"dit": 17 * GB, "controlnet": 5 * GB}
    assert placements(decided(beside, card(24))) == {"dit": "layerwise", "controlnet": "whole"}
    in_turn = {"dit": 17 * GB, "audio_vae": 4 * GB}
    assert placements(decided(in_turn, card(24))) == {"dit": "resident", "audio_vae": "whole"}


@pytest.mark.parametrize(
    "name", ["audio_vae", "vocoder", "spatial_upsampler", "controlnet", "model_patch", "upscaler", "something_new"]
)
@pytest.mark.parametrize("mode", MODES)
def test_components_outside_the_groups_are_left_to_the_app(name: str, mode: str) -> None:
    decision = decided({"dit": GB, name: GB // 2}, card(80), mode)
    assert decision.choices[name].placement == "whole"


def test_memory_streams_every_group_however_much_room_there_is() -> None:
    sizes = {**FLUX, "image_encoder": GB, "video_vae": GB, "dit_2": GB}
    decision = decided(sizes, card(80), "memory")
    assert placements(decision) == everything("layerwise", sizes)
    assert {choice.budget_bytes for choice in decision.choices.values()} == {None}


def test_manual_touches_nothing() -> None:
    for device in (card(80), card(8), Device("cuda")):
        decision = decided(FLUX, device, "manual")
        assert placements(decision) == everything("whole", FLUX)
        assert decision.notices == ()
        assert all(choice.reason.code == "manual_mode" for choice in decision.choices.values())


def test_speed_keeps_less_headroom_and_says_what_it_could_not_keep() -> None:
    sizes = {"dit": 12 * GB, "text_encoder": 9 * GB}
    assert placements(decided(sizes, card(23), "auto"))["text_encoder"] == "layerwise"
    assert decided(sizes, card(23), "speed").notices == ()
    assert placements(decided(sizes, card(23), "speed")) == everything("resident", sizes)
    short = decided(sizes, card(16), "speed")
    assert placements(short) == {"dit": "resident", "text_encoder": "layerwise"}
    (notice,) = short.notices
    assert (notice.component, notice.code) == ("text_encoder", "speed_gives_way")
    assert notice.text.startswith("text_encoder: speed mode would keep it resident, but its 9.00 GB do not fit")


def test_placements_that_are_set_are_counted_and_never_changed() -> None:
    for placement in ("layerwise", "resident", "whole", "cpu"):
        for mode in MODES:
            held = Placed(Component("text_encoder", 50 * GB), placement=placement)
            decision = decided({"dit": 10 * GB, "text_encoder": 50 * GB}, card(24), mode, text_encoder=held)
            assert decision.choices["text_encoder"].placement == placement


def test_an_explicit_resident_pushes_others_out() -> None:
    held = Placed(Component("text_encoder", 10 * GB), placement="resident")
    decision = decided({"dit": 12 * GB, "text_encoder": 10 * GB}, card(24), text_encoder=held)
    assert decision.choices["dit"].placement == "layerwise"
    assert decision.choices["dit"].budget_bytes == 24 * GB - 2_400_000_000 - 10 * GB


def test_a_component_on_the_cpu_needs_no_device() -> None:
    held = Placed(Component("text_encoder", 20 * GB), placement="cpu")
    decision = decided({"dit": 20 * GB, "text_encoder": 20 * GB}, card(24), text_encoder=held)
    assert placements(decision) == {"dit": "resident", "text_encoder": "cpu"}


def test_the_policy_never_computes_on_the_cpu_by_itself() -> None:
    for mode in MODES:
        for device in (card(2), card(24), Device("cuda"), Device("cpu", 0, 0)):
            assert "cpu" not in placements(decided(FLUX, device, mode)).values()


def test_a_budget_below_the_size_means_streaming_in_every_mode() -> None:
    held = Placed(Component("dit", 12 * GB), budget_bytes=6 * GB, may_stream=False)
    for mode in MODES:
        choice = decided({"dit": 12 * GB}, card(80), mode, dit=held).choices["dit"]
        assert choice.placement == "layerwise"
        assert choice.budget_bytes is None, "the budget is the user's, not the policy's"
        assert choice.reason.text == "its 12.00 GB are more than its budget of 6.00 GB"


def test_a_measured_minimum_replaces_the_guess() -> None:
    # Two encoders take turns in the room beside the residents, so only the larger minimum counts.
    guess = decided({"dit": 20 * GB, "text_encoder": 15 * GB}, card(24))
    assert placements(guess) == {"dit": "resident", "text_encoder": "layerwise"}
    held = Placed(Component("text_encoder", 15 * GB, smallest_bytes=3 * GB))
    measured = decided({"dit": 20 * GB, "text_encoder": 15 * GB}, card(24), text_encoder=held)
    assert placements(measured) == {"dit": "layerwise", "text_encoder": "layerwise"}


def test_auto_skips_unsupported_and_leaves_them_to_the_app() -> None:
    stuck = Placed(Component("text_encoder", 9 * GB, streamable=False, why_not="no repeated blocks"))
    for mode in ("auto", "memory", "speed"):
        decision = decided({"dit": 30 * GB, "text_encoder": 9 * GB}, card(24), mode, text_encoder=stuck)
        assert placements(decision) == {"dit": "layerwise", "text_encoder": "whole"}
        assert any("no repeated blocks" in one.text and "left to the app" in one.text for one in decision.notices)
    assert decided({"text_encoder": 9 * GB}, card(24), text_encoder=stuck).notices == (), "it fits: nothing to say"


def test_unselected_components_are_not_streamed_by_the_policy() -> None:
    held = Placed(Component("text_encoder", 9 * GB), may_stream=False)
    tight = decided({"dit": 14 * GB, "text_encoder": 9 * GB}, card(24), text_encoder=held)
    assert placements(tight) == {"dit": "layerwise", "text_encoder": "whole"}
    roomy = decided({"dit": 14 * GB, "text_encoder": 9 * GB}, card(48), text_encoder=held)
    assert placements(roomy) == {"dit": "resident", "text_encoder": "resident"}
    memory = decided({"dit": 14 * GB, "text_encoder": 9 * GB}, card(48), "memory", text_encoder=held)
    assert placements(memory) == {"dit": "layerwise", "text_encoder": "whole"}


def test_unknown_free_memory_streams_and_says_so_once() -> None:
    decision = decided(FLUX, Device("cuda", 24 * GB, None))
    assert placements(decision) == everything("layerwise", FLUX)
    assert len(decision.notices) == 1 and "not known" in decision.notices[0].text


def test_no_room_at_all_falls_back_and_says_so() -> None:
    decision = decided({"dit": 40 * GB, "text_encoder": 9 * GB}, card(24, 0))
    assert placements(decision) == {"dit": "layerwise", "text_encoder": "layerwise"}
    assert decision.choices["dit"].budget_bytes is None
    assert any("not everything fits" in one.text for one in decision.notices)
    assert any(one.text.startswith("dit: only 0 B are left") for one in decision.notices)


def test_on_the_cpu_there_is_nothing_to_decide_unless_memory_is_short() -> None:
    device = Device("cpu", 32 * GB, 20 * GB)
    assert placements(decided(FLUX, device, "memory")) == everything("whole", FLUX)
    short = decided(FLUX, device, "auto", host_bytes=10 * GB)
    assert placements(short) == {**everything("whole", FLUX), "dit": "layerwise"}
    assert "read from the file" in short.choices["dit"].reason.text


def test_headroom_is_a_share_of_the_card_with_a_ceiling() -> None:
    assert headroom_bytes("auto", card(24, 3)) == 2_400_000_000
    assert headroom_bytes("speed", card(24, 3)) == 1_200_000_000
    assert headroom_bytes("auto", card(80)) == 4 * GB
    assert headroom_bytes("auto", Device("cuda", None, 10 * GB)) == GB
    assert headroom_bytes("memory", card(24)) == 0


def test_sizes_of_zero_are_no_trouble() -> None:
    assert decided({}, card(24)).choices == {}
    assert placements(decided({"dit": 0, "vae": 0}, card(24, 0))) == {"dit": "resident", "vae": "resident"}
    for held in (Placed(Component("dit", 0), "layerwise"), Placed(Component("dit", 1, 0), "layerwise")):
        assert decided({"dit": 0}, card(24, 0), dit=held).choices["dit"].budget_bytes is None


@pytest.mark.parametrize("bad", ["fast", "Auto", "", None, 1, ["auto"]])
def test_invalid_mode_raises(bad: object) -> None:
    with pytest.raises(SettingsError, match="choose one of: auto, memory, speed, manual"):
        check_mode(bad)
