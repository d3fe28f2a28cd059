"""For all tiers: the `--long` switch and what it means for drawn examples. The rest is in each tier's own conftest."""

import hypothesis
import pytest


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
