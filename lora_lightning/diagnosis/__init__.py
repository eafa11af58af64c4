"""LoRA against QLoRA: trains both over ranks and seeds as a study, measures what quantizing changes, and says so.

Measures are functions of `analysis` and `statistics`, and pages of `reports`. Nothing here parses a command line.
"""
