"""Two devices in one process: the simulator keeps them apart, and the engine has a ring and a queue on each."""

from tests.support.two_devices import run_cases


def test_two_devices():
    run_cases("tests/runtime/cases_two_devices.py")
