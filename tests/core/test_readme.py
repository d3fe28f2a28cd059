"""README's first screen, for who comes from ComfyUI Manager, is true; what the page links to is there."""

import re
from urllib.parse import unquote

from tests.support.devkit import paths

PAGE = (paths.ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (paths.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
FIRST_SCREEN_LINES = 24
UNPUBLISHED = "not in ComfyUI Manager's list yet"


def test_the_first_screen_has_what_a_newcomer_needs():
    screen = "\n".join(PAGE.splitlines()[:FIRST_SCREEN_LINES])
    for words in (
        *("Nothing here has run on a real GPU yet", "![", "## Install", "ComfyUI/custom_nodes"),
        *("Layerwise Offload Loader (Diffusion Model)* where *Load Diffusion Model* was", "docs/troubleshooting.md"),
    ):
        assert words in screen, words


def test_the_manager_is_named_as_a_way_only_once_something_is_released():
    newest = re.search(r"^## \S+(.*)$", CHANGELOG, re.MULTILINE)[1]
    released = CHANGELOG.count("\n## ") > 1 or "unreleased" not in newest
    assert (UNPUBLISHED in PAGE) != released


def test_what_is_linked_is_there():
    headings = {
        re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-")
        for text in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert len(links) >= 10
    for link in links:
        name, _, anchor = link.partition("#")
        assert (paths.ROOT / unquote(name)).exists(), link
        assert name or anchor in headings, link
