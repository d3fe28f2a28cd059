"""For tests that use other people's libraries and tests that use the simulated accelerator, in one process."""

import contextlib
import gc

import pytest

from tests.support import simdev


def pytest_collection_modifyitems(items):
    """Have transformers and diffusers look for an Ascend NPU, which they do once, before we pretend to be one."""
    if any("librar" in item.path.name for item in items):
        with contextlib.suppress(ImportError):
            from transformers.utils import import_utils

            import_utils.is_torch_npu_available()
        with contextlib.suppress(ImportError):
            import diffusers.utils  # noqa: F401


@pytest.fixture
def npu():
    """The simulated device, small and strict; no race may have been seen when the test ends."""
    gc.collect()  # what an earlier test left in a cycle ends its page-locks now, not in the middle of this one
    module = simdev.load()
    module.synchronize()
    module.empty_cache()
    module.configure(mb=256, bandwidth=0, poison=True, race=True)
    module.reset_stats()
    pinned = module.stats()["pinned"]
    yield module
    module.synchronize()
    gc.collect()
    counted = module.stats()
    module.configure(mb=8192, bandwidth=0, race=False)
    assert counted["races"] == 0, counted["race_message"]
    # A page-lock that outlives its memory is in the way of the next user of the same addresses.
    assert counted["pinned"] == pinned, f"the test left {counted['pinned'] - pinned} bytes page-locked"
