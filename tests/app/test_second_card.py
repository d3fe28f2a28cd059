"""A second card as a store, by the app's own memory management. The cases run in a process with two devices."""

import pytest

from tests.support.two_devices import run_cases

pytestmark = pytest.mark.app


def test_second_card():
    run_cases("tests/app/cases_second_card.py")
