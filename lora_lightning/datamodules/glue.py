"""GLUE: nine tasks of language understanding and a diagnostic set (Wang et al. 2019, arXiv 1804.07461)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.datamodules.base import PREDICT, TEST, TRAIN
from lora_lightning.datamodules.glue_tasks import GLUE_TASKS, GlueSplit
from lora_lightning.datamodules.hub import hub_table, load_hub_dataset
from lora_lightning.datamodules.label_columns import class_indices, class_labels
from lora_lightning.datamodules.number_columns import finite_numbers
from lora_lightning.datamodules.sequence_classification import ClassificationDataModule, LabeledTexts
from lora_lightning.datamodules.unused_options import warn_about_unused_options
from lora_lightning.datamodules.validation_share import check_hold_out, held_out
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics.label_space import LabelSpace
from lora_lightning.runs.files import write_text_atomically
from lora_lightning.runs.tables import Table, read_tsv

HUB_DATASET = "nyu-mll/glue"
LOWEST_SCORE, HIGHEST_SCORE = 0.0, 5.0  # of STS-B


class GlueDataModule(ClassificationDataModule):
    """One task of GLUE, from the hub's `nyu-mll/glue` or from the original download's folders of TSV files.

    MNLI is validated on its matched and its mismatched split (`val_matched/accuracy`, `val_mismatched/accuracy`).
    The labels of the test splits are not public: `predict` writes the files that gluebenchmark.com takes. `test_share`
    holds out training rows to test on, of which scores cannot be compared with published ones.

    Args:
        task_name: Name of the task; `ax`, the diagnostic set, is predicted with a model of `mnli`.
        data_dir: Folder with `CoLA/train.tsv` and so on; without it, the data is read from the hub.
        test_share: Share of the training rows to test on, in (0, 1), the same share of every class; `null` for none.
        split_seed: Seed of the choice of these rows, which are the same for every `seed_everything`.
        allow_partial: Allow files that lack rows of the official data; their scores cannot be compared with others.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation and prediction.
        max_length: Maximum number of tokens per text or pair; longer ones are truncated.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches; 0 is fastest for short texts.
    """

    without_test = "GLUE's test labels are not public; `predict` writes the files for gluebenchmark.com"
    takes_inputs: ClassVar[bool] = False
    predictions_name: ClassVar[str] = "glue_submission"

    def __init__(
        self,
        task_name: Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax"],
        data_dir: str | None = None,
        test_share: float | None = None,
        split_seed: int = 0,
        allow_partial: bool = False,
        backbone: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 128,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            backbone=backbone,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_length=max_length,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        check_hold_out(None, test_share, split_seed)
        self.test_share = test_share
        self.split_seed = split_seed
        self.task_name = task_name
        self.task = GLUE_TASKS[task_name]
        self.data_dir = data_dir
        self.allow_partial = allow_partial
        self.numbers_of_rows: dict[str, list[int]] = {}  # GLUE's own, by split to predict

    @property
    def label_space(self) -> LabelSpace:
        """The task's labels, as the hub calls and orders them."""
        return self.task.label_space

    def setup(self, stage: str) -> None:
        """Opens the splits that a stage needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            DataError: If a split is missing, or the model to predict with was trained for other labels.
        """
        if stage == PREDICT and self.trainer is not None:
            trained: LabelSpace | None = getattr(self.trainer.lightning_module, "label_space", None)
            if trained is not None and trained.names != self.label_space.names:
                msg = (
                    f"the model knows the labels {', '.join(trained.names)}, but {self.task_name} of GLUE has "
                    f"{', '.join(self.label_space.names)}; use a checkpoint that was trained for it."
                )
                raise DataError(msg)
        super().setup(stage)

    def check_splits(self, stage: str) -> None:
        """As in the base; a training file that is missing is named."""
        if stage == "fit" and TRAIN not in self.raw_splits:
            self._read(TRAIN)  # says what is wrong
        super().check_splits(stage)

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the hub, also of its files in a folder."""
        return HUB_DATASET

    def load_splits(self) -> dict[str, LabeledTexts]:
        """Reads the splits with labels; without a training file there is still validation."""
        names = [name for name in self.task.splits if not name.startswith(PREDICT)]
        if not names:
            msg = "ax of GLUE is for prediction only; train on mnli, then predict with --data.task_name ax."
            raise DataError(msg)
        if self.data_dir is not None and not self._path(self.task.splits[TRAIN]).exists():
            names.remove(TRAIN)
        splits = {name: self._labeled(self._read(name)) for name in names}
        if self.test_share is not None:
            return self._with_test(splits, self.test_share)
        warn_about_unused_options(self, ["split_seed"], "data.test_share is not set")
        return splits

    def _with_test(self, splits: dict[str, LabeledTexts], share: float) -> dict[str, LabeledTexts]:
        """Holds out training rows to test on."""
        if TRAIN not in splits:
            self._read(TRAIN)  # says what is wrong
        rows = splits[TRAIN]
        classes: Any = rows.labels if self.task.names else None
        chosen = held_out(len(rows), share, self.split_seed, classes)
        if not chosen.any():
            msg = (
                f"the training data of {self.task_name} has {len(rows)} rows, too few to hold out data.test_share "
                f"{share:g} of them; raise it, or complete the data."
            )
            raise DataError(msg)
        self.held_out_splits.add(TEST)
        splits |= {TRAIN: rows.take(~chosen), TEST: rows.take(chosen)}
        self.warn_about_repeated_texts(splits)
        self.warn_about_shared_texts(splits)
        return splits

    def load_prediction_splits(self) -> dict[str, LabeledTexts]:
        """Reads the test splits."""
        splits = {}
        for name in self.task.splits:
            if name.startswith(PREDICT):
                table = self._read(name)
                self.numbers_of_rows[name] = [int(number) for number in finite_numbers(table, self._column("index"))]
                splits[name] = self._unlabeled(table)
        return splits

    def prediction_inputs(self, split: str) -> list[dict[str, Any]]:
        """GLUE's own number of each row."""
        return [{"index": number} for number in self.numbers_of_rows[split]]

    def check_predictions_file(self, path: Path) -> None:
        """Refuses a file: the submission is a folder of files with names that the server knows."""
        if path.suffix or path.is_file():
            msg = f"--predictions.file is {str(path)!r}, but a GLUE submission is a folder; give one to write files in."
            raise ConfigurationError(msg)

    def write_predictions(self, predictions: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
        """Writes a file for each split, such as `MNLI-m.tsv`, with the server's columns and words.

        Args:
            predictions: Readable rows by split.
            path: The folder; made if needed. Files of other tasks in it stay.

        Raises:
            ConfigurationError: If it cannot be written.
        """
        for split, rows in predictions.items():
            file = path / self.task.splits[split].submission
            lines = ["index\tprediction", *(f"{row['index']}\t{self._word(row)}" for row in rows)]
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_text_atomically(file, "\n".join(lines) + "\n")
            except OSError as error:
                msg = f"{file} cannot be written ({error.strerror}); choose another folder with --predictions.file."
                raise ConfigurationError(msg) from error

    def _word(self, row: Mapping[str, Any]) -> str:
        if not self.task.names:
            return f"{min(max(row['prediction'], LOWEST_SCORE), HIGHEST_SCORE):.3f}"
        return self.task.words[self.task.names.index(row["label"])]

    def _path(self, split: GlueSplit) -> Path:
        return Path(self.data_dir or "").expanduser() / self.task.folder / split.file

    def _column(self, kind: str) -> str:
        if self.data_dir is None:
            return {"label": "label", "index": "idx"}[kind]
        return {"label": self.task.label, "index": self.task.index}[kind]

    @cached_property
    def _hub(self) -> Any:
        remedy = f"without network set --data.data_dir to a folder that holds {self.task.folder}/ of the GLUE download."
        return load_hub_dataset(HUB_DATASET, self.task_name, remedy)

    def _read(self, name: str) -> Table:
        split = self.task.splits[name]
        if self.data_dir is None:
            wanted = "index" if name.startswith(PREDICT) else "label"
            columns = [*self.task.hub_columns, self._column(wanted)]
            table = hub_table(self._hub, f"{HUB_DATASET}, {self.task_name}", split.hub_split, columns)
        else:
            table = self._read_file(split)
        if not len(table):
            msg = f"{table.name} has no rows; download the file again."
            raise DataError(msg)
        if len(table) != split.rows:
            counts = f"{table.name} has {len(table)} rows where GLUE has {split.rows}"
            if not self.allow_partial:
                msg = f"{counts}; download the file again, or set --data.allow_partial true to use it as it is."
                raise DataError(msg)
            rank_zero_warn(f"{counts}; scores on it cannot be compared with published ones.")
        return table

    def _read_file(self, split: GlueSplit) -> Table:
        path = self._path(split)
        if not path.is_file():
            there = ", ".join(sorted(file.name for file in path.parent.glob("*.tsv"))) or "no .tsv files"
            found = f"{path.parent} has {there}. Download the file,"
            if not path.parent.is_dir():
                found = f"there is no folder {path.parent}. Set data_dir to the folder that holds {path.parent.name},"
            msg = (
                f"--data.data_dir: {self.task_name} needs {path}, which does not exist; {found} or set data_dir to "
                "null to read the hub."
            )
            raise DataError(msg)
        return read_tsv(path, split.columns, skip_broken=self.task.flawed)

    def _unlabeled(self, table: Table) -> LabeledTexts:
        columns = self.task.hub_columns if self.data_dir is None else self.task.columns
        texts = [table.texts(column, may_be_empty=self.task.flawed) for column in columns]
        return LabeledTexts(texts[0], None, texts[1] if len(texts) > 1 else None)

    def _labeled(self, table: Table) -> LabeledTexts:
        rows = self._unlabeled(table)
        column = self._column("label")
        if not self.task.names:
            return LabeledTexts(rows.texts, _scores(table, column), rows.pairs)
        words = self.task.names if self.data_dir is None else self.task.words
        labels = [[label] for label in class_labels(table, column)]
        return LabeledTexts(rows.texts, [row[0] for row in class_indices(table, column, labels, words)], rows.pairs)


def _scores(table: Table, column: str) -> list[float]:
    scores = finite_numbers(table, column)
    for row, score in enumerate(scores):
        if not LOWEST_SCORE <= score <= HIGHEST_SCORE:
            msg = (
                f"{table.where(row)}: the {column} {score:g} is not in [{LOWEST_SCORE:g}, {HIGHEST_SCORE:g}], as "
                "STS-B's are; fix it, or download the file again."
            )
            raise DataError(msg)
    return scores
