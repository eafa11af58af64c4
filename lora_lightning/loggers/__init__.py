"""What loggers show of a run: one interface for pictures, histograms, texts, tables, settings and results.

Each kind of logger has a module that puts it into practice. No measurement and no drawing is here.
"""

from lora_lightning.loggers.board import Board, RunSettings, Table
from lora_lightning.loggers.boards import boards_of

__all__ = ["Board", "RunSettings", "Table", "boards_of"]
