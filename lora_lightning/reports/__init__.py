"""What people and programs read about a study: an HTML page, tables and JSON, from results and their analysis.

Nothing here measures or decides; numbers and verdicts come from `lora_lightning.statistics`.
"""
