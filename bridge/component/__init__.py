"""One component, the engine's part of one underlying module of the app, and its weights.

`component` loads, plans and unloads; `giving_back` gives device memory back; `patches` turns the app's patches into
changes of the engine; `true_values` shows the app what a fully loaded model would hold; `mapped_load` leaves weights in
their file during a load; `left_alone` remembers what was given to us and cannot be streamed.
"""

__all__ = ["component", "giving_back", "left_alone", "mapped_load", "patches", "true_values"]
