"""Tiny finished runs of each kind of task."""

from pathlib import Path
from typing import Any

from lora_lightning import RunRecord, train
from tests.tiny_data import save_tiny_clinc150, save_tiny_squad, save_tiny_table, save_tiny_wikitext

LABELS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi_label_classification": ("set", {"label_separator": ","}),
    "regression": ("number", {}),
}


def train_tiny_run(kind: str, backbone: Path, folder: Path, **options: Any) -> RunRecord:
    """Trains for a few steps.

    Args:
        kind: `intents`, `questions`, `text` or one of `LABELS`.
        backbone: A tiny model.
        folder: For data and run.
        options: Options by dotted name, with `__` for the dots.

    Returns:
        The run.
    """
    data: dict[str, Any] = {"cache_dir": str(folder / "cache"), "batch_size": 8}
    if kind == "intents":
        task, module = "SequenceClassificationTask", "Clinc150DataModule"
        data |= {"data_dir": str(save_tiny_clinc150(folder / "data"))}
    elif kind == "questions":
        task, module = "QuestionAnsweringTask", "SquadV2DataModule"
        data |= {"data_dir": str(save_tiny_squad(folder / "data")), "max_length": 32, "doc_stride": 8}
    elif kind in LABELS:
        task, module = "SequenceClassificationTask", "TextClassificationDataModule"
        label, more = LABELS[kind]
        (folder / "data").mkdir(parents=True)
        table = save_tiny_table(folder / "data" / "train.csv", label=label)
        data |= {"train_file": str(table), "problem_type": kind, **more}
    else:
        task, module = "CausalLanguageModelingTask", "PlainTextDataModule"
        data |= {"data_dir": str(save_tiny_wikitext(folder / "data")), "context_length": 30}
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": "runs"}}
    config = {
        "model": {
            "class_path": task,
            "init_args": {"backbone": str(backbone), "optimization": {"learning_rate": 0.01, "warmup_share": 0}},
        },
        "data": {"class_path": module, "init_args": data},
        "trainer": {
            "max_epochs": 2,
            "limit_train_batches": 12,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": logger,
        },
        "test_after_fit": False,
    }
    return train(config, {name.replace("__", "."): value for name, value in options.items()})
