"""Plans: which layers stay on the device, where the others lie in the ring, and what a pass takes.

`request` and `inventory` are the input, `plan` is the output, `planner` makes it, `check` judges it, `plan_change`
makes another one in its place. `measured_times` keeps what was measured for the next process. `look_ahead` says which
copies are due while a plan is obeyed, by the orders of visits in `walks`; `succession` which component runs next; both
learn by `forecasts`. The planner's search is inside: `search` tries sets of residents that `credit` proposes,
`evaluate` judges each by `timeline`, `packing` and `ring_places` place the streamed ones, `rules` has the sets that a
plan is held against. `simulate` predicts a plan's pass. `host_tiers` places the host masters, within `host_budget`.
Arithmetic only, no torch.
"""

__all__ = [
    "check",
    "cost_model",
    "host_budget",
    "host_tiers",
    "inventory",
    "look_ahead",
    "measured_times",
    "plan",
    "plan_change",
    "plan_text",
    "planner",
    "request",
    "reserved",
    "ring_size",
    "simulate",
    "succession",
]
