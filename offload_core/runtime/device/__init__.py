"""The device: its port (lanes, events, copies), what components share on it, and the counters of what it did.

`device_port` is the protocol, `ports` selects its implementation (`accelerator_port`, `cpu_port`); a port for another
kind of device goes there. `staging` copies host memory that is not page-locked.
"""

__all__ = ["clock", "counters", "device_port", "device_queue", "peer_memory", "ports"]
