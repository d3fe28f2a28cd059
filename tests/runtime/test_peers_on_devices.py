"""The engine with layers in a second simulated device's memory. The cases run in a process with two devices."""

from tests.support.two_devices import run_cases


def test_peers_on_devices():
    run_cases("tests/runtime/cases_peers.py")
