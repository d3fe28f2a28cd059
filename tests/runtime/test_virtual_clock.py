"""The engine against the clock: makespan, bytes, peak, host waits and allocations, to the nanosecond as simulated.

The race check says that the engine waits often enough; this says that it does not wait more often than it must.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bench import lora_step
from offload_core.planning.look_ahead import LookAhead
from offload_core.planning.plan import Plan
from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget
from offload_core.runtime import OffloadController, discover
from offload_core.runtime.engine.prefetcher import Prefetcher
from tests.support.clocked_model import RATE, SETTLED, Bench, Measured, equal_layers
from tests.support.hand_plan import hand_plan
from tests.support.simulated import SimulationResult, simulate_in_detail


def random_case(seed: int) -> tuple[Bench, Plan]:
    chance = random.Random(seed)
    count = chance.randint(2, 9)
    bench = Bench(
        [chance.choice([1, 2, 4, 4, 4, 8]) for _ in range(count)],
        [chance.choice([0, 500, 2000, 4000, 8000]) for _ in range(count)],
    )
    visits = list(range(count))
    if seed % 3 == 1:
        visits += [chance.randrange(count) for _ in range(chance.randint(1, count))]
    if seed % 3 == 2:
        visits = [chance.randrange(count) for _ in range(count + 2)]
    inventory = replace(bench.controller.inventory, visits=tuple(visits))
    least = smallest_budget(inventory)
    budget = chance.randint(least, max(least, inventory.total_bytes - 1))
    passes = chance.choice([1, 8])
    return bench, make_plan(PlanRequest(inventory, "cpu", budget, h2d_bytes_per_s=RATE, passes=passes))


def compare(bench: Bench, plan: Plan) -> tuple[Measured, SimulationResult]:
    return bench.measure(plan), simulate_in_detail(plan, bench.compute_ns, RATE)


@pytest.mark.parametrize("seed", range(60))
def test_as_fast_as_the_simulator_says_to_the_nanosecond(seed):
    measured, simulated = compare(*random_case(seed))
    assert measured.pass_ns == simulated.pass_ns >= simulated.bound_ns
    assert measured.first_pass_ns == simulated.first_pass_ns
    assert measured.bytes_per_pass == simulated.bytes_per_pass
    assert measured.peak_ring_bytes == simulated.peak_ring_bytes
    assert (measured.host_waits, measured.allocations) == (0, 0)


@pytest.mark.long
def test_as_fast_as_the_simulator_says_on_many_more():
    for seed in range(1000, 3000):
        test_as_fast_as_the_simulator_says_to_the_nanosecond(seed)


# ---------------------------------------------------------------------- cases with an answer known beforehand


def test_copies_hide_behind_compute_that_is_longer():
    bench = equal_layers(compute_ns=5000)
    measured, simulated = compare(bench, hand_plan(bench.controller, 2 * 4096))
    assert measured.pass_ns == 8 * 5000 == simulated.bound_ns
    assert measured.bytes_per_pass == 8 * 4096


def test_the_link_is_never_idle_when_it_is_the_limit():
    bench = equal_layers(compute_ns=3000)
    measured, simulated = compare(bench, hand_plan(bench.controller, 3 * 4096))
    assert measured.pass_ns == 8 * 4096 == simulated.bound_ns


def test_a_ring_of_one_layer_overlaps_nothing():
    bench = equal_layers(compute_ns=3000)
    measured, _ = compare(bench, hand_plan(bench.controller, 4096))
    assert measured.pass_ns == 8 * (4096 + 3000)


def test_residents_are_copied_once_and_the_rest_every_pass():
    bench = equal_layers(compute_ns=4096)
    measured, _ = compare(bench, hand_plan(bench.controller, 2 * 4096, residents=(1, 3, 5, 7)))
    assert measured.bytes_per_pass == 4 * 4096
    assert measured.pass_ns == 8 * 4096
    assert bench.port.copied_bytes == 4 * 4096 + (4 * SETTLED + 2) * 4096, "and the two fetched for the next pass"


def test_the_tail_of_a_pass_fetches_the_head_of_the_next():
    bench = equal_layers(compute_ns=6000)
    bench.controller.load(hand_plan(bench.controller, 2 * 4096))
    first = bench.pass_()
    assert first == 4096 + 8 * 6000, "one copy that nothing could hide"
    assert bench.pass_() == first + 8 * 6000


def test_measured_stalls_are_the_simulated_ones():
    bench = Bench([4, 2, 8, 4, 1, 6], [3000, 3000, 1000, 6000, 0, 2500])
    plan = hand_plan(bench.controller, 14_336, residents=(3,))
    measured, simulated = compare(bench, plan)
    counters = bench.controller.counters
    before = counters.as_dict()
    while bench.controller.counters.passes < 17:  # the ninth and the seventeenth are measured
        bench.pass_()
    assert measured.pass_ns == simulated.pass_ns
    visits = counters.timed_visits - before["timed_visits"]
    assert visits % 6 == 0 and visits
    assert counters.stall_ns - before["stall_ns"] == sum(simulated.stall_ns) * visits // 6
    assert counters.compute_ns - before["compute_ns"] == sum(bench.compute_ns) * visits // 6
    assert [layer.times.compute_ns for layer in bench.controller.layers] == list(bench.compute_ns)
    copies = counters.timed_copies - before["timed_copies"]
    assert copies and (counters.copy_ns - before["copy_ns"]) * 1e-9 * RATE > copies * 1024


def test_two_components_hand_the_lane_over_without_a_host_wait():
    one = equal_layers(compute_ns=5000, count=4)
    two = Bench([4] * 4, [5000] * 4)
    two.port, two.queue = one.port, one.queue
    two.controller.detach()
    two.controller = OffloadController(two.model, one.queue, discovery=discover(two.model, min_layer_bytes=1))
    one.controller.load(hand_plan(one.controller, 3 * 4096))
    two.controller.load(hand_plan(two.controller, 3 * 4096))
    one.pass_()
    two.pass_()
    waits, allocated = one.port.host_waits, one.port.allocations
    for _ in range(3):
        one.pass_()
        two.pass_()
    assert (one.port.host_waits, one.port.allocations) == (waits, allocated)


# ---------------------------------------------------------------------- engines that wait too much are caught here


def one_event_for_all_layers(patch):
    original = Prefetcher.__init__

    def changed(self, port, layers):
        original(self, port, layers)
        for layer in layers:
            layer.copy_done, layer.last_read = layers[0].copy_done, layers[0].last_read

    patch.setattr(Prefetcher, "__init__", changed)


def waits_for_every_copy(patch):
    """As `wait_stream` does: every layer waits for all copies so far, also those of later layers."""
    original = Prefetcher.enter

    def changed(self, layer):
        self.port.record_copy(self._fence)
        self.port.compute_waits(self._fence)
        original(self, layer)

    patch.setattr(Prefetcher, "enter", changed)


def the_host_waits(patch):
    original = Prefetcher.enter
    patch.setattr(Prefetcher, "enter", lambda self, layer: (original(self, layer), self.port.drain())[0])


def no_look_ahead(patch):
    patch.setattr(LookAhead, "fetch", lambda self, issue: None)


def forgets_between_passes(patch):
    original = Prefetcher._start_pass
    patch.setattr(Prefetcher, "_start_pass", lambda self, *visited: (self.give_up_ring(), original(self, *visited))[1])


def copies_residents_again(patch):
    original = Prefetcher._start_pass

    def changed(self, *visited):
        for layer in self._layers:
            layer.valid &= not layer.keep_resident
        original(self, *visited)

    patch.setattr(Prefetcher, "_start_pass", changed)


MUTANTS = [
    one_event_for_all_layers, waits_for_every_copy, the_host_waits, no_look_ahead, forgets_between_passes,
    copies_residents_again,
]  # fmt: skip


def one_to_spoil() -> tuple[Bench, Plan]:
    bench = Bench([4, 2, 6, 4, 4, 2], [3000, 4000, 6000, 6000, 5000, 3000], in_step=True)
    return bench, hand_plan(bench.controller, 11_264, residents=(2,))


def test_the_one_to_spoil_is_good_before():
    measured, simulated = compare(*one_to_spoil())
    assert measured.pass_ns == simulated.pass_ns < 27_000 * 1.05
    assert measured.host_waits == 0


@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_engine_that_waits_or_copies_too_much_is_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    measured, simulated = compare(*one_to_spoil())
    slower = measured.pass_ns > simulated.pass_ns * 1.01
    assert slower or measured.host_waits or measured.bytes_per_pass > simulated.bytes_per_pass


# ---------------------------------------------------------------------- a changed strength of a LoRA


@pytest.mark.parametrize("compute_ns", lora_step.LIMITS, ids=lora_step.LIMITS.get)
def test_the_first_step_after_a_changed_strength_is_a_step(compute_ns):
    """Page-locking at a tenth of the link's rate, which is what servers were seen to do with memory not yet touched. As
    many layers as Flux has: what was fetched ahead of the other strength is fetched again, and that is ring bytes.
    """
    steps = lora_step.on_the_virtual_clock(compute_ns, count=2)
    assert steps.locks_before_first == [0, 0], "a changed strength page-locks nothing"
    assert steps.locks_in_first == [0, 0], "page-locked in a pass"
    assert max(steps.first_ns) <= 1.1 * min(steps.steady_ns), f"{steps.ratio:.3f} of a steady step"
    assert steps.copied_back_bytes == 3 * lora_step.LAYERS * 4096
    with lora_step.memory_taken_in_the_pass():
        steps = lora_step.on_the_virtual_clock(compute_ns, count=2)
    assert steps.locks_in_first == [lora_step.LAYERS] * 2 and steps.ratio > 9, "it would be seen"
