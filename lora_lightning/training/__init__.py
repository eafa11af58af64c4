"""What runs a task on a data module: checkpointing, early stopping, what happens between steps, strategies.

What a user may add in YAML is in `callbacks`; nothing here parses a command line.
"""
