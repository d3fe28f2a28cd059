"""Takes a name away before any pack is loaded, as an app would be that lacks it.

`LACKING` in the environment is an attribute of the app's patchers; if it is not set,
`comfy.sd.load_checkpoint_guess_config` goes.
"""

import os
import sys


def _take_away(event, arguments):
    # the app lists the folder of packs right before it loads them; the last audit event before ours
    if event == "os.listdir" and str(arguments[0]).endswith("custom_nodes") and "comfy.sd" in sys.modules:
        attribute = os.environ.get("LACKING")
        if attribute is None:
            vars(sys.modules["comfy.sd"]).pop("load_checkpoint_guess_config", None)
        else:
            _patchers_lack(attribute)


def _patchers_lack(attribute):
    """Patchers are built without the attribute. Once: the event comes more than once."""
    kind = sys.modules["comfy.model_patcher"].ModelPatcher
    constructor = kind.__init__
    if constructor.__name__ != "__init__":
        return

    def lacking(self, *args, **kwargs):
        constructor(self, *args, **kwargs)
        delattr(self, attribute)

    kind.__init__ = lacking


sys.addaudithook(_take_away)
