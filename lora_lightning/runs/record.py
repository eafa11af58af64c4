"""`RunRecord`, the only reader of run folders."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from lora_lightning.errors import CheckpointError
from lora_lightning.runs import curves
from lora_lightning.runs.history import DATA, DATA_ROWS, read_json
from lora_lightning.runs.layout import ADAPTER_FOLDER, BEST, CHECKPOINTS, CONFIG, LAST, RUN, SUMMARY, TABLES
from lora_lightning.runs.lock import is_locked
from lora_lightning.runs.settings import flatten

State = Literal["running", "interrupted", "finished", "failed"]


class Timings(NamedTuple):
    """How long a run took, summed over all of its sessions.

    Attributes:
        fit: Seconds of training, including validation; `None` if unknown.
        test: Seconds of the test; `None` if there was none.
    """

    fit: float | None
    test: float | None


NOT_TIMED = Timings(None, None)


@dataclass(frozen=True)
class RunRecord:
    """A training run, read from its folder.

    Attributes:
        folder: The run's.
        state: `running` while a process trains there; `finished` with all results; `failed` after an error, or if the
            trained model failed a check; else `interrupted`, and `fit --resume auto` continues it.
        reason: Why the run failed, was interrupted, or ended before its last epoch; empty if there is nothing to say.
        metrics: By split and name: `record.metrics["val"]["loss"]`, of the best epoch; empty until it is finished.
        monitor: Name of the metric that decided which epoch is the best; `None` if not known.
        trainable_parameters: Number of parameters that were trained; `None` until it is finished.
        total_parameters: Number of parameters in memory, with the frozen ones; `None` until it is finished.
        steps: Optimizer steps; `None` until it is finished.
        timings: Seconds.
        versions: Of Python and packages, by name; of the last session. Empty for runs made before there was `run.json`.
        data_fingerprint: SHA-256 of each split's rows, by split.
        former_data_fingerprint: The same as earlier releases recorded it, which also counted the files' paths. Their
            runs have no other. Compare runs with `comparable_fingerprints`.
        base_model: SHA-256 of the base model's `weights`, `config` and `tokenizer`, and its `commit` on the hub; `None`
            if it was not recorded.
        device: On which it trained, such as `cpu` or `cuda`; of the last session. `None` if it was not recorded.
        device_name: The model of its GPU, such as `NVIDIA H200`; `None` on a CPU, and if it was not recorded.
        continued_from: The adapter in `model.adapter`: its folder or hub id `adapter`, the SHA-256 of its `weights` and
            its `commit` on the hub; `None` for a run that started a new adapter.
        git: `commit` and `changed` of the folder that the run was started in; `None` outside a git repository.
        sessions: Each time a process trained in this folder: `started`, `ended`, `ending`, `reason`, and the hashes
            `data` and `base_model`, which differ between sessions only if the user allowed it.
        not_validated: That training went on after its last validation; empty if it did not.
        scored_rows: By split, on how many rows metrics were computed, such as `8 of 26 rows`; only where a limit of
            batches left some out.
    """

    folder: Path
    state: State
    reason: str = ""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    monitor: str | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    steps: int | None = None
    timings: Timings = NOT_TIMED
    versions: Mapping[str, str] = field(default_factory=dict)
    data_fingerprint: Mapping[str, str] = field(default_factory=dict)
    former_data_fingerprint: Mapping[str, str] = field(default_factory=dict)
    base_model: Mapping[str, str | None] | None = None
    device: str | None = None
    device_name: str | None = None
    continued_from: Mapping[str, str | None] | None = None
    git: Mapping[str, Any] | None = None
    sessions: tuple[Mapping[str, Any], ...] = ()
    not_validated: str = ""
    scored_rows: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> "RunRecord":
        """Reads a run folder, including those of releases that did not write `run.json`.

        Args:
            folder: The folder, such as `lightning_logs/<name>/version_<n>`.

        Returns:
            What is known about the run so far.

        Raises:
            CheckpointError: If the folder is not a run folder.
            UnreadableError: If a newer release wrote it in another format.
        """
        path = Path(folder)
        if not (path / CONFIG).is_file():
            msg = (
                f"{path} is not a run folder, because it has no {CONFIG}; use a folder such as "
                "lightning_logs/quickstart/version_0."
            )
            raise CheckpointError(msg)
        run, summary = read_json(path / RUN), read_json(path / SUMMARY)
        sessions = tuple(run.get("sessions", []))
        state, reason = _state(path, summary, sessions)
        return cls(
            folder=path,
            state=state,
            reason=reason,
            metrics=metrics_by_split(summary.get("metrics", {})),
            not_validated=str(summary.get("not_validated", "")),
            scored_rows=summary.get("scored_rows", {}),
            monitor=summary.get("monitor"),
            trainable_parameters=summary.get("trained_parameters"),
            total_parameters=summary.get("total_parameters"),
            steps=summary.get("steps"),
            timings=Timings(_seconds(sessions, "fit_seconds"), _seconds(sessions, "test_seconds")),
            versions=run.get("versions", {}),
            data_fingerprint=run.get(DATA_ROWS, run.get(DATA, {})),
            former_data_fingerprint=run.get(DATA, {}),
            base_model=run.get("base_model"),
            device=run.get("device"),
            device_name=run.get("device_name"),
            continued_from=run.get("continued_from"),
            git=run.get("git"),
            sessions=sessions,
        )

    @property
    def has_former_hashes(self) -> bool:
        """Whether an earlier release made the run, whose `data_fingerprint` is not comparable with today's."""
        return bool(self.data_fingerprint) and self.data_fingerprint == self.former_data_fingerprint

    @property
    def trainable_share(self) -> float | None:
        """Share of trainable parameters in all parameters, in [0, 1]; `None` until the run is finished."""
        if not self.total_parameters or self.trainable_parameters is None:
            return None
        return self.trainable_parameters / self.total_parameters

    @property
    def flat_metrics(self) -> dict[str, float]:
        """The metrics by tag, such as `val/loss`."""
        return {f"{split}/{name}": value for split, values in self.metrics.items() for name, value in values.items()}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The options in `config.yaml`, nested as in the file."""
        content: dict[str, Any] = yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8")) or {}
        return content

    @cached_property
    def flat_settings(self) -> dict[str, Any]:
        """The options by dotted name, such as `model.init_args.lora.r`."""
        return flatten(self.settings)

    @cached_property
    def curves(self) -> dict[str, curves.Curve]:
        """The logged curves by tag, such as `train/loss`; empty if no logger wrote files."""
        return curves.read_curves(self.folder)

    @cached_property
    def tables(self) -> dict[str, Any]:
        """The monitors' tables (`pyarrow.Table`) by monitor, such as `rank_utilization`."""
        import pyarrow.parquet as pq  # noqa: PLC0415  # takes 0.2 s, and is rarely needed

        return {path.stem: pq.read_table(path) for path in sorted((self.folder / TABLES).glob("*.parquet"))}

    @cached_property
    def evaluations(self) -> dict[str, dict[str, float]]:
        """The metrics that `validate` and `test` wrote later, by command and tag."""
        files = {command: self.folder / f"{command}_metrics.json" for command in ("validate", "test")}
        found = {command: json.loads(path.read_text()) for command, path in files.items() if path.is_file()}
        return {
            command: {tag: value for tag, value in metrics.items() if not isinstance(value, dict)}  # scored_rows
            for command, metrics in found.items()
        }

    @property
    def adapter(self) -> Path | None:
        """The exported adapter, or the transformers folder after full fine-tuning; `None` before the first export."""
        path = self.folder / ADAPTER_FOLDER
        return path if path.is_dir() else None

    @property
    def best_checkpoint(self) -> Path | None:
        """`best.ckpt`; `None` before the first validation, and if none ever ran."""
        path = self.folder / CHECKPOINTS / f"{BEST}.ckpt"
        return path if path.is_file() else None

    @property
    def checkpoint(self) -> Path | None:
        """What is tested and exported: the best checkpoint, or `last.ckpt` without one; `None` before the first."""
        return self.best_checkpoint or self.last_checkpoint

    @property
    def last_checkpoint(self) -> Path | None:
        """`last.ckpt`; `None` before the first."""
        path = self.folder / CHECKPOINTS / LAST
        return path if path.is_file() else None

    def metric(self, name: str) -> float:
        """Returns one metric.

        Args:
            name: A tag such as `test/accuracy`.

        Returns:
            The value.

        Raises:
            KeyError: If the run has no such metric.
        """
        split, _, rest = name.partition("/")
        return self.metrics[split][rest]


def comparable_fingerprints(records: Iterable[RunRecord]) -> Callable[[RunRecord], Mapping[str, str]]:
    """Chooses the hashes by which the data of runs can be compared: those of earlier releases if one of them has these.

    Args:
        records: All runs that are compared.

    Returns:
        What reads the hashes of one of them, by split.
    """
    if any(record.has_former_hashes for record in records):
        return lambda record: record.former_data_fingerprint
    return lambda record: record.data_fingerprint


def _state(folder: Path, summary: Mapping[str, Any], sessions: tuple[Mapping[str, Any], ...]) -> tuple[State, str]:
    last = sessions[-1] if sessions else {}
    if summary:
        failed = summary.get("failed_check")
        return ("failed", str(failed)) if failed else ("finished", str(summary.get("ended_early", "")))
    if is_locked(folder):
        return "running", ""
    if last.get("ending") == "failed":
        return "failed", str(last.get("reason", ""))
    return "interrupted", str(last.get("reason", "the process was killed")) if last else ""


def metrics_by_split(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Groups metrics by split.

    Args:
        metrics: Values by tag: `{"val/loss": 1}`.

    Returns:
        Values by split and name: `{"val": {"loss": 1}}`. Names such as `domain_accuracy/travel` keep their slash.
    """
    found: dict[str, dict[str, float]] = {}
    for tag, value in metrics.items():
        split, _, name = tag.partition("/")
        found.setdefault(split, {})[name] = float(value)
    return found


def _seconds(sessions: tuple[Mapping[str, Any], ...], name: str) -> float | None:
    values = [session[name] for session in sessions if session.get(name) is not None]
    return sum(values) if values else None
