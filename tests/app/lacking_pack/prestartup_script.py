"""Takes `comfy.sd.load_checkpoint_guess_config` away before any pack is loaded, as an app would be that lacks it."""

import sys


def _take_away(event, arguments):
    # the app lists the folder of packs right before it loads them; the last audit event before ours
    if event == "os.listdir" and str(arguments[0]).endswith("custom_nodes") and "comfy.sd" in sys.modules:
        vars(sys.modules["comfy.sd"]).pop("load_checkpoint_guess_config", None)


sys.addaudithook(_take_away)
