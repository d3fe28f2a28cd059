"""What a release is, told from the files: python3 -m tests.support.release v1.2.3 prints the changelog of that version.

`--comfy-cli` prints the requirement that publishes it, the one the tests use. Refuses a tag that is not the version in
pyproject.toml, or a version whose section in CHANGELOG.md is missing or still says "unreleased". Used by the publish
workflow; needs only Python.
"""

import re
import sys

from tests.support.devkit import paths, versions


class NotReleasable(RuntimeError):
    """The message says what was found and what to do."""


def version() -> str:
    """The version in pyproject.toml, the only place that has it."""
    return re.search(r'^version = "([^"]+)"$', (paths.ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)


def sections(changelog: str) -> dict[str, str]:
    """The changelog's sections by heading, in order."""
    parts = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)[1:]
    return {heading.strip(): text.strip() for heading, text in zip(parts[::2], parts[1::2])}


def changelog_of(tag: str, ours: str, changelog: str) -> str:
    if tag != f"v{ours}":
        raise NotReleasable(f"the tag is {tag!r}, pyproject.toml says {ours!r}: tag v{ours}, or change the version")
    found = sections(changelog)
    if ours not in found:
        raise NotReleasable(
            f"CHANGELOG.md has no section '## {ours}', only {', '.join(found)}: write it, without '(unreleased)'"
        )
    if not found[ours]:
        raise NotReleasable(f"the section '## {ours}' of CHANGELOG.md is empty")
    return found[ours]


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python3 -m tests.support.release TAG | --comfy-cli", file=sys.stderr)
        return 2
    if sys.argv[1] == "--comfy-cli":
        print(f"comfy-cli=={versions.COMFY_CLI}")
        return 0
    try:
        print(changelog_of(sys.argv[1], version(), (paths.ROOT / "CHANGELOG.md").read_text()))
    except NotReleasable as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
