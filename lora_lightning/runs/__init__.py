"""What a run is on disk and as processes: names of files, checkpoints, settings, resuming, signals, locks.

Nothing here trains or measures, and nothing is imported by this file: signals must be heard before torch is loaded.
"""
