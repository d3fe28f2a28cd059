"""TEST ONLY node pack: its prestartup script gives the app's patchers an argument that no pack can know yet."""

NODE_CLASS_MAPPINGS: dict = {}
