"""From YAML files and options to checked settings: what is no YAML, no option, or no value is refused in a sentence.

Nothing here trains or prints; the command line and `training.train` read settings through the same functions.
"""
