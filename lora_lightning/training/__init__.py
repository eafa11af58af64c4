"""Runs a task on a data module: `train`, `evaluate`, `predict`, checkpointing, early stopping, strategies.

Callbacks that a user adds in YAML are in `callbacks`. Nothing here prints tables or reads `sys.argv`.
"""
