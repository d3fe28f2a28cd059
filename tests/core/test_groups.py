"""Component names, groups and selectors: sglang's normalisation, and what each selector stands for."""

from __future__ import annotations

import pytest

from offload_core.errors import SettingsError
from offload_core.settings.groups import (
    DEFAULT_GROUPS,
    GROUPS,
    group_of,
    match,
    normalise_name,
    normalise_selection,
    numbered_base,
    select,
    sort_key,
)

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


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("dit", "dit"),
        ("dit_2", "dit"),
        ("transformer", "dit"),
        ("transformer_2", "dit"),
        ("video_dit", "dit"),
        ("video_dit_2", "dit"),
        ("audio_dit", "dit"),
        ("dual_tower_bridge", "dit"),
        ("text_encoder", "text_encoder"),
        ("text_encoder_2", "text_encoder"),
        ("text_encoder_4", "text_encoder"),
        ("prompt_text_encoder", "text_encoder"),
        ("prompt_text_encoder_2", "text_encoder"),
        ("image_encoder", "image_encoder"),
        ("image_encoder_2", "image_encoder"),
        ("vae", "vae"),
        ("video_vae", "vae"),
        ("condition_image_encoder", "vae"),
        ("audio_vae", None),
        ("vocoder", None),
        ("spatial_upsampler", None),
        ("delight_vae", None),
        ("controlnet", None),
        ("dit2", None),
        ("my_image_encoder", None),
        ("image_encoder_vision", None),
        ("clip", None),
    ],
)
def test_group_of(name: str, group: str | None) -> None:
    assert group_of(name) == group


def test_image_encoder_is_matched_explicitly() -> None:
    assert match("image_encoder", NAMES) == ("image_encoder",)


def test_vae_group_is_limited_to_three_names() -> None:
    assert match("vae", NAMES) == ("vae", "video_vae", "condition_image_encoder")


@pytest.mark.parametrize("name", ["audio_vae", "vocoder", "spatial_upsampler"])
def test_av_decoders_only_by_exact_name(name: str) -> None:
    assert match(name, NAMES) == (name,)
    for selector in (*GROUPS, "default"):
        assert name not in match(selector, NAMES)
    assert name in match("all", NAMES)


def test_pipeline_selection_uses_dit_group() -> None:
    assert match("dit", NAMES) == ("dit", "dit_2")


def test_default_group_selects_non_dit_defaults() -> None:
    expected = ("text_encoder", "text_encoder_2", "image_encoder", "vae", "video_vae", "condition_image_encoder")
    assert match("default", NAMES) == expected
    assert DEFAULT_GROUPS == ("text_encoder", "image_encoder", "vae")


def test_all_selects_every_component() -> None:
    assert match("all", NAMES) == NAMES


def test_a_numbered_name_is_that_component_alone() -> None:
    assert match("text_encoder_2", NAMES) == ("text_encoder_2",)
    assert match("dit_2", NAMES) == ("dit_2",)


@pytest.mark.parametrize(
    ("written", "normalised"),
    [
        (None, None),
        ("", None),
        (" , ,", None),
        ([], None),
        (["", " "], None),
        ("dit", ("dit",)),
        (" DiT ", ("dit",)),
        ("Text-Encoder", ("text_encoder",)),
        ("vae,dit", ("vae", "dit")),
        ("dit,vae,dit", ("dit", "vae")),
        (["dit", "DIT", " dit "], ("dit",)),
        (["text-encoder, vae", "dit"], ("text_encoder", "vae", "dit")),
        (("dit",), ("dit",)),
        ("default", ("text_encoder", "image_encoder", "vae")),
        ("vae,default", ("vae", "text_encoder", "image_encoder")),
        ("default,dit", ("text_encoder", "image_encoder", "vae", "dit")),
        ("default,DEFAULT", ("text_encoder", "image_encoder", "vae")),
        ("all", ("all",)),
        ("dit,All,vae", ("all",)),
        (["default", "all"], ("all",)),
        ("audio-vae", ("audio_vae",)),
    ],
)
def test_normalise_selection(written: object, normalised: tuple[str, ...] | None) -> None:
    assert normalise_selection(written) == normalised


@pytest.mark.parametrize(
    "bad", [1, 1.5, True, {"dit": 1}, {"dit"}, b"dit", object, [1], ["dit", None], [["dit"]], ("dit", 2)]
)
def test_non_strings_are_refused(bad: object) -> None:
    with pytest.raises(SettingsError, match="the selection = "):
        normalise_selection(bad)
    with pytest.raises(SettingsError, match="the selection = "):
        select(bad, NAMES)


def test_normalising_twice_changes_nothing() -> None:
    for written in ("default,dit", "All", "a-B, c ,,a_b"):
        once = normalise_selection(written)
        assert normalise_selection(once) == once


def test_select_joins_what_each_selector_stands_for() -> None:
    assert select("dit, audio-vae", NAMES) == {"dit", "dit_2", "audio_vae"}
    assert select(None, NAMES) is None
    assert select(" , ", NAMES) is None
    assert select("ALL", NAMES) == set(NAMES)


def test_a_selector_that_matches_nothing_is_named() -> None:
    with pytest.raises(SettingsError, match=r"'vocodr'.*matches none of: dit, dit_2"):
        select("dit,vocodr", NAMES)
    with pytest.raises(SettingsError, match="'image_encoder'"):
        select("image_encoder", ("dit", "vae"))
    with pytest.raises(SettingsError, match=r"'all'.*no component at all"):
        select("all", ())


def test_default_needs_only_one_of_its_groups() -> None:
    assert select("default", ("dit", "vae")) == {"vae"}
    with pytest.raises(SettingsError, match="'default'"):
        select("default", ("dit", "audio_vae"))
    with pytest.raises(SettingsError, match="'image_encoder'"):  # asked for by name: not excused by default
        select("default,image_encoder", ("dit", "vae"))


@pytest.mark.parametrize(
    ("name", "base", "number"),
    [
        ("dit", "dit", 1),
        ("dit_2", "dit", 2),
        ("text_encoder_12", "text_encoder", 12),
        ("t5_2", "t5", 2),
        ("x_", "x_", 1),
    ],
)
def test_numbered_base(name: str, base: str, number: int) -> None:
    assert numbered_base(name) == (base, number)


def test_sort_key_orders_groups_then_numbers() -> None:
    mixed = [*NAMES[6:], *NAMES[:6]]
    assert sorted(mixed, key=sort_key)[:4] == ["dit", "dit_2", "text_encoder", "text_encoder_2"]
    assert sorted(["text_encoder_10", "text_encoder_2"], key=sort_key) == ["text_encoder_2", "text_encoder_10"]
    assert len({sort_key(name) for name in ("dit", "dit_1", "dit_01")}) == 3


@pytest.mark.parametrize(("written", "name"), [(" Video-VAE ", "video_vae"), ("dit", "dit"), ("a" * 64, "a" * 64)])
def test_normalise_name(written: str, name: str) -> None:
    assert normalise_name(written) == name


@pytest.mark.parametrize(
    "bad", ["", " ", "2dit", "_dit", "dit vae", "dit,vae", "dït", "a" * 65, "dit\n\ndit", "../dit", 3, None]
)
def test_what_is_not_a_name_is_refused(bad: object) -> None:
    with pytest.raises(SettingsError) as caught:
        normalise_name(bad)
    assert str(caught.value).isascii() and "\n" not in str(caught.value)
