"""The offload engine's core: settings, plans, predictions and, in `runtime`, the engine itself.

Knows nothing about ComfyUI and, outside `runtime`, nothing about torch. Importing this package imports none of its
modules. The `__all__` of each folder names the modules that other folders may import (decision 181).
"""

__all__ = ["errors", "fields", "notices", "sentences", "units"]
