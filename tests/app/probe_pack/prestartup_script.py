"""Takes a picture of the app right before the first pack is loaded, for /probe/patched in __init__.py beside this file.

The order of packs is the file system's, so a pack cannot know that it comes first. But the app lists the folder of
packs before it loads them; the first such listing after the app's own modules are there is the moment.
"""

import importlib.util
import sys
from pathlib import Path

_file = Path(__file__).with_name("snapshot.py")
_spec = importlib.util.spec_from_file_location("layerwise_probe_snapshot", _file)
snapshot = importlib.util.module_from_spec(_spec)
sys.modules["layerwise_probe_snapshot"] = snapshot
_spec.loader.exec_module(snapshot)


def _before_packs(event, arguments):
    listed = event == "os.listdir" and str(arguments[0]).endswith("custom_nodes") and "comfy.sd" in sys.modules
    if listed and not snapshot.taken:
        snapshot.taken["before packs"] = snapshot.take()


sys.addaudithook(_before_packs)
