"""Runs are comparable only if they had the same test rows, and repeated runs only if nothing but the seed differs."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lightning.datamodules.base import TEST, VALIDATION
from lora_lightning.errors import DataError
from lora_lightning.runs.devices import device_names
from lora_lightning.runs.record import RunRecord, comparable_fingerprints
from lora_lightning.runs.settings import NOT_SET
from lora_lightning.studies.option_conflicts import parts_of
from lora_lightning.studies.trials import Trial

# Options that decide on the rows, on the base model, and on the adapter that is continued.
DATA = ("data",)
BASE = ("model.backbone", "model.revision", "model.quantization", "model.class_path")
ADAPTER = (*BASE, "model.adapter")
REMEDY = "delete the folders of the runs that no longer count, and run the study again"
Runs = Sequence[tuple[Trial, RunRecord]]
Fact = Callable[[RunRecord], Any]


def check_same_inputs(runs: Runs, split: str, varied: Collection[str] = ()) -> None:
    """Refuses to compare runs if their data, their base model or the adapter in `model.adapter` changed between them.

    Configurations may differ in these only if the study varies an option of theirs; those with the same values of these
    options must have had the same.

    Args:
        runs: The ended runs of a study, also those that help to choose and are not tested.
        split: The test split that decides.
        varied: The options that axes and derived values of the study set.

    Raises:
        DataError: If two runs were tested on different rows, or trained on different rows or from different weights, be
            it of the base model or of the adapter in `model.adapter`, although the study does not vary them.
    """
    fingerprint = comparable_fingerprints(record for _, record in runs)

    def rows_of(name: str) -> Fact:
        """Runs that are not tested may not have all splits."""
        return lambda record: fingerprint(record).get(name)

    compare_facts(runs, {f"tested on other rows of {split}": rows_of(split)})
    splits = dict.fromkeys(name for _, record in runs for name in record.data_fingerprint)
    data: dict[str, Fact] = {f"given other rows of {name}": rows_of(name) for name in splits}
    base: dict[str, Fact] = {"trained from another base model": base_identity}
    adapter: dict[str, Fact] = {
        "continued from another adapter": lambda record: (record.continued_from or {}).get("weights")
    }
    for options, facts in ((DATA, data), (BASE, base), (ADAPTER, adapter)):
        own = [option for option in varied if _concerns(option, options)]
        groups: dict[str, list[tuple[Trial, RunRecord]]] = {}
        for trial, record in runs:
            values = {option: trial.options.get(option, NOT_SET) for option in own}
            groups.setdefault(json.dumps(values, default=str), []).append((trial, record))
        for group in groups.values():
            compare_facts(group, facts)


def _concerns(option: str, others: Collection[str]) -> bool:
    """Whether an option is one of others, inside of one, or around one."""
    pairs = ((parts_of(option), parts_of(other)) for other in others)
    return any(all(one == two for one, two in zip(parts, own, strict=False)) for parts, own in pairs)


def selection_on_test(fingerprint: Mapping[str, str]) -> str:
    """Says that test rows are those on which epochs and thresholds are chosen, as for SQuAD without held-out articles.

    Args:
        fingerprint: Hash of the rows of each split.

    Returns:
        A sentence; empty if there are no such rows.
    """
    chosen_on = {rows: split for split, rows in fingerprint.items() if split.startswith(VALIDATION)}
    for split, rows in fingerprint.items():
        if split.startswith(TEST) and rows in chosen_on:
            return (
                f"The rows of {split} are those of {chosen_on[rows]}, on which epochs and thresholds are chosen, so "
                "that the study's results are too good; give other test rows, or set data.test_share."
            )
    return ""


def rows_identity(rows: Mapping[str, NDArray[Any]]) -> str:
    """Identifies which test examples a run has outcomes of, and with how many tokens each.

    Args:
        rows: The columns `index` and `weight` of its outcomes; other columns do not count.

    Returns:
        SHA-256 as hexadecimal digits; empty without rows.
    """
    columns = [rows[name].astype(np.float64).tobytes() for name in ("index", "weight") if name in rows]
    return hashlib.sha256(b"".join(columns)).hexdigest() if columns else ""


def check_same_rows(identities: Sequence[tuple[str, str]]) -> None:
    """Refuses to compare runs that were tested on different parts of the same data.

    Args:
        identities: Title and `rows_identity` of each run.

    Raises:
        DataError: If two of them differ, for example because a batch limit left out other rows, a shorter context cut
            other records, or another tokenizer made other tokens.
    """
    known = [(title, found) for title, found in identities if found]
    for title, found in known[1:]:
        if found != known[0][1]:
            msg = f"the outcomes of {title!r} are of other test examples or tokens than those of {known[0][0]!r}, so "
            msg += "they cannot be compared. Test all rows (trainer.limit_test_batches), choose lengths that cut no "
            msg += "test record, and compare language models with the same tokenizer"
            raise DataError(msg)


def compare_facts(runs: Runs, facts: Mapping[str, Fact]) -> None:
    """Refuses to compare runs that differ in a fact.

    Args:
        runs: Finished runs.
        facts: By what a run was that had another one, such as "trained from another base model"; runs without a fact
            are not compared.

    Raises:
        DataError: Names two runs.
    """
    for what, fact in facts.items():
        known = [(trial, fact(record)) for trial, record in runs if fact(record)]
        for trial, found in known[1:]:
            if found != known[0][1]:
                msg = f"the run {trial.title!r} was {what} than {known[0][0].title!r}, so they cannot be compared; "
                msg += REMEDY
                raise DataError(msg)


def base_identity(record: RunRecord) -> dict[str, str | None]:
    """The content of a run's base model, without the commit under which a hub has it; empty if it is not known."""
    return {name: found for name, found in (record.base_model or {}).items() if name != "commit"}


def note_on_versions(runs: Runs) -> str:
    """Says which versions of packages differ between runs; empty if none do.

    Args:
        runs: The finished runs of a study.
    """
    names = sorted({name for _, record in runs for name in record.versions})
    seen = {name: sorted({record.versions[name] for _, record in runs if name in record.versions}) for name in names}
    several = [f"{name} ({', '.join(versions)})" for name, versions in seen.items() if len(versions) > 1]
    return f"The runs used different versions of {'; '.join(several)}." if several else ""


def note_on_devices(runs: Runs) -> str:
    """Says that runs were trained on several devices; empty if they were not.

    Args:
        runs: The finished runs of a study.
    """
    names = device_names((record.device, record.device_name) for _, record in runs)
    if len(names) < 2:  # noqa: PLR2004  # several
        return ""
    return (
        f"Runs were trained on different devices ({', '.join(names)}), which round differently; times and memory of "
        "runs on different ones cannot be compared."
    )
