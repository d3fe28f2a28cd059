"""For tests that use other people's libraries and tests that use the simulated accelerator, in one process."""

import contextlib


def pytest_collection_modifyitems(items):
    """Have transformers and diffusers look for an Ascend NPU, which they do once, before we pretend to be one."""
    if any("librar" in item.path.name for item in items):
        with contextlib.suppress(ImportError):
            from transformers.utils import import_utils

            import_utils.is_torch_npu_available()
        with contextlib.suppress(ImportError):
            import diffusers.utils  # noqa: F401
