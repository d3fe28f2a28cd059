"""Every test here needs the device; without one the whole tier is skipped. In the kit each outcome is a row."""

import os

import pytest
import torch

from bench.kit import rows
from tests.gpu.device import device


def pytest_collection_modifyitems(items):
    reason = device.why_not()
    for item in items:
        if "/tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def opened_device():
    if not device.why_not():
        device.open(race=True)
    yield


@pytest.fixture(autouse=True)
def inference():
    """No gradients, a fresh allocator, and no race where they are counted."""
    if device.why_not():
        yield
        return
    torch.manual_seed(0)
    with torch.no_grad():
        device.fresh_memory()
        yield
    device.synchronize()
    if device.simulated:
        counted = device.module.stats()
        assert counted["races"] == 0, counted["race_message"]
        device.module.reset_stats()


def pytest_runtest_logreport(report):
    """Of each test one row: of its call, or of what came before if it was not called."""
    if not os.environ.get(rows.ROWS) or (report.when != "call" and report.passed) or report.when == "teardown":
        return
    why = "" if report.passed else str(getattr(report.longrepr, "reprcrash", None) or report.longrepr)[-400:]
    facts = {"outcome": report.outcome, "why": why, "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "native")}
    facts["printed"] = report.capstdout[-400:]
    rows.open_rows("tests").write(report.nodeid.partition("tests/gpu/")[2], report.duration, **facts)
