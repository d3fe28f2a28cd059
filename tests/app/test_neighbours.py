"""The pack beside others: nothing of the app is replaced, and the app's own tests pass as they do without us."""

import os
import socket
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from tests.support.app_server import PACK_FOLDER
from tests.support.devkit import apps, paths
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


def apps_own_tests(folder, packs: dict) -> dict[str, str]:
    """ "passed", "skipped" or the text of the failure, by test id, of the app's own tests with `packs` in custom_nodes.

    In a copy of the app's tree, because they write into the tree they run in.
    """
    app, tree = apps.under_test(), folder / "app"
    app.copy_tree(tree)
    for name, target in packs.items():
        (tree / "custom_nodes" / name).symlink_to(target, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    report = folder / "report.xml"
    env = {**os.environ, "PATH": f"{app.python.parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = str(paths.SUPPORT / "patient_client")
    command = [app.python, "-m", "pytest", *APPS_OWN_TESTS, "-o", "addopts=", "-s", "-p", "no:cacheprovider", "-q"]
    command += ["-p", "patient_client", "--skip-timing-checks"]
    command += ["--port", port, f"--junitxml={report}", f"--output_dir={folder / 'output'}"]
    done = subprocess.run([str(word) for word in command], cwd=tree, env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert report.is_file(), text[-3000:]
    for name in packs:
        assert f"custom_nodes/{name}" in text, "the server did not load the pack"
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        broken = [part for part in case if part.tag in ("failure", "error")]
        skipped = "skipped" if case.find("skipped") is not None else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = broken[0].get("message") if broken else skipped
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_apps_own_tests_pass_with_the_pack_as_without(tmp_path):
    without = apps_own_tests(tmp_path / "without", {})
    with_pack = apps_own_tests(tmp_path / "with", {PACK_FOLDER: paths.ROOT})
    assert with_pack == without
    passed = list(with_pack.values()).count("passed")
    assert passed >= 100 if apps.under_test().is_own_tree else passed == 190
