"""The only part of the pack that imports ComfyUI's internals.

`patcher.py` is what the app sees; `component.py` is what stands behind it, one per underlying module; `loading.py` makes
the app's own loaders build our patcher.
"""
