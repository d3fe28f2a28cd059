"""Obeys a plan. Read `prefetcher` (what is issued when, and why that is enough), then `controller`.

`interpose` brackets the calls of the layers (`planning.walks` predicts their order), `tier_moves` moves host masters
between tiers, `repeat` runs a layer again after the device was full, `attach` does all of it for programs without the
app.
"""

__all__ = ["attach", "controller", "interpose", "tier_moves"]
