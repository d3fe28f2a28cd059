"""The only part of the pack that imports ComfyUI's internals.

`patcher.py` is what the app sees; `component.py` is what stands behind it, one per underlying module. `loading.py`
makes the app's own loaders build our patcher, `loaders.py` has one function for each kind of file, `wrapping.py` takes
over what others have loaded. `asked.py` is what the nodes want of a component, `placing.py` fills in the rest.
"""
