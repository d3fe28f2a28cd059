"""From requests to a plan: `decide` is the road that every plan takes, `placing` asks the policy (decision 178)."""

__all__ = ["decide", "placing", "refused_budget"]
