"""What a hand-over from one component to the next costs, on the virtual clock and on the simulated device."""

import gc
import json
import subprocess
import sys
import weakref

import pytest
import torch

from bench import hand_over
from offload_core.runtime.device.device_queue import DeviceQueue
from offload_core.runtime.engine.controller import OffloadController
from offload_core.runtime.engine.prefetcher import Prefetcher
from offload_core.runtime.files.weight_file import FileReadError
from tests.runtime.world import Interrupt, World
from tests.runtime.zoo_hand_over import three
from tests.support import simdev
from tests.support.clocked_model import RATE
from tests.support.devkit import paths
from tests.support.hand_plan import hand_plan
from tests.support.tiny_torch_models import DIM

RING_NS = 3 * 4096 * 1e9 / RATE
WAIT = "wait, in shares of that without early copies"


def test_the_next_components_first_layers_are_there_when_it_begins():
    rows = hand_over.on_the_virtual_clock()
    before = {(row.before, row.component): row for row in rows if not row.early}
    after = {(row.before, row.component): row for row in rows if row.early}
    changes = [pair for pair in before if pair[0] != pair[1]]
    assert len(changes) == 3 and all(before[pair].wait_ns > 4096 for pair in changes), "it would be seen"
    for pair in changes:
        assert after[pair].wait_ns <= 0.05 * before[pair].wait_ns, WAIT
        assert after[pair].early_copies == 3, "all of the ring"
    assert not any(row.demand_loads for row in rows if row.early)


def makespan_ns(uses, learned, early: bool) -> int:
    stage = hand_over.virtual_stage()
    if not early:
        with hand_over.off():
            return _makespan_ns(stage, uses, learned)
    return _makespan_ns(stage, uses, learned)


def _makespan_ns(stage, uses, learned) -> int:
    port = stage.controllers["encoder"].queue.port
    for _ in range(2):
        stage.prompt(learned)
    before, waits = port.compute_ns, port.host_waits
    stage.prompt(uses)
    assert port.host_waits == waits
    stage.close()
    return port.compute_ns - before


def test_a_prompt_as_before_saves_what_was_waited_for():
    saved = makespan_ns(hand_over.USES, hand_over.USES, False) - makespan_ns(hand_over.USES, hand_over.USES, True)
    assert saved > 2 * 4096


@pytest.mark.parametrize(
    "uses, wrong",
    [
        ((("encoder", 1), ("encoder", 1), ("diffusion model", 9), ("autoencoder", 1)), 1),
        ((("encoder", 1), ("diffusion model", 6), ("autoencoder", 1)), 1),
        ((("autoencoder", 1), ("encoder", 1), ("encoder", 1), ("encoder", 1), ("autoencoder", 2)), 3),
    ],
    ids=["more steps", "a text is cached", "another graph"],
)
def test_a_wrong_guess_costs_a_ring_at_most(uses, wrong):
    """For each guess: what was fetched for a component that does not run, and not for the one that does."""
    longer = makespan_ns(uses, hand_over.USES, True) - makespan_ns(uses, hand_over.USES, False)
    assert longer <= wrong * RING_NS


def test_what_cannot_be_read_early_is_met_in_its_own_pass(monkeypatch):
    """The file of the next component is damaged: the pass of this one goes on."""
    stage = hand_over.virtual_stage()
    for _ in range(2):
        stage.prompt()
    broken = stage.controllers["autoencoder"]
    issue = Prefetcher.issue

    def fail(self, layer):
        if self is broken.prefetcher:
            raise FileReadError("asked for a layer; found its file damaged; download it again")
        issue(self, layer)

    monkeypatch.setattr(Prefetcher, "issue", fail)
    stage.prompt(hand_over.USES[:3])
    with pytest.raises(FileReadError):
        stage.prompt(hand_over.USES[3:])
    monkeypatch.undo()
    stage.prompt()
    stage.close()


def test_a_component_without_a_ring_leaves_all_of_it_to_the_next():
    """The diffusion model is resident: the autoencoder's layers come while it runs."""
    stage = hand_over.virtual_stage()
    model = stage.controllers["diffusion model"]
    resident = hand_plan(model, 0, residents=range(len(model.layers)))
    model.load(resident)
    for _ in range(2):
        stage.prompt()
    counts = dict(stage.prompt())["autoencoder"]
    assert counts["early_copies"] == 3 and counts["stall_ns"] == 0
    stage.close()


@pytest.mark.long
@pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")
def test_the_bench_runs_through():
    command = [sys.executable, "-m", "bench.hand_over", "--json", "--prompts", "5"]
    done = subprocess.run(command, cwd=paths.ROOT, check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)["results"]
    assert len(rows) == 16
    for row in rows:
        expected = 3 if row["early"] and row["before"] != row["component"] else 0
        assert (row["early_copies"], row["demand_loads"]) == (expected, 0), row


def test_the_components_of_a_hand_over_are_freed_with_their_last_user():
    """What shares the ring with a component that has gone keeps nothing of it."""
    with torch.no_grad(), World() as world:
        one, two = world.add((4, 4, 4, 4)), world.add((5, 3, 6))
        one.load(12_288)
        two.load(14_336)
        for _ in range(3):
            one.run()
            two.run()
        one.run()
        assert set(one.controller.layers[0].overlaps) & set(two.controller.layers), "they share the ring"
        gone = [weakref.ref(thing) for thing in (two.controller, two.model, *two.model.blocks)]
        two.detach()
        world.components.remove(two)
        del two
        gc.collect()
        assert not any(reference() is not None for reference in gone)
        one.run()


PLACES = ("give_up_ring", "share_ring", "fetch_early")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("late", [False, True], ids=["copies at once", "copies late"])
def test_an_interrupt_at_any_step_of_a_hand_over_leaves_all_bytes_right(monkeypatch, after, late):
    """A `BaseException` before or after each call that the queue makes; then everything runs, in every order."""
    for number in range(200):
        steps = iter(range(number, -1, -1))
        armed: list[bool] = []

        def interrupted(owner, name, steps=steps, armed=armed):
            original = getattr(owner, name)

            def changed(*args, **kwargs):
                strike = bool(armed) and next(steps, None) == 0
                if strike and not after:
                    raise Interrupt
                result = original(*args, **kwargs)
                if strike:
                    raise Interrupt
                return result

            monkeypatch.setattr(owner, name, changed)

        with torch.no_grad(), World(late) as world, monkeypatch.context() as monkeypatch:
            encoder, model, decoder = three(world)
            for name in PLACES:
                interrupted(OffloadController, name)
            for name in ("fence", "_stop_sharing", "withdraw", "activate", "pass_begins"):
                interrupted(DeviceQueue, name)
            armed.append(True)
            struck = False
            for component, passes in ((encoder, 1), (model, 3), (encoder, 1), (decoder, 1), (model, 2)):
                for _ in range(passes):
                    try:
                        component.model(torch.ones(2, DIM))
                    except Interrupt:
                        struck = True
            armed.clear()
            for component in (decoder, encoder, model, decoder, model, encoder):
                component.run()
        if not struck:
            break
    assert 10 < number < 199, "it was interrupted at each step"
