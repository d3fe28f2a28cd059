"""What has happened, as events: the ring that holds them, their export and their summary. No torch."""

__all__ = ["events", "trace_export", "trace_summary"]
