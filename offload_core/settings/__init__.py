"""The settings of components: what can be set, who has set it, and what the policy fills in.

`component_settings` has the settings and their checks, `groups` the names of components and how they are selected,
`policy` the modes that decide what was left on auto, `resolver` joins both, `feasibility` says what cannot be or has no
effect. `node_table` lists the nodes and their components. No torch.
"""

__all__ = ["component_settings", "division", "feasibility", "groups", "node_table", "policy", "resolver"]
