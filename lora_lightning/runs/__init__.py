"""A run on disk and as processes: file names, `RunRecord`, checkpoints, settings, resuming, signals, locks.

Nothing here trains or measures. This file imports nothing, because signals must be handled before torch is loaded.
"""
