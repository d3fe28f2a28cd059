"""Set-up keeps its promises: a step runs once, again when its inputs change, fails readably, refuses a bad download."""

import subprocess
import sys

import pytest

from tests.support.devkit import app_tree, browser, environment, paths, steps, tiers
from tests.support.devkit.steps import Missing, StepFailed, Steps
from tests.support.devkit.versions import APP_RELEASES, DEFAULT_APP, AppRelease


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    for name in ("DEV", "LOGS", "STAMPS", "DOWNLOADS", "ARTIFACTS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setattr(paths, "app_tree", lambda version: tmp_path / "comfyui" / version)


def test_a_step_runs_once_per_inputs():
    runs = []
    for inputs in (["a"], ["a"], ["b"], ["b"]):
        assert Steps().run("step", inputs, lambda log: runs.append(1))
    assert len(runs) == 2


def test_a_step_runs_again_when_a_file_changes_or_its_product_is_gone(tmp_path):
    source, product = tmp_path / "source.txt", tmp_path / "product"
    runs = []

    def action(log):
        runs.append(1)
        product.touch()

    source.write_text("1")
    Steps().run("step", [source], action, makes=product)
    source.write_text("2")
    Steps().run("step", [source], action, makes=product)
    product.unlink()
    Steps().run("step", [source], action, makes=product)
    Steps().run("step", [source], action, makes=product)
    assert len(runs) == 3


def test_a_failing_step_shows_its_log_and_is_not_done():
    def action(log):
        log.run(sys.executable, "-c", "print('the reason'); raise SystemExit(3)")

    for _ in range(2):
        with pytest.raises(StepFailed, match="(?s)'step' failed.*the reason.*whole log: .*step.log"):
            Steps().run("step", [], action)


def test_no_network_is_one_line():
    def action(log):
        log.run(sys.executable, "-c", "print('Temporary failure in name resolution'); raise SystemExit(1)")

    with pytest.raises(StepFailed) as failure:
        Steps().run("step", [], action)
    assert "no network?" in str(failure.value) and "\n" not in str(failure.value)


def test_a_full_disk_is_one_line_with_what_is_free():
    def action(log):
        log.run(sys.executable, "-c", "print('OSError: [Errno 28] No space left on device'); raise SystemExit(1)")

    with pytest.raises(StepFailed, match=r"no space on the disk of .*: [0-9.]+ GB free, .* take 6 GB") as failure:
        Steps().run("step", [], action)
    assert "\n" not in str(failure.value)


def test_what_the_machine_lacks_is_remembered_and_set_up_goes_on(capsys):
    def action(log):
        raise Missing("no compiler: no accelerator")

    done = Steps()
    assert not done.run("step", [], action)
    assert done.missing == {"step": "no compiler: no accelerator"}
    assert "missing: no compiler" in capsys.readouterr().out


def test_a_download_with_a_wrong_checksum_is_refused_and_removed():
    release = AppRelease("0.0.1", "9.9.9", "0" * 64)
    paths.DOWNLOADS.mkdir(parents=True)
    archive = paths.DOWNLOADS / release.archive_name
    archive.write_bytes(b"not what we wanted")
    with pytest.raises(RuntimeError, match="refused and removed"):
        app_tree.fetch(steps.Log("fetch"), release)
    assert not archive.exists() and not paths.app_tree("0.0.1").exists()


def test_every_known_version_has_a_whole_checksum():
    assert DEFAULT_APP in APP_RELEASES
    assert all(len(release.sha256) == 64 for release in APP_RELEASES.values())


def test_torch_and_what_replaces_it_are_left_out_of_the_apps_requirements():
    skipped = ("torch", "torchvision", "torchaudio", "torch>=2", "comfyui-frontend-package==1.47.12")
    kept = ("torchsde", "transformers>=4.5", "comfy-kitchen==0.2.26", "numpy")
    assert all(environment.SKIPPED_REQUIREMENT.match(line) for line in skipped)
    assert not any(environment.SKIPPED_REQUIREMENT.match(line) for line in kept)


def test_a_tier_that_cannot_run_fails_only_on_ci(monkeypatch):
    monkeypatch.setattr(browser, "chromium", lambda: None)
    for ci, failed in (("", False), ("true", True)):
        monkeypatch.setenv("CI", ci)
        outcome = tiers.run_tier("web", None, [])
        assert outcome.failed is failed and "no browser" in outcome.line()


def test_dev_py_starts_without_an_environment_and_names_its_commands():
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(paths.ROOT / "dev.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for command in ("setup", "test", "demo", "lint", "serve", "gpu-kit"):
        assert command in done.stdout
