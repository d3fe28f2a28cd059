"""What docs/architecture.md lists as the files of a change is what the tree shows of the last change of that kind."""

import ast
import re
from pathlib import Path

from tests.support.devkit import paths

NEWEST_LOADER = "LayerwiseOffloadControlNetLoader"
FOLDERS = ("offload_core", "bridge", "nodes", "web", "locales", "tests", "example_workflows")
TEXT = (".py", ".js", ".mjs", ".json", ".md", ".css")


PRODUCT = ("offload_core", "bridge", "nodes", "web", "locales")
DEVICE_KIND = r"""["'](mps|xpu|cuda|hip)["']|version\.hip|def port_for"""
A_TIER = "pageable"


def listed(begins: str) -> set[str]:
    """The files in the list after the paragraph that begins so."""
    page = (paths.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.search(rf"{re.escape(begins)}.*?\n\n(.*?)\n\n", page, re.DOTALL)[1]
    return {name.replace("ID", NEWEST_LOADER) for name in re.findall(r"`([\w/.]+/[\w/.]+\.\w+)`", steps)}


def of_the_product(pattern: str) -> set[str]:
    """Files whose code, docstrings and comments left aside, has the pattern; tables of words, anywhere."""
    files = [
        path
        for folder in PRODUCT
        for path in (paths.ROOT / folder).rglob("*")
        if path.suffix in (".py", ".js", ".json", ".css", ".md")
    ]
    return {path.relative_to(paths.ROOT).as_posix() for path in files if re.search(pattern, code_of(path))}


def code_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".js":
        return re.sub(r"(?s:/\*.*?\*/)|^\s*//.*$", "", text, flags=re.MULTILINE)
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):
                node.body = [item for item in value if not is_text(item)] or [ast.Pass()]
    return ast.unparse(tree)


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def named_in_the_tree() -> set[str]:
    files = [path for folder in FOLDERS for path in (paths.ROOT / folder).rglob("*") if path.suffix in TEXT]
    relative = {path.relative_to(paths.ROOT).as_posix(): path for path in files}
    return {
        name
        for name, path in relative.items()
        if NEWEST_LOADER in name or NEWEST_LOADER in path.read_text(encoding="utf-8")
    }


def test_the_list_for_a_loader_node_is_what_a_loader_node_has():
    aside = {"tests/core/test_how_to_add.py", "tests/app/test_nodes.py"}  # they judge, and name no node to be complete
    assert listed("To add a loader node") - aside == named_in_the_tree() - aside


def test_the_list_for_a_host_tier_has_the_files_that_tell_tiers_apart():
    assert listed("**A host tier**") == of_the_product(A_TIER)


def test_the_list_for_a_device_has_the_files_that_tell_devices_apart():
    assert listed("**A device**") == of_the_product(DEVICE_KIND)
