"""The only part of the pack that imports ComfyUI's internals. The nodes import `api`.

`load` makes the app's own loaders build our patcher, which is what the app sees; behind it stands one `component` per
underlying module. `requests` says what users have set for it, `planning` makes a plan of that, within `memory`.
`report` and `server` are what can be seen of it. `app` is what all of them ask of the app.
"""

__all__ = ["api"]
