"""What `dev.py` does: set-up, test tiers, demo, serve. Standard library only: it runs before the environment exists."""
