"""What the engine copies, and when: look-ahead told as lists of what happens.

`Ring.run` does what the engine does around the visits of a pass, without a device: it copies what is due, and copies on
the visit itself ("load") what look-ahead did not foresee. Copies are written where they are issued; a device makes them
while the layer before computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from offload_core.planning.look_ahead import Loadable, LookAhead


class Ring:
    """Layers b0, b1, ... and a ring. `places`: the bytes of the ring that each layer takes; none: a resident."""

    def __init__(self, places: Sequence[range]) -> None:
        self.layers = [Loadable(f"b{number}") for number in range(len(places))]
        for layer, place in zip(self.layers, places):
            layer.device_buffer, layer.keep_resident = place, not place
            others = [other for other, its in zip(self.layers, places) if other is not layer and set(place) & set(its)]
            layer.overlaps = tuple(others)
        self.look_ahead = LookAhead(self.layers)
        self.ring_is_ours = True
        self.lines: list[str] = []

    def run(self, walk: Iterable[int] | None = None, entry: str = "forward", until: int | None = None) -> list[str]:
        """One pass, by default over all layers in their order. `until`: it fails in this visit."""
        before = len(self.lines)
        self.begin(entry)
        for count, number in enumerate(range(len(self.layers)) if walk is None else walk):
            self.enter(number)
            if count == until:
                self.fail(number)
                return self.lines[before:]
            self.leave(number)
        self.end()
        return self.lines[before:]

    # What the engine does, step by step.

    def begin(self, entry: str | None = "forward") -> None:
        self.look_ahead.begin_pass(entry)
        self.look_ahead.use_ring(self.ring_is_ours)
        self.look_ahead.fetch(self)

    def enter(self, number: int) -> None:
        layer = self.layers[number]
        if layer.in_use:
            layer.in_use += 1
            return
        self.look_ahead.visit(layer)
        if not layer.valid:
            if any(other.in_use for other in layer.overlaps) or not (self.ring_is_ours or layer.keep_resident):
                self.lines.append(f"run {layer.name} in memory of its own")
                layer.in_use += 1
                return
            if any(other.pending for other in layer.overlaps):
                self.look_ahead.forget_pending()
            self.issue(layer, "load")
        self.lines.append(f"run {layer.name}")
        layer.in_use += 1

    def leave(self, number: int) -> None:
        self.layers[number].in_use -= 1
        if not self.layers[number].in_use:
            self.look_ahead.fetch(self)

    def fail(self, number: int) -> None:
        self.layers[number].in_use -= 1
        self.look_ahead.abort()

    def end(self) -> None:
        self.look_ahead.end_pass()
        self.look_ahead.fetch(self)

    def issue(self, layer: Loadable, how: str = "copy") -> None:
        for other in layer.overlaps:
            assert not other.in_use and not other.pending, f"{layer.name} overwrites {other.name}"
            other.valid = False
        layer.valid = True
        self.lines.append(f"{how} {layer.name}")


def ring(layers: int, places: int, residents: Sequence[int] = ()) -> Ring:
    """Layers of one size, which take turns in the places of a ring; residents have places of their own."""
    streamed = [number for number in range(layers) if number not in residents]
    place = {number: range(turn % places, turn % places + 1) for turn, number in enumerate(streamed)}
    return Ring([place.get(number, range(0)) for number in range(layers)])


def text(lines: str) -> list[str]:
    return [line.strip() for line in lines.split(",")]


# ---------------------------------------------------------------------- one pass


def test_copies_run_ahead_as_far_as_the_ring_has_places():
    """Three places: three copies at once, and then one for each layer that has been read. b3 lies where b0 did."""
    assert ring(5, 3).run() == text(
        "copy b0, copy b1, copy b2, run b0, copy b3, run b1, copy b4, run b2, run b3, copy b0, run b4, copy b1"
    )


def test_in_a_ring_of_two_a_copy_is_made_beside_each_layer():
    assert ring(4, 2).run() == text(
        "copy b0, copy b1, run b0, copy b2, run b1, copy b3, run b2, copy b0, run b3, copy b1"
    )


def test_in_a_ring_of_one_each_copy_waits_for_the_layer_before():
    assert ring(3, 1).run() == text("copy b0, run b0, copy b1, run b1, copy b2, run b2, copy b0")


def test_the_end_of_a_pass_fetches_the_beginning_of_the_next():
    streamed = ring(4, 2)
    streamed.run()
    assert streamed.run() == text("run b0, copy b2, run b1, copy b3, run b2, copy b0, run b3, copy b1")


def test_a_resident_is_copied_once_and_holds_nothing_up():
    kept = ring(4, 1, residents=[1, 2])
    assert kept.run() == text("copy b0, copy b1, copy b2, run b0, copy b3, run b1, run b2, run b3, copy b0")
    assert kept.run() == text("run b0, copy b3, run b1, run b2, run b3, copy b0")


def test_a_large_layer_waits_for_all_that_lie_in_its_bytes():
    """b2 takes the places of both b0 and b1, and what comes after it does not overtake it."""
    uneven = Ring([range(1), range(1, 2), range(2), range(2, 3)])
    assert uneven.run()[:8] == text("copy b0, copy b1, run b0, run b1, copy b2, copy b3, run b2, copy b0")


# ---------------------------------------------------------------------- other orders than expected


def test_a_visit_that_was_not_expected_is_loaded_and_the_road_goes_on_behind_it():
    """b2 is left out. What was copied for it is lost."""
    assert ring(5, 2).run([0, 1, 3, 4]) == text(
        "copy b0, copy b1, run b0, copy b2, run b1, copy b3, run b3, copy b4, run b4, copy b0, copy b1"
    )


def test_after_two_visits_that_were_not_expected_look_ahead_pauses():
    """What comes is unknown by then: a copy for a wrong layer would only delay the right one."""
    assert ring(6, 2).run([0, 3, 1, 5, 2, 4]) == text(
        "copy b0, copy b1, run b0, copy b2, load b3, run b3, copy b4, copy b5,"
        "load b1, run b1, load b5, run b5, load b2, run b2, load b4, run b4"
    )


def test_an_order_that_was_seen_is_known_the_next_time():
    backwards = ring(4, 2)
    backwards.run([3, 2, 1, 0])
    assert not any("load" in line for line in backwards.run([3, 2, 1, 0]))


def test_two_orders_in_turn_are_told_apart_by_what_came_before():
    """A step cache: every second pass leaves out the middle. From the third turn on nothing is loaded on its visit."""
    cached, loads = ring(6, 2), []
    for _ in range(4):
        loads.append(sum("load" in line for walk in ([*range(6)], [0, 1, 5]) for line in cached.run(walk)))
    assert loads[0] > 0 and loads[2:] == [0, 0]


def test_an_entry_that_is_known_changes_the_road_before_the_first_visit():
    """An autoencoder: `encode` walks b0 and b1, `decode` b2 and b3."""
    vae = ring(4, 2)
    for entry, walk in (("encode", [0, 1]), ("decode", [2, 3])) * 2:
        vae.run(walk, entry)
    vae.run([0, 1], "encode")
    assert "load b2" not in vae.run([2, 3], "decode")


# ---------------------------------------------------------------------- what a copy must not overwrite


def test_after_a_pass_without_visits_nothing_is_fetched_for_another_of_its_kind():
    """A small autoencoder, of which only `encode` has layers that are streamed: each picture is decoded."""
    vae = ring(3, 2)
    assert vae.run([], "decode") == text("copy b0, copy b1"), "as the plan expects it before any pass"
    vae.look_ahead.forget()
    for layer in vae.layers:
        layer.valid = False  # another component has had the ring since
    vae.look_ahead.fetch(vae)
    vae.run([], "decode")
    assert vae.lines == text("copy b0, copy b1") and vae.look_ahead.is_complete
    assert vae.run([0, 1, 2], "encode")[:3] == text("copy b0, copy b1, run b0")
    assert "copy b0" in vae.run([0, 1, 2], "encode"), "and ahead of the next one as ever"


def test_a_layer_in_use_is_not_overwritten_by_one_called_inside_it():
    """b1 is called within b0, in whose place it lies. What is copied for later waits until b0 is left."""
    nested = ring(4, 1)
    nested.begin()
    nested.enter(0)
    nested.enter(1)
    nested.leave(1)
    assert nested.lines == text("copy b0, run b0, run b1 in memory of its own")
    nested.leave(0)
    assert nested.lines[3:] == ["copy b2"]


def test_after_a_failure_nothing_is_counted_on_and_what_was_copied_is_used():
    failed = ring(4, 2)
    assert failed.run(until=1) == text("copy b0, copy b1, run b0, copy b2, run b1")
    assert not any(layer.pending or layer.in_use for layer in failed.layers)
    assert failed.run()[:5] == text("copy b0, run b0, copy b2, run b1, copy b3")


def test_a_ring_that_another_component_has_is_not_copied_into():
    lent = ring(3, 2, residents=[2])
    lent.ring_is_ours = False
    assert lent.run() == text("run b0 in memory of its own, run b1 in memory of its own, copy b2, run b2")
    lent.ring_is_ours = True
    assert lent.run() == text("copy b0, copy b1, run b0, run b1, run b2")


# ---------------------------------------------------------------------- whatever comes


def check(stage: Ring) -> None:
    """The invariants of `look_ahead.py`'s first lines."""
    ahead = stage.look_ahead._ahead
    first = stage.look_ahead._next
    counted_on = stage.look_ahead._road[first : first + ahead]
    assert sum(layer.pending for layer in stage.layers) == ahead == len(counted_on)
    for layer in stage.layers:
        assert layer.pending == counted_on.count(layer)
        assert layer.valid or not layer.pending
        assert not layer.valid or not any(other.valid for other in layer.overlaps)


PLACE = st.builds(lambda start, size: range(start, start + size), st.integers(0, 6), st.integers(0, 3))
STEPS = st.lists(st.sampled_from(["begin", "end", "fail", "leave", *range(6)]), max_size=60)


@given(st.lists(PLACE, min_size=1, max_size=6), STEPS)
def test_no_copy_overwrites_what_is_in_use_or_still_to_come(places, steps):
    """Places of any sizes, visits in any order and inside each other, passes that end anywhere. `issue` asserts it."""
    stage, inside = Ring(places), []
    stage.begin()
    for step in steps:
        if isinstance(step, int):
            inside.append(step % len(places))
            stage.enter(inside[-1])
        elif inside and step == "leave":
            stage.leave(inside.pop())
        elif step == "fail":
            while inside:
                stage.fail(inside.pop())
        elif not inside and step in ("begin", "end"):
            getattr(stage, step)()
        check(stage)
