"""What we ask of the app and its objects: versions, kinds of models, patchers of other packs, devices, progress.

`compat` is the only module that asks for features that some versions lack.
"""

__all__ = ["compat", "device", "foreign", "kinds", "recording", "watch"]
