"""What users install, by each of the roads they take, starts in the app: nodes, help, languages, templates, scripts.

The folder's name differs by road: nothing may depend on it.
"""

import urllib.parse
from pathlib import Path

import pytest

from tests.app.test_nodes import NODE_IDS
from tests.support import words
from tests.support.app_server import AppServer
from tests.support.devkit import paths
from tests.support.distribution import FORK, PACK_ID, Distribution, copy_of, shipped_files
from tests.support.release import version
from tests.support.workflows import build

pytestmark = pytest.mark.app


def assert_complete(server: AppServer, folder: Path):
    """Everything of the pack is there, under the folder's name."""
    ours = [id_ for id_, info in server.object_info().items() if folder.name in info.get("python_module", "")]
    assert sorted(ours) == sorted(NODE_IDS)
    for node_id in NODE_IDS:
        page = server.text(f"/extensions/{folder.name}/docs/{node_id}.md")
        assert page == (paths.ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    assert set(server.get("/i18n")) >= {words.ENGLISH, *words.TRANSLATED}
    scripts = [name for name in server.get("/extensions") if name.startswith(f"/extensions/{folder.name}/")]
    assert len(scripts) == len(list((paths.ROOT / "web").rglob("*.js")))
    templates = sorted(path.stem for path in (paths.ROOT / "example_workflows").glob("*.json"))
    assert sorted(server.get("/workflow_templates").get(folder.name, [])) == templates
    for name in templates:
        assert server.get(f"/api/workflow_templates/{folder.name}/{urllib.parse.quote(name)}.json")["nodes"]
    assert server.report()["components"] == []


def test_what_is_shipped_is_enough_under_any_name(tmp_path, app_server_factory):
    folder = copy_of(shipped_files(), tmp_path / "Renamed-by_hand-main")
    server = app_server_factory("sim", pack=False, extra_packs=(folder,))
    assert_complete(server, folder)
    server.run(build("flux", loader="layerwise", placement="layerwise", budget_gb=0.03)).check()
    assert len(server.report()["components"]) == 1


@pytest.fixture(scope="module")
def distribution(tmp_path_factory) -> Distribution:
    return Distribution(tmp_path_factory.mktemp("distribution"))


@pytest.mark.long
def test_comfy_node_validate_finds_nothing(distribution):
    said = distribution.comfy("node", "validate")
    assert "passed successfully" in said and "arning" not in said, said


@pytest.mark.long
def test_comfy_node_pack_makes_the_archive_we_mean(distribution):
    assert distribution.pack() == shipped_files()


@pytest.mark.long
@pytest.mark.parametrize("road", ["git", "registry"])
def test_the_manager_installs_it(distribution, app_server_factory, road):
    distribution.pack()
    with distribution.served(version()) as url:
        folder = distribution.manager_install(f"{url}/{FORK}.git" if road == "git" else f"{PACK_ID}@{version()}", url)
    assert folder.name == (FORK if road == "git" else PACK_ID)
    assert (folder / "tests").is_dir() == (road == "git"), "the archive brings no tests, a clone does"
    assert_complete(app_server_factory("cpu", pack=False, extra_packs=(folder,)), folder)
