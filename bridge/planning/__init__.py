"""From requests to a plan: `decide` is the road that every plan takes, `placing` asks the policy (decision 178).

`remembered` has the times that were measured before the app was started.
"""

__all__ = ["decide", "placing", "refused_budget", "remembered", "workflow"]
