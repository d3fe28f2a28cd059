"""For all tiers: one compute thread, and the `--long` switch and what it means for drawn examples. The rest is in each
tier's own conftest."""

import os

import hypothesis
import pytest

# The models are small, and threads that spin while they wait starve the other processes: with two on each of two busy
# cores, a test of 0.2 s took 7 s. Read when torch is imported, so it is set here, for each worker and its children.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests marked long")


def pytest_configure(config):
    """New examples belong to long runs. An ordinary run says of a change what it said of the same change before."""
    hypothesis.settings.register_profile("ordinary", derandomize=not config.getoption("--long"))
    hypothesis.settings.load_profile("ordinary")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="long; run with --long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)
