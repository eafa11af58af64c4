"""`study compare`: one configuration of a study against one of another, paired by seed and test example."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_lightning.errors import ConfigurationError, DataError, few_names, suggest_names
from lora_lightning.runs.record import RunRecord, comparable_fingerprints
from lora_lightning.statistics.analysis import analyze_study, weak_reference_note, wide_margin_note
from lora_lightning.statistics.study_results import ConfigurationResults, StudyResults
from lora_lightning.studies.audit import StudyAudit, unpaired_runs_note
from lora_lightning.studies.costs_of_devices import comparable_costs
from lora_lightning.studies.open_study import OpenStudy, open_study
from lora_lightning.studies.same_inputs import Runs, check_same_rows, note_on_devices, note_on_versions
from lora_lightning.studies.study_run import notes_on_study
from lora_lightning.studies.trial_results import collect_results
from lora_lightning.studies.trial_runs import study_metric


@dataclass(frozen=True)
class Side:
    """A configuration of a study.

    Attributes:
        study: The study.
        results: What the study measured.
        name: The configuration.
        notes: What the study lacks.
        rows: Title and `rows_identity` of each run.
        runs: Those of the configuration.
    """

    study: OpenStudy
    results: StudyResults
    name: str
    notes: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    runs: Runs

    @property
    def title(self) -> str:
        """Study and configuration."""
        return f"{self.results.name}: {self.name}"

    def measured(self) -> ConfigurationResults:
        """What the configuration measured, under its title."""
        return replace(self.results.configuration(self.name), name=self.title)

    def tested_runs(self) -> list[RunRecord]:
        """The runs with a result."""
        return [
            RunRecord.load(self.study.folder.run(trial))
            for trial in self.study.plan.tested
            if trial.configuration == self.name and trial.seed in self.results.configuration(self.name).values
        ]


def compare_studies(
    reference: Path, other: Path, configurations: Sequence[str] | None = None, *, margin: float | None = None
) -> StudyAudit:
    """Compares a configuration of one study with one of another.

    Args:
        reference: Folder of the study whose configuration is the reference.
        other: Folder of the study whose configuration is judged; may be the same folder.
        configurations: Names of both; `None` for the reference of each study, or the winner of a search.
        margin: The largest loss that does not matter; `None` for that of both studies.

    Returns:
        The verdict, and what was left out.

    Raises:
        ConfigurationError: If a folder has no study, a configuration is unknown or has no finished run, or metric or
            margin differ.
        DataError: If the test splits differ.
    """
    names = configurations or (None, None)
    studies = [open_study(path) for path in (reference, other)]
    _check_same_metric(*studies)
    sides = [_read_side(study, name) for study, name in zip(studies, names, strict=True)]
    first, second = sides
    _check_comparable(first, second, margin)
    if first.title == second.title:
        second = replace(second, results=replace(second.results, name=str(other)))
        first = replace(first, results=replace(first.results, name=str(reference)))
    metric = study_metric(first.study.planned, first.study.tag)
    runs = [*first.runs, *second.runs]
    results = StudyResults(
        name=f"{first.results.name} and {second.results.name}",
        metric=metric if margin is None else replace(metric, margin=margin),
        configurations=[first.measured(), second.measured()],
        reference=first.title,
        costs=first.results.costs,
        unfinished=" ".join(filter(None, dict.fromkeys(side.results.unfinished for side in sides))),
    )
    results, note_on_costs = comparable_costs(results, runs)
    notes = (results.unfinished, *first.notes, *second.notes, note_on_versions(runs), note_on_devices(runs))
    analysis = analyze_study(results)
    notes = (*notes, note_on_costs, unpaired_runs_note(results), wide_margin_note(results))
    notes = (*notes, weak_reference_note(results, analysis))
    return StudyAudit(results, analysis, tuple(dict.fromkeys(note for note in notes if note)))


def _check_same_metric(first: OpenStudy, second: OpenStudy) -> None:
    if first.tag != second.tag:
        msg = f"the studies are decided by different metrics, {first.tag} and {second.tag}, which cannot be compared; "
        msg += "run one of them with the objective of the other"
        raise ConfigurationError(msg)
    if first.higher_is_better != second.higher_is_better:
        paths = {study.higher_is_better: study.folder.path for study in (first, second)}
        msg = f"in the study {paths[True]} a higher {first.tag} is better, and in {paths[False]} a lower one, so that "
        msg += "they cannot be compared; repeat one of them with the direction of the other"
        raise ConfigurationError(msg)


def _read_side(study: OpenStudy, name: str | None) -> Side:
    plan, path = study.plan, study.folder.path
    names = [each.name for each in plan.configurations]
    note = ""
    if name is None and plan.study.search is not None:
        name = _winner_of(study, names)
        if name == plan.reference:
            note = f"The winner of the search {plan.study.name} is its reference, {name}."
    name = plan.reference if name is None else name
    if name not in names:
        msg = f"the study {path} has no configuration {name!r}; {suggest_names(name, names)}"
        raise ConfigurationError(msg)
    found = collect_results(plan, study.folder, study.tag, study.journal.statuses(plan.trials))
    if not found.results.configuration(name).values:
        msg = f"no run of {name!r} in the study {path} is finished and tested; run the study first"
        raise ConfigurationError(msg)
    notes = (*filter(None, [note]), *notes_on_study(study, found))
    runs = [(trial, record) for trial, record in found.runs if trial.configuration == name]
    return Side(study, found.results, name, notes, found.rows, runs)


def _winner_of(study: OpenStudy, names: Sequence[str]) -> str:
    """The configuration that a search has found; the reference must not be taken for it."""
    if not study.has_winner:
        msg = f"the search of the study {study.folder.path} has no winner yet; let it end with `study run`, or name "
        msg += f"configurations with --configurations: {few_names(names)}"
        raise ConfigurationError(msg)
    return names[-1]


def _check_comparable(first: Side, second: Side, margin: float | None) -> None:
    if first.title == second.title and first.study.folder.path.resolve() == second.study.folder.path.resolve():
        msg = f"both sides are {first.title!r}; name two configurations with --configurations"
        raise ConfigurationError(msg)
    margins = [side.results.metric.margin for side in (first, second)]
    if margin is None and margins[0] != margins[1]:
        msg = f"the margins of the studies differ ({margins[0]:g} and {margins[1]:g}); choose one with --margin"
        raise ConfigurationError(msg)
    if margin is not None and not 0 < margin < float("inf"):
        msg = f"the margin is {margin:g}, but it must be above 0"
        raise ConfigurationError(msg)
    split, records = first.study.tag.partition("/")[0], [*first.tested_runs(), *second.tested_runs()]
    fingerprint = comparable_fingerprints(records)
    data = {fingerprint(record).get(split, ""): str(record.folder) for record in records}
    if len(data) > 1 or "" in data:
        runs = list(data.values())
        msg = f"the runs {runs[0]} and {runs[-1]} were tested on other rows in the split {split!r}, so that their "
        msg += "difference says nothing about the configurations; repeat one of the studies on the data of the other"
        raise DataError(msg)
    check_same_rows([*first.rows, *second.rows])
