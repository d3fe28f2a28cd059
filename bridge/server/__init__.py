"""What the browser asks for: the routes, and the plan of a prompt before it runs."""

__all__ = ["start"]
