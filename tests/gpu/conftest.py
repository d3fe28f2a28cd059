"""Every test here needs the device; without one the whole tier is skipped."""

import pytest
import torch

from tests.gpu import device


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
        device.open_device()
    yield


@pytest.fixture(autouse=True)
def inference():
    """Deterministic kernels, no gradients, and no race where they are counted."""
    if device.why_not():
        yield
        return
    torch.manual_seed(0)
    with torch.no_grad():
        device.fresh_memory()
        yield
    device.module().synchronize()
    if device.SIMULATED:
        counted = device.module().stats()
        assert counted["races"] == 0, counted["race_message"]
        device.module().reset_stats()
