"""The offload engine's core: settings, plans, predictions and, in `runtime`, the engine itself.

Knows nothing about ComfyUI and, outside `runtime`, nothing about torch. Importing this package imports nothing else;
take what you need from its modules (`offload_core.planner`, `offload_core.plan`, ...).
"""
