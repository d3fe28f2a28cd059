"""The offload engine's core: settings, plans, predictions and, in `runtime`, the engine itself.

Knows nothing about ComfyUI and, outside `runtime`, nothing about torch. Importing this package imports none of its
modules; import them by name (`offload_core.planner`, `offload_core.plan`, ...).
"""
