#!/usr/bin/env python3
"""The developer's one command. Needs only Python 3.10 or newer; what it installs goes into the git-ignored folder .dev.

python3 dev.py demo     a real ComfyUI with the pack: the same picture with the app's loader and with ours
python3 dev.py test     every test; --tier core,runtime,app,web,gpu,lint for some; further words go to pytest
python3 dev.py versions a small set of workflows in every ComfyUI version that the pack is for
python3 dev.py serve    a real ComfyUI with the pack, to open in a browser
python3 dev.py lint     ruff, mypy, vulture and rules of our own
python3 dev.py setup    only what the others would set up first
python3 dev.py gpu-kit  packs what a GPU machine without network needs

--comfyui PATH          with each of them: a ComfyUI tree of your own, which is not written to
"""

import argparse
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - it is here for those who have an older one
    raise SystemExit("dev.py needs Python 3.10 or newer")

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tests.support.devkit import apps, launch, setup, tiers  # noqa: E402 - after the path is set
from tests.support.devkit.versions import APP_RELEASES, DEFAULT_APP  # noqa: E402

DEVICES = ("auto", "cuda", "sim", "cpu")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "--comfyui",
            default=DEFAULT_APP,
            metavar="VERSION|PATH",
            help=f"one of {', '.join(APP_RELEASES)} (default %(default)s), or the folder of a ComfyUI of your own",
        )
        return added

    wanted = command("setup", "set everything up, each step once")
    wanted.add_argument("--web", action="store_true", help="also the browser for the web tier")

    wanted = command("test", "lint and all tests; words that are not known here go to pytest")
    wanted.add_argument("--tier", help=f"comma-separated, of {', '.join(tiers.TIERS)}")
    wanted.add_argument("--long", action="store_true", help="also the tests marked long")

    which = "every ComfyUI version that the pack is for, or the one tree that is named"
    command("versions", f"{which}; words that are not known here go to pytest")

    wanted = command("demo", "the same picture with the app's loader and with ours, in a real ComfyUI")
    wanted.add_argument("--device", choices=DEVICES, default="auto")
    wanted.add_argument("--json", metavar="FILE", help="write the result here")
    wanted.add_argument("--out", metavar="DIR", help="where the pictures go (default .dev/artifacts/demo)")
    wanted.add_argument("--memory-mb", type=int, help="on the CPU: what the server may grow by (default 200)")

    wanted = command("serve", "a real ComfyUI with the pack, to open in a browser; Ctrl-C ends it")
    wanted.add_argument("--device", choices=DEVICES, default="auto")
    wanted.add_argument("--port", type=int, default=8188)
    wanted.add_argument("--memory-mb", type=int, default=1400, help="of the simulated device (default %(default)s)")

    command("lint", "ruff, mypy, vulture and rules of our own")
    wanted = command("gpu-kit", "pack what a GPU machine without network needs")
    wanted.add_argument("dir", metavar="DIR", help="the folder to write")
    return top


def main() -> int:
    arguments, extra = parser().parse_known_args()
    if extra and arguments.command not in ("test", "versions"):
        parser().error(f"unknown words: {' '.join(extra)}")
    arguments.comfyui = apps.find(arguments.comfyui).name
    run = {
        "setup": lambda: setup.main(arguments),
        "test": lambda: tiers.main(arguments, [word for word in extra if word != "--"]),
        "versions": lambda: tiers.versions_main(argparse.Namespace(**vars(arguments), long=True), extra),
        "demo": lambda: launch.demo(arguments),
        "serve": lambda: launch.serve(arguments),
        "lint": tiers.lint_main,
        "gpu-kit": lambda: launch.gpu_kit(arguments),
    }
    return run[arguments.command]()


if __name__ == "__main__":
    sys.exit(main())
