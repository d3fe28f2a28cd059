"""Workflows that no test names: drawn from a seed, run with the app's loaders and with ours, and compared.

`case.py` draws a case and makes it simpler, `prompts.py` turns it into the app's API form, `judge.py` runs it.

    python -m tests.support.random_workflows 17 20-29     # these seeds; what fails is shrunk and shown
"""
