"""From the finished trials of a study to what its analysis takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lora_lightning.analysis.metric_outcomes import metric_outcomes
from lora_lightning.analysis.metric_scale import TableScale, choose_scale
from lora_lightning.datamodules.base import VALIDATION
from lora_lightning.errors import DataError, few_names
from lora_lightning.runs.curves import curve_name
from lora_lightning.runs.record import RunRecord
from lora_lightning.statistics.equal_loss import VALIDATION_LOSS
from lora_lightning.statistics.study_results import ConfigurationResults, StudyResults
from lora_lightning.studies.claim_settings import truncated_name
from lora_lightning.studies.journal import ENDED, TrialStatus
from lora_lightning.studies.learning_rates import tried_rates
from lora_lightning.studies.option_conflicts import varied_options
from lora_lightning.studies.plan import StudyPlan, beside_rank, rank_of
from lora_lightning.studies.run_notes import notes_on_runs
from lora_lightning.studies.same_inputs import (
    Runs,
    check_same_inputs,
    check_same_rows,
    note_on_devices,
    note_on_versions,
    rows_identity,
    selection_on_test,
)
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_measurements import OUTCOMES, read_outcome_rows
from lora_lightning.studies.trial_numbers import trial_numbers
from lora_lightning.studies.trial_runs import study_metric
from lora_lightning.studies.trials import Configuration, Trial
from lora_lightning.studies.truncated_trials import truncated_metric, truncated_outcomes

TRAINING_LOSS = "train/loss"


@dataclass(frozen=True)
class StudyNotes:
    """The results of a study with what they lack.

    Attributes:
        results: The results.
        notes: Sentences on what was left out.
        rows: Title and `rows_identity` of each run.
        runs: The finished and tested runs.
    """

    results: StudyResults
    notes: tuple[str, ...]
    rows: tuple[tuple[str, str], ...] = ()
    runs: Runs = ()


@dataclass
class _Collected:
    """What the trials of one configuration measured, by seed."""

    values: dict[int, float] = field(default_factory=dict)
    outcomes: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    measurements: dict[str, dict[int, float]] = field(default_factory=dict)
    curves: dict[str, dict[int, NDArray[np.float64]]] = field(default_factory=dict)


def collect_results(plan: StudyPlan, folder: StudyFolder, tag: str, statuses: Mapping[str, TrialStatus]) -> StudyNotes:
    """Collects the results of all finished trials.

    Args:
        plan: The study.
        folder: Its folder.
        tag: The metric that decides, with its split.
        statuses: The state of each trial, by id.

    Returns:
        The results, and what they lack.

    Raises:
        LoraLightningError: If a run folder is damaged or gone, or runs had different data or base models.
    """
    reader = _TrialReader(folder, tag, [VALIDATION_LOSS, *(claim.measurement for claim in plan.study.claims)])
    configurations = []
    for configuration in plan.configurations:
        trials = [trial for trial in plan.tested if trial.configuration == configuration.name]
        found = _Collected()
        for trial in trials:
            if statuses[trial.id].state == "finished":
                reader.read(trial, found)
        settings = {axis.name: _setting(axis.name, configuration) for axis in plan.study.axes}
        configurations.append(
            ConfigurationResults(
                configuration.name,
                settings,
                found.values,
                found.outcomes,
                found.measurements,
                found.curves,
                rank=rank_of(configuration),
                tried_rates=_as_stored(tried_rates(plan, configuration.name, statuses), reader.scale),
                beside_rank=beside_rank(plan.study, configuration),
                failed_seeds=tuple(trial.seed for trial in trials if statuses[trial.id].state == "failed"),
            )
        )
    truncated = reader.truncated(plan, statuses)
    check_same_inputs([*reader.runs, *reader.untested(plan, statuses)], reader.split, varied_options(plan.study))
    check_same_rows(reader.rows)
    measured = {name for each in configurations for name in each.measurements}
    results = StudyResults(
        name=plan.study.name,
        metric=study_metric(plan, tag),
        configurations=configurations,
        reference=plan.reference,
        # The first one decides, even if it was not measured; then nothing is said to be cheaper.
        costs=[*plan.study.costs[:1], *(cost for cost in plan.study.costs[1:] if cost in measured)],
        sequence=plan.sequence,
        full_fine_tuning=plan.study.full_fine_tuning,
        unfinished=_unfinished(plan, statuses),
        claims=plan.study.claims,
        truncated=truncated,
    )
    notes: tuple[str, ...] = (
        _failed(plan, statuses),
        _gone(plan, folder, statuses),
        reader.note,
        reader.note_on_truncated,
        note_on_versions(reader.runs),
        note_on_devices(reader.runs),
        *notes_on_runs(reader.runs),
    )
    chosen_on_test = dict.fromkeys(selection_on_test(record.data_fingerprint) for _, record in reader.runs)
    notes = (*notes, *chosen_on_test)
    return StudyNotes(results, tuple(filter(None, notes)), tuple(reader.rows), tuple(reader.runs))


class _TrialReader:
    """Reads run folders.

    Args:
        folder: The study's folder.
        tag: The metric that decides, with its split.
        curves: Names of curves that claims need.
    """

    def __init__(self, folder: StudyFolder, tag: str, curves: Sequence[str] = ()) -> None:
        self.folder, self.tag, self.curves = folder, tag, curves
        self.split, _, self.metric = tag.partition("/")
        self.scale = choose_scale(self.metric, [])
        self.runs: list[tuple[Trial, RunRecord]] = []
        self.rows: list[tuple[str, str]] = []
        self.without_outcomes: list[str] = []
        self.not_finite: list[str] = []

    def load(self, trial: Trial) -> RunRecord:
        """Reads the run of a finished trial."""
        run = self.folder.run(trial)
        if not run.exists():
            msg = f"the folder of the finished run {trial.title!r} is gone ({run}); restore it, or run the study again"
            raise DataError(msg)
        return RunRecord.load(run)

    def read(self, trial: Trial, found: _Collected) -> None:
        """Adds what a finished trial measured."""
        run, seed = self.folder.run(trial), trial.seed
        record = self.load(trial)
        value = record.metric(self.tag)
        self.runs.append((trial, record))
        stored = found.values[seed] = self.scale.stored_value(value)
        rows = read_outcome_rows(run / OUTCOMES, self.split)
        self.rows.append((trial.title, rows_identity(rows)))
        outcomes = metric_outcomes(self.metric, rows, stored)
        if outcomes is None:
            self.without_outcomes.append(trial.title)
        else:
            found.outcomes[seed] = outcomes
        for name, number in trial_numbers(record).items():
            if name != self.tag:
                found.measurements.setdefault(name, {})[seed] = number
        wanted = {curve_name(name): name for name in (TRAINING_LOSS, *self.curves)}  # maybe by a former name
        for name, curve in record.curves.items():
            split, _, metric = name.partition("/")
            if name in wanted or (split.startswith(VALIDATION) and metric == self.metric):
                points = np.array([curve.steps, curve.values], dtype=np.float64)
                found.curves.setdefault(wanted.get(name, name), {})[seed] = points

    def untested(self, plan: StudyPlan, statuses: Mapping[str, TrialStatus]) -> list[tuple[Trial, RunRecord]]:
        """The runs that helped to choose, as far as their folders are there."""
        ended = [trial for trial in plan.trials if statuses[trial.id].state in {"finished", "pruned"}]
        kept = [trial for trial in ended if not trial.is_tested and self.folder.run(trial).exists()]
        return [(trial, self.load(trial)) for trial in kept]

    def truncated(self, plan: StudyPlan, statuses: Mapping[str, TrialStatus]) -> list[ConfigurationResults]:
        """Reads what the trials measured after truncation; what is not finite then is left out."""
        found = []
        for name, ranks in plan.study.truncations.items():
            trials = [trial for trial in plan.tested if trial.configuration == name]
            finished = [trial for trial in trials if statuses[trial.id].state == "finished"]
            ended = [trial for trial in trials if statuses[trial.id].state in {"finished", "failed"}]
            for r in ranks:
                collected = _Collected()
                for trial in finished:
                    self._read_truncated(trial, r, collected)
                title, values = truncated_name(name, r), collected.values
                failed = [trial.seed for trial in ended if trial.seed not in values]
                found.append(ConfigurationResults(title, {}, values, collected.outcomes, failed_seeds=failed))
        return found

    def _read_truncated(self, trial: Trial, r: int, found: _Collected) -> None:
        run, title = self.folder.run(trial), f"{trial.title}, truncated to {r}"
        value = truncated_metric(run, r, self.tag)
        if not math.isfinite(value):
            self.not_finite.append(title)
            return
        stored = found.values[trial.seed] = self.scale.stored_value(value)
        rows = read_outcome_rows(run / truncated_outcomes(r), self.split)
        self.rows.append((title, rows_identity(rows)))
        outcomes = metric_outcomes(self.metric, rows, stored)
        if outcomes is not None:
            found.outcomes[trial.seed] = outcomes

    @property
    def note_on_truncated(self) -> str:
        """What is said about truncated adapters whose metric is undefined; empty if there are none."""
        if not self.not_finite:
            return ""
        return f"{self.metric} is not finite and left out after truncation: {few_names(self.not_finite)}."

    @property
    def note(self) -> str:
        """What is said about runs that can only be compared by seed."""
        if not self.without_outcomes:
            return ""
        count = f"{len(self.without_outcomes)} of {len(self.runs)}"
        if len(self.without_outcomes) == len(self.runs):
            return (
                f"{self.metric} is not known as a mean over test examples here, so runs are compared by seed only, "
                "and intervals do not count the uncertainty of the test set."
            )
        return f"{count} runs have no test examples and are compared by seed only: {few_names(self.without_outcomes)}."


def _as_stored(tried: Mapping[float, Mapping[int, float]], scale: TableScale) -> dict[float, dict[int, float]]:
    return {rate: {seed: scale.stored_value(value) for seed, value in values.items()} for rate, values in tried.items()}


def _setting(axis: str, configuration: Configuration) -> object:
    return configuration.options.get(axis, configuration.labels[axis])


def _unfinished(plan: StudyPlan, statuses: Mapping[str, TrialStatus]) -> str:
    left = plan.size - sum(statuses[trial.id].state in ENDED for trial in plan.trials)
    return f"The report is partial: {left} of {plan.size} trials have not finished." if left else ""


def _failed(plan: StudyPlan, statuses: Mapping[str, TrialStatus]) -> str:
    failed = [trial.title for trial in plan.tested if statuses[trial.id].state == "failed"]
    if not failed:
        return ""
    return (
        f"{len(failed)} of {len(plan.tested)} trials failed and are left out, which favors a configuration whose runs "
        f"failed: {few_names(failed)}."
    )


def _gone(plan: StudyPlan, folder: StudyFolder, statuses: Mapping[str, TrialStatus]) -> str:
    """Says which cells of the table are empty because run folders were deleted; the journal has what they chose."""
    ended = [trial for trial in plan.trials if statuses[trial.id].state in {"finished", "pruned"}]
    gone = [trial.title for trial in ended if not trial.is_tested and not folder.run(trial).exists()]
    if not gone:
        return ""
    count = f"{len(gone)} {'run' if len(gone) == 1 else 'runs'} that helped to choose"
    return f"The folders of {count} are gone, so that their cells in results.csv are empty: {few_names(gone)}."
