"""Which board belongs to which logger."""

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lora_lightning.loggers.board import Board
from lora_lightning.loggers.csv_files import CsvBoard
from lora_lightning.loggers.mlflow import MLflowBoard
from lora_lightning.loggers.tensorboard import TensorBoardBoard
from lora_lightning.loggers.weights_and_biases import WandbBoard

BOARDS: tuple[tuple[type[Logger], type[Board]], ...] = (
    (TensorBoardLogger, TensorBoardBoard),
    (CSVLogger, CsvBoard),
    (WandbLogger, WandbBoard),
    (MLFlowLogger, MLflowBoard),
)


def boards_of(trainer: Trainer) -> list[Board]:
    """Returns a board for each logger of a trainer.

    Args:
        trainer: The trainer.

    Returns:
        The boards, in the order of the loggers; none on other processes than the main one.
    """
    if not trainer.is_global_zero:
        return []
    return [board_of(logger) for logger in trainer.loggers]


def board_of(logger: Logger) -> Board:
    """Returns the board of a logger; of a kind that is not known, one that shows numbers and settings alone."""
    kinds = (made for kind, made in BOARDS if isinstance(logger, kind))
    return next(kinds, Board)(logger)
