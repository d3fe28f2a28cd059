"""Tells the app when a loader of ours has to run again: its output looks into files, and files can be replaced."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import folder_paths

from .graph_files import OURS


def files_now(node_id: str, widgets: Mapping[str, Any]) -> str:
    """Changes when a file that the widgets of a loader of ours name is replaced or written to.

    A name without a file behind it ("none", what a VAE loader makes by itself, what another node is yet to say) is
    left to the loader.
    """
    said = []
    for folder, names in sorted(set(OURS[node_id].values())):
        for name in names:
            value = widgets.get(name)
            path = folder_paths.get_full_path(folder, value) if isinstance(value, str) else None
            if path is not None:
                try:
                    found = os.stat(path)
                except OSError as error:
                    said.append(f"{path} {error.errno}")
                else:
                    said.append(f"{path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}")
    return "\n".join(said)
