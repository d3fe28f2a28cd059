"""What the engine moves: layers, the ring that they share, what lies outside layers, and how they are found."""

__all__ = ["discovery", "layer", "loose", "patched_layers", "ring", "tables", "wrapped"]
