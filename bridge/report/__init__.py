"""What is shown of loaded components: the report (as document, text and picture) and the live messages."""

__all__ = ["document", "telemetry", "text"]
