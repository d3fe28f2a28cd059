"""`--comfyui PATH`: a tree is found or refused in one line, gets packages of its own, and is not written to."""

import os
import subprocess
import zipfile
from argparse import Namespace

import pytest

from tests.support.devkit import accelerator, apps, environment, paths, tiers
from tests.support.devkit.steps import Log
from tests.support.devkit.versions import APP_RELEASES, DEFAULT_APP, numbers

LAYERED = "simpleeval"
"""A package that the common environment has, of which the tree below requires another version."""


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    for name in ("DEV", "LOGS", "STAMPS", "ARTIFACTS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "sd.py").write_text("")
    (folder / "main.py").write_text(f"import {LAYERED}, pytest, comfy.sd; print({LAYERED}.__file__)\n")
    (folder / "comfyui_version.py").write_text('# generated\n__version__ = "1.2.3"\n')
    (folder / "requirements.txt").write_text(f"torch\n{LAYERED}==99.0\n\n# not needed\npytest\n")
    return folder


def files_under(folder):
    return sorted((str(file.relative_to(folder)), file.stat().st_mtime_ns) for file in folder.rglob("*"))


def test_an_app_is_named_by_its_version_or_by_its_folder(tree, monkeypatch):
    for version in APP_RELEASES:
        app = apps.find(version)
        assert (app.name, app.version, app.is_own_tree) == (version, version, False)
        assert (app.tree, app.python) == (paths.app_tree(version), paths.PYTHON)
    monkeypatch.chdir(tree.parent)
    for name in (str(tree), "ComfyUI", "./ComfyUI/"):
        app = apps.find(name)
        assert (app.name, app.version, app.tree, app.is_own_tree) == (str(tree), "1.2.3", tree, True)
        assert paths.DEV in app.python.parents
    monkeypatch.setenv("LAYERWISE_COMFYUI", str(tree))
    assert apps.under_test().tree == tree
    monkeypatch.delenv("LAYERWISE_COMFYUI")
    assert apps.under_test().version == DEFAULT_APP


def test_what_is_no_app_is_refused_in_one_line(tree):
    def refusal(name):
        with pytest.raises(SystemExit) as end:
            apps.find(str(name))
        assert f"--comfyui {name}: " in str(end.value) and "\n" not in str(end.value)
        return str(end.value)

    assert "known versions are 0.30.0" in refusal("1.2.3")
    assert "asked for a ComfyUI tree; found a folder without main.py, comfyui_version.py" in refusal(tree / "comfy")
    (tree / "comfyui_version.py").write_text("__version__ = None\n")
    assert "no line '__version__" in refusal(tree)
    (tree / "main.py").unlink()
    assert "found a folder without main.py; name the folder" in refusal(tree)


def test_dev_py_refuses_a_folder_before_it_sets_anything_up(tree):
    (tree / "main.py").unlink()
    command = [str(paths.PYTHON), str(paths.ROOT / "dev.py"), "demo", "--comfyui", str(tree)]
    env = {**os.environ, "LAYERWISE_DEV_DIR": str(paths.DEV)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "found a folder without main.py" in done.stderr and not paths.DEV.exists()


def test_trees_that_require_the_same_share_an_environment(tree):
    first, requirements = apps.find(str(tree)).python, tree / "requirements.txt"
    text = requirements.read_text()
    requirements.write_text(f"# another comment\npytest\n{LAYERED}==99.0\n")
    assert apps.find(str(tree)).python == first
    for more in ("numpy>=2", "comfyui-frontend-package==1.2.3"):
        requirements.write_text(f"{text}{more}\n")
        assert apps.find(str(tree)).python != first


def wheel(folder, name, version):
    """A package of one empty module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_a_tree_gets_its_own_packages_and_nothing_is_written_to_it_or_below(tree, tmp_path, monkeypatch):
    wheel(tmp_path, LAYERED, "99.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    before, app = files_under(tree), apps.find(str(tree))

    def version_in(python):
        ask = f"from importlib import metadata; print(metadata.version('{LAYERED}'))"
        return subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()

    common = version_in(paths.PYTHON)
    environment.make_tree_venv(Log("tree"), tree)
    assert version_in(app.python) == "99.0" and version_in(paths.PYTHON) == common != "99.0"
    assert not list(app.python.parents[1].rglob("pytest")), "what the common environment has is not installed again"
    command = [str(app.python), str(tree / "main.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert str(app.python.parents[1]) in done.stdout, done.stderr
    assert files_under(tree) == before
    assert list(paths.DEV.rglob("sd.*.pyc")), "what was compiled is kept, elsewhere"


def test_a_copy_of_a_tree_is_the_app_and_nothing_of_its_users(tree, tmp_path):
    for file in ("models/checkpoints/large.safetensors", "models/configs/v1.yaml", "output/picture.png"):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).touch()
    for file in ("custom_nodes/their_pack/__init__.py", "custom_nodes/websocket.py", "comfy/models/configs.py"):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).touch()
    apps.find(str(tree)).copy_tree(tmp_path / "copy")
    copied = {str(file.relative_to(tmp_path / "copy")) for file in (tmp_path / "copy").rglob("*") if file.is_file()}
    assert copied == {
        *("main.py", "comfyui_version.py", "requirements.txt", "comfy/sd.py", "comfy/models/configs.py"),
        *("models/configs/v1.yaml", "custom_nodes/websocket.py"),
    }


def test_versions_with_a_tree_runs_what_is_for_it_and_no_other_version(tree, monkeypatch, capfd):
    monkeypatch.setattr(tiers, "set_up", lambda *names: None)
    monkeypatch.setattr(accelerator, "available", lambda: True)
    monkeypatch.setattr(apps.App, "python", paths.PYTHON)
    tiers.versions_main(Namespace(comfyui=str(tree), long=True), ["--collect-only", "-q"])
    listed = [line.rpartition("::")[2] for line in capfd.readouterr().out.splitlines() if "test_versions.py::" in line]
    assert listed[0] == "test_the_pack_works_in[tree]"
    assert listed[1:] and not any("works_in" in name for name in listed[1:])


def test_versions_compare_as_numbers():
    assert numbers("0.27.0") < numbers("0.30.0") < numbers("0.100.1") < numbers("1.0")
    assert numbers("0.39.0rc1") == numbers("0.39.0") and numbers("0.38.1-dev") == (0, 38, 1)
