"""What the headers of model files say: what a file is for, and the sizes of the components of a prompt."""

__all__ = ["ahead", "file_kinds"]
