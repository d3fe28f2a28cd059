"""One number divided among the components of a workflow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.errors import BudgetError
from offload_core.settings.division import HostSharer, Sharer, divide, divide_host

GB = 10**9
NAMES = (
    "dit",
    "dit_2",
    "text_encoder",
    "text_encoder_2",
    "image_encoder",
    "vae",
    "audio_vae",
    "controlnet",
    "controlnet_2",
)
STREAMED_IN_STEP = ("dit", "dit_2", "controlnet", "controlnet_2")
quick = settings(max_examples=150, deadline=None, database=None)


def of_gb(name: str, gb: float, usual_gb: float = 0.5, **more: object) -> Sharer:
    return Sharer(name, int(gb * GB), int(0.25 * GB), int(usual_gb * GB), **more)


FLUX = (of_gb("dit", 12, 1), of_gb("text_encoder", 10), of_gb("vae", 0.5))


def in_gb(parts: dict[str, int]) -> dict[str, float]:
    return {name: part / GB for name, part in parts.items()}


@st.composite
def workflows(draw: st.DrawFn) -> list[Sharer]:
    sharers = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1)):
        size = draw(st.integers(1, 40))
        smallest = draw(st.integers(1, size))
        usual = draw(st.integers(smallest, size))
        own = draw(st.none() | st.integers(1, 45))
        sharers.append(Sharer(name, size, smallest, usual, own, draw(st.sampled_from([False, False, False, True]))))
    return sharers


def turns(sharers: list[Sharer]) -> list[list[Sharer]]:
    """Who is on the device at the same time: each component with what stays, ControlNets with each diffusion model."""
    staying = [sharer for sharer in sharers if sharer.stays]
    going = [sharer for sharer in sharers if not sharer.stays]
    controlnets = [sharer for sharer in going if sharer.name.startswith("controlnet")]
    models = [sharer for sharer in going if sharer.name.startswith("dit")]
    together = [[model, *controlnets] for model in models] or [controlnets]
    return [staying + turn for turn in together + [[sharer] for sharer in going if sharer.name not in STREAMED_IN_STEP]]


def smallest_number(sharers: list[Sharer]) -> int:
    return max(sum(sharer.bytes if sharer.stays else sharer.least_bytes for sharer in turn) for turn in turns(sharers))


@quick
@given(workflows(), st.integers(1, 200), st.randoms(use_true_random=False))
def test_every_turn_is_within_the_number_and_each_component_gets_what_it_needs(sharers, number, random):
    smallest = smallest_number(sharers)
    if number < smallest:
        with pytest.raises(BudgetError) as error:
            divide(number, sharers)
        assert (error.value.asked_bytes, error.value.smallest_bytes) == (number, smallest)
        number = smallest
    parts = divide(number, sharers)
    assert parts.keys() == {sharer.name for sharer in sharers}
    for turn in turns(sharers):
        assert sum(parts[sharer.name] for sharer in turn) <= number
    for sharer in sharers:
        assert sharer.least_bytes <= parts[sharer.name] <= sharer.bytes
        assert sharer.stays or sharer.budget_bytes is None or parts[sharer.name] <= sharer.budget_bytes
    shuffled = list(sharers)
    random.shuffle(shuffled)
    assert divide(number, shuffled) == parts


@quick
@given(workflows(), st.integers(0, 100), st.integers(0, 100))
def test_no_part_becomes_smaller_when_the_number_grows(sharers, beyond, more):
    number = smallest_number(sharers) + beyond
    before, after = divide(number, sharers), divide(number + more, sharers)
    assert all(after[name] >= part for name, part in before.items())


@quick
@given(workflows())
def test_with_room_for_all_each_has_all_that_it_can_use(sharers):
    parts = divide(sum(sharer.bytes for sharer in sharers), sharers)
    assert parts == {sharer.name: sharer.bytes if sharer.stays else sharer.most_bytes for sharer in sharers}


def test_the_diffusion_model_gives_up_nothing_for_what_runs_once():
    assert in_gb(divide(8 * GB, FLUX)) == {"dit": 8, "text_encoder": 0.5, "vae": 0.5}
    assert in_gb(divide(13 * GB, FLUX)) == {"dit": 12, "text_encoder": 0.5, "vae": 0.5}
    assert in_gb(divide(20 * GB, FLUX)) == {"dit": 12, "text_encoder": 7.5, "vae": 0.5}


def test_encoders_give_way_first_and_the_largest_of_them():
    sharers = (of_gb("dit", 4), of_gb("text_encoder", 6), of_gb("text_encoder_2", 2), of_gb("vae", 1))
    assert in_gb(divide(9 * GB, sharers)) == {"dit": 4, "text_encoder": 2, "text_encoder_2": 2, "vae": 1}
    assert in_gb(divide(6 * GB, sharers)) == {"dit": 4, "text_encoder": 0.5, "text_encoder_2": 1, "vae": 1}


def test_two_experts_each_have_all_of_it_in_their_turn():
    assert in_gb(divide(8 * GB, (of_gb("dit", 14), of_gb("dit_2", 14)))) == {"dit": 8, "dit_2": 8}


def test_a_controlnet_runs_with_the_diffusion_model():
    both = (of_gb("dit", 12, 1), of_gb("controlnet", 3))
    assert in_gb(divide(8 * GB, both)) == {"dit": 7.5, "controlnet": 0.5}
    assert in_gb(divide(14 * GB, both)) == {"dit": 12, "controlnet": 2}
    assert in_gb(divide(2 * GB, both[1:])) == {"controlnet": 2}
    of_two = divide(8 * GB, (*both, of_gb("dit_2", 5)))
    assert in_gb(of_two) == {"dit": 7.5, "dit_2": 5, "controlnet": 0.5}, "within the turn of each"


def test_own_budgets_are_taken_off_first():
    dit, net = of_gb("dit", 12, 1), of_gb("controlnet", 3)
    assert in_gb(divide(8 * GB, (dit, replace(net, budget_bytes=2 * GB)))) == {"dit": 6, "controlnet": 2}
    assert in_gb(divide(8 * GB, (replace(dit, budget_bytes=3 * GB), net))) == {"dit": 3, "controlnet": 3}
    assert in_gb(divide(8 * GB, (replace(dit, budget_bytes=20 * GB), net)))["dit"] == 7.75, "the number holds as well"
    encoder = replace(FLUX[1], budget_bytes=6 * GB)
    assert in_gb(divide(8 * GB, (FLUX[0], encoder))) == {"dit": 8, "text_encoder": 6}


def test_what_is_to_be_resident_is_taken_off_every_turn():
    parts = divide(12 * GB, (FLUX[0], replace(FLUX[1], stays=True), FLUX[2]))
    assert in_gb(parts) == {"dit": 2, "text_encoder": 10, "vae": 0.5}


def test_the_error_says_who_needs_what_and_the_smallest_number():
    sharers = (*FLUX, of_gb("controlnet", 3), of_gb("image_encoder", 2, stays=True))
    with pytest.raises(BudgetError) as error:
        divide(GB, sharers)
    assert str(error.value) == (
        "asked 1.00 GB for the weights of the workflow; found that at one time dit needs 250.0 MB and controlnet needs "
        "250.0 MB and image_encoder, asked to be resident, 2.00 GB; give at least 2.50 GB"
    )


HOST = st.lists(
    st.builds(
        HostSharer,
        st.sampled_from(NAMES),
        st.sampled_from([1, 2, 20]),
        st.integers(0, 40),
        st.integers(0, 9),
        st.integers(0, 20),
    ),
    unique_by=lambda sharer: sharer.name,
)


@quick
@given(HOST, st.integers(0, 200), st.integers(0, 100), st.randoms(use_true_random=False))
def test_host_memory_is_within_the_number_and_grows_with_it(sharers, number, more, random):
    memory = sum(sharer.memory_bytes for sharer in sharers)
    if number < memory:
        with pytest.raises(BudgetError) as error:
            divide_host(number, sharers)
        assert (error.value.asked_bytes, error.value.smallest_bytes) == (number, memory)
        number = memory
    parts, larger = divide_host(number, sharers), divide_host(number + more, sharers)
    assert parts.keys() == {sharer.name for sharer in sharers}
    assert sum(parts.values()) + memory <= number
    assert all(
        0 <= parts[sharer.name] <= sharer.copies_bytes + sharer.resident_bytes
        and parts[sharer.name] <= larger[sharer.name]
        for sharer in sharers
    )
    shuffled = list(sharers)
    random.shuffle(shuffled)
    assert divide_host(number, shuffled) == parts


def test_copies_that_are_read_in_every_step_come_first():
    experts = [HostSharer(name, 20, 12 * GB) for name in ("dit", "dit_2")]
    encoder = HostSharer("text_encoder", 2, 10 * GB)
    assert in_gb(divide_host(18 * GB, [encoder, *experts])) == {"dit": 9, "dit_2": 9, "text_encoder": 0}
    assert in_gb(divide_host(30 * GB, [encoder, *experts])) == {"dit": 12, "dit_2": 12, "text_encoder": 6}


def test_what_may_be_resident_comes_last():
    """A component may come to hold less of the device than it may take: then copies of the rest are needed."""
    dit, encoder = HostSharer("dit", 20, 2 * GB, 0, 10 * GB), HostSharer("text_encoder", 2, 8 * GB, 0, 0)
    assert in_gb(divide_host(6 * GB, [dit, encoder])) == {"dit": 2, "text_encoder": 4}
    assert in_gb(divide_host(32 * GB, [dit, encoder])) == {"dit": 12, "text_encoder": 8}


def test_what_lies_in_no_file_is_in_memory_anyway():
    sharers = [HostSharer("dit", 20, 12 * GB, 3 * GB), HostSharer("vae", 2, GB)]
    assert in_gb(divide_host(5 * GB, sharers)) == {"dit": 2, "vae": 0}
    with pytest.raises(
        BudgetError, match=r"found 3\.00 GB of layers that lie in no file \(dit\); give at least 3\.00 GB"
    ):
        divide_host(2 * GB, sharers)
