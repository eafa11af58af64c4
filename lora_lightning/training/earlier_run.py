"""The run whose checkpoint a new run starts from, and whether the scores of the two can be compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lightning.datamodules.base import TEST, AdaptationDataModule
from lora_lightning.runs.history import DATA, DATA_ROWS
from lora_lightning.runs.layout import BEST, CHECKPOINTS, CONFIG, RUN
from lora_lightning.runs.record import RunRecord
from lora_lightning.runs.settings import settings_in
from lora_lightning.training.same_data import recorded_and_current

MONITOR = ("checkpoint.monitor", "checkpoint.mode")
LIMIT = "trainer.limit_val_batches"
# Options of the data that say where its rows are, which their hashes compare, or how they are loaded.
OF_LOADING = ("_file", "_dir", "_name", "_share", "batch_size", "num_workers", "class_path", "backbone")


@dataclass(frozen=True)
class EarlierRun:
    """The run that `--ckpt_path` names a checkpoint of.

    Attributes:
        checkpoint: The file.
        folder: The run folder; `None` if it is not known.
        best: Its best checkpoint when the file was written; `None` if there was none, or if it is gone.
        steps: Optimizer steps of the file.
    """

    checkpoint: Path
    folder: Path | None
    best: Path | None
    steps: int

    @classmethod
    def of(cls, path: str, content: Mapping[str, Any]) -> "EarlierRun":
        """Finds the run of a checkpoint, which may have been copied or moved with its run.

        Args:
            path: The checkpoint.
            content: What it holds, from `read_checkpoint`.
        """
        states = content.get("callbacks")
        state = states.get("AdapterCheckpoint") if isinstance(states, Mapping) else None
        named = str(state.get("best_model_path") or "") if isinstance(state, Mapping) else ""
        here = Path(path).absolute()
        files = [Path(named), here.with_name(f"{BEST}.ckpt")] if named else []
        best = next((file for file in files if file.is_file()), None)
        folders = [file.absolute().parent.parent for file in (here, *files) if file.parent.name == CHECKPOINTS]
        known = (folder for folder in folders if (folder / RUN).is_file() and (folder / CONFIG).is_file())
        return cls(here, next(known, None), best, int(content.get("global_step", 0)))

    def why_not_comparable(self, settings: str, data: AdaptationDataModule) -> str:
        """Why validations of this run say nothing about those of a new one.

        Args:
            settings: The new run's options as YAML.
            data: Its data.

        Returns:
            In words, after "because"; empty if both ask the same of the same rows.
        """
        if self.folder is None:
            return f"the run of {self.checkpoint} is not here, so that nobody knows its data"
        there, here = settings_in((self.folder / CONFIG).read_text(encoding="utf-8")), settings_in(settings)
        for name in (*MONITOR, LIMIT):
            if _full(there.get(name)) != _full(here.get(name)):
                return f"{name} is {here.get(name)} here and {there.get(name)} there"
        run = RunRecord.load(self.folder)
        if not run.data_fingerprint:
            return f"the release that made {self.folder} did not record its data"
        if changed := _changed_splits(run, data):
            return f"there are other rows in the split {', '.join(changed)}"
        for name in sorted(there.keys() & here.keys()):
            limited = _full(here.get(LIMIT)) != _full(None) and name.endswith("eval_batch_size")
            if name.startswith("data.") and (limited or not name.endswith(OF_LOADING)) and there[name] != here[name]:
                return f"{name} is {here[name]} here and {there[name]} there"
        return ""


def _full(limit: Any) -> str:
    """Text, in which one batch (1) differs from all batches (1.0, or none given)."""
    return str(1.0 if limit is None else limit)


def _changed_splits(run: RunRecord, data: AdaptationDataModule) -> list[str]:
    """The splits of training and validation that differ from those of any session of a run."""
    pairs = [recorded_and_current(run, data)]
    for session in run.sessions:
        if DATA_ROWS in session:
            pairs.append((session[DATA_ROWS], data.fingerprint))
        elif session.get(DATA):  # of an earlier release
            pairs.append((session[DATA], data.former_fingerprint))
    names = dict.fromkeys(name for seen, now in pairs for name in (*now, *seen) if not name.startswith(TEST))
    return [name for name in names if any(seen.get(name) != now.get(name) for seen, now in pairs)]
