"""TEST ONLY node pack: its prestartup script takes a name away that the pack under test needs of the app."""

NODE_CLASS_MAPPINGS: dict = {}
