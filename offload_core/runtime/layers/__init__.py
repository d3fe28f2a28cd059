"""What the engine moves: layers, the ring that they share, what lies outside layers, and how they are found.

`layer` has the states of a layer and what leads from one to the next. `layer_times` measures it, `recorder` writes the
times into the trace.
"""

__all__ = ["discovery", "layer", "loose", "patched_layers", "recorder", "tables", "wrapped"]
