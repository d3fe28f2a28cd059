"""What is published: the archive's files, the ids scanners find, the metadata. More in tests/app/test_install.py."""

import ast
import re

import pytest

from dev import parser as dev_parser
from tests.support import release, words
from tests.support.devkit import paths
from tests.support.distribution import PACK_ID, git, shipped_files, working_files

SHIPPED_FOLDERS = {"bridge", "nodes", "offload_core", "web", "locales", "example_workflows"}
SHIPPED_AT_THE_TOP = {"__init__.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"}
PYPROJECT = (paths.ROOT / "pyproject.toml").read_text()
CHANGELOG = (paths.ROOT / "CHANGELOG.md").read_text()
NODE_IDS = sorted(words.load(words.ENGLISH, words.NODE_DEFS))


@pytest.fixture(scope="module", autouse=True)
def repository():
    if not (paths.ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing tells what belongs to the project")


def test_the_archive_brings_what_runs_and_nothing_else():
    shipped = shipped_files()
    assert {name for name in shipped if "/" not in name} == SHIPPED_AT_THE_TOP
    assert {name.split("/")[0] for name in shipped if "/" in name} <= SHIPPED_FOLDERS
    assert not [name for name in shipped if name.endswith("ruff.toml")]
    for folder in SHIPPED_FOLDERS:
        left_out = {name for name in working_files() if name.startswith(f"{folder}/")} - set(shipped)
        assert {name.rsplit("/", 1)[-1] for name in left_out} <= {"ruff.toml"}, sorted(left_out)
    for node_id in NODE_IDS:
        assert f"web/docs/{node_id}.md" in shipped
    assert sum((paths.ROOT / name).stat().st_size for name in shipped) < 2_000_000


# ---- ids, as scanners that read source without running it find them


def v3_ids(source: str) -> list[str]:
    """Of each class with a base called ComfyNode: the literal node_id of the Schema in define_schema, or its name."""
    found = []
    for entry in ast.walk(ast.parse(source)):
        bases = entry.bases if isinstance(entry, ast.ClassDef) else []
        if any(getattr(base, "attr", getattr(base, "id", "")) == "ComfyNode" for base in bases):
            found.append(next(_literal_ids(entry), f"class {entry.name}"))
    return found


def _literal_ids(entry: ast.ClassDef):
    for method in entry.body:
        if isinstance(method, ast.FunctionDef) and method.name == "define_schema":
            for call in ast.walk(method):
                if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) == "Schema":
                    for word in call.keywords:
                        if word.arg == "node_id" and isinstance(word.value, ast.Constant):
                            yield word.value.value


def v1_ids(source: str) -> list[str]:
    """Quoted keys of whatever looks like a V1 mapping."""
    mappings = re.findall(r"_CLASS_MAPPINGS\s*(?::[^=\n]+)?=\s*\{([^}]*)\}", source)
    keys = re.findall(r"_CLASS_MAPPINGS\[[\"']([^\"']+)[\"']\]\s*=", source)
    return keys + [key for body in mappings for key in re.findall(r"[\"']([^\"']+)[\"']\s*:", body)]


def test_the_scans_see_what_scanners_see():
    plain = "class A(io.ComfyNode):\n    def define_schema(cls):\n        return io.Schema(node_id={})\n"
    assert v3_ids(plain.format("'Mine'")) == ["Mine"]
    assert v3_ids(plain.format("NAME")) == ["class A"]
    mappings = "NODE_CLASS" + "_MAPPINGS"  # in two parts: scanners by pattern read this file too
    assert v1_ids(mappings + " = {'A': A, \"B\": B}") == ["A", "B"]
    assert v1_ids(f"{mappings}: dict = {{'A': A}}\n{mappings}['B'] = B") == ["B", "A"]


def test_scanners_of_a_clone_find_our_ids_and_no_others():
    sources = [(paths.ROOT / name).read_text() for name in working_files() if name.endswith(".py")]
    assert sorted(name for source in sources for name in v3_ids(source)) == NODE_IDS
    assert [name for source in sources for name in v1_ids(source)] == []


def test_ids_are_fit_for_addresses():
    assert all(re.fullmatch(r"LayerwiseOffload[A-Za-z]+", name) for name in NODE_IDS)


# ---- metadata


def test_name_and_version_are_what_the_registry_takes():
    assert f'\nname = "{PACK_ID}"\n' in PYPROJECT and "comfyui" not in PACK_ID
    assert re.fullmatch(r"\d+\.\d+\.\d+", release.version())
    assert "\ndependencies = []\n" in PYPROJECT
    assert re.search(r'^requires-comfyui = ">=\d+\.\d+\.\d+"$', PYPROJECT, re.MULTILINE)
    assert 'license = { file = "LICENSE" }' in PYPROJECT and (paths.ROOT / "LICENSE").is_file()


def test_the_changelog_has_the_version_on_top():
    assert next(iter(release.sections(CHANGELOG))).split(" ")[0] == release.version()


def test_a_release_needs_its_tag_and_its_section():
    text = "# Changelog\n\n## 1.2.0\n\n* new\n\n## 1.1.0\n\n* old\n"
    assert release.changelog_of("v1.2.0", "1.2.0", text) == "* new"
    for tag, ours, changelog, why in (
        ("v1.2.1", "1.2.0", text, "tag v1.2.0, or change"),
        ("v1.3.0", "1.3.0", text, "no section"),
        ("v1.2.0", "1.2.0", text.replace("1.2.0", "1.2.0 (unreleased)"), "no section"),
        ("v1.2.0", "1.2.0", "## 1.2.0\n\n## 1.1.0\n\n* old\n", "is empty"),
    ):
        with pytest.raises(release.NotReleasable, match=re.escape(why)):
            release.changelog_of(tag, ours, changelog)


def test_nothing_is_published_but_by_a_tag():
    workflow = (paths.ROOT / ".github" / "workflows" / "publish.yml").read_text()
    triggers = workflow[workflow.index("\non:") : workflow.index("\npermissions:")]
    assert re.findall(r"^ *(\w+):", triggers, re.MULTILINE) == ["on", "push", "tags"]
    assert git("ls-files", "-co", "--exclude-standard", "--", ".github", cwd=paths.ROOT).split() == [
        ".github/workflows/nightly.yml",
        ".github/workflows/publish.yml",
    ]
    nightly = (paths.ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    assert "\npermissions:\n  contents: read\n\n" in nightly and nightly.count("permissions:") == 1
    assert "secrets." not in nightly and "node publish" not in nightly


def test_the_nightly_commands_are_commands_that_there_are():
    nightly = (paths.ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    commands = re.findall(r"python3 dev\.py ([a-z].+(?:\n +tests/.+)*)", nightly.partition("\njobs:")[2])
    assert len(commands) == 4 and all('--comfyui "$COMFYUI"' in command for command in commands)
    for command in commands:
        words = command.replace('"$COMFYUI"', "0.30.0").split()
        known, extra = dev_parser().parse_known_args(words)
        assert known.command == words[0] and all((paths.ROOT / word).is_file() for word in extra)
