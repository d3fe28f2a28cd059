"""The pack beside others: nothing of the app is replaced, and the app's own tests pass as they do without us."""

import os
import shutil
import socket
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from tests.support.app_server import PACK_FOLDER
from tests.support.devkit import paths
from tests.support.devkit.versions import DEFAULT_APP
from tests.support.workflows import CLIP, MODEL, VAE, build, with_our_loaders

pytestmark = pytest.mark.app

BY_OUR_TEST_KIT = ["comfy.sd.load_text_encoder_state_dicts"]
"""Replaced by tests/support/tiny_models/shim, for encoders too small to be recognised. It shows that the probe sees."""

APPS_OWN_TESTS = ("tests/execution/test_execution.py", "tests/execution/test_async_nodes.py")


def test_nothing_of_the_app_is_replaced(sim):
    """By identity: every name of the app's memory modules, and every member of their classes."""
    patched = sim.get("/probe/patched")
    assert patched["names"] > 500
    assert patched["after_packs"] == BY_OUR_TEST_KIT
    for prompt in (
        with_our_loaders(build("flux", lora=0.8), {MODEL: {"budget_gb": 0.03}, CLIP: {}, VAE: {}}, {"mode": "memory"}),
        build("flux", "apply", placement="layerwise"),
    ):
        sim.run(prompt).check()
        assert sim.get("/probe/patched")["now"] == BY_OUR_TEST_KIT
        sim.free()


def apps_own_tests(folder, packs) -> dict[str, str]:
    """Outcome by test id of the app's execution tests, in a copy of its tree with `packs` in its custom_nodes."""
    tree = folder / "app"
    shutil.copytree(paths.app_tree(DEFAULT_APP), tree)
    for name, target in packs.items():
        (tree / "custom_nodes" / name).symlink_to(target, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    report = folder / "report.xml"
    env = {**os.environ, "PATH": f"{paths.PYTHON.parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    command = [paths.PYTHON, "-m", "pytest", *APPS_OWN_TESTS, "-o", "addopts=", "-p", "no:cacheprovider", "-q"]
    command += ["--port", port, "--skip-timing-checks", f"--junitxml={report}", f"--output_dir={folder / 'output'}"]
    done = subprocess.run([str(word) for word in command], cwd=tree, env=env, capture_output=True, text=True)
    assert report.is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    if packs:
        assert f"custom_nodes/{PACK_FOLDER}" in done.stdout + done.stderr, "the server did not load the pack"
    outcomes = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        verdict = next((word for word in ("failure", "error", "skipped") if case.find(word) is not None), "passed")
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = verdict
    return outcomes


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_apps_own_tests_pass_with_the_pack_as_without(tmp_path):
    without = apps_own_tests(tmp_path / "without", {})
    with_pack = apps_own_tests(tmp_path / "with", {PACK_FOLDER: paths.ROOT})
    assert with_pack == without
    assert list(with_pack.values()).count("passed") == 190
