"""Checks a study before it runs, and judges what its runs have shown."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.errors import ConfigurationError, TrialsFailed
from lora_lightning.runs.files import save_text
from lora_lightning.runs.layout import CONFIG
from lora_lightning.statistics.analysis import (
    analyze_study,
    better_than_recommended_note,
    weak_reference_note,
    wide_margin_note,
)
from lora_lightning.statistics.recommendation import recommend_winner
from lora_lightning.studies.audit import StudyAudit
from lora_lightning.studies.costs_of_devices import comparable_costs
from lora_lightning.studies.learning_rates import notes_on_rates
from lora_lightning.studies.open_study import OpenStudy, check_additions
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.search import notes_on_search
from lora_lightning.studies.storage import check_storage_answers
from lora_lightning.studies.study_folder import RECOMMENDED, StudyFolder, base_contents, load_added
from lora_lightning.studies.time_limits import note_on_time_limits
from lora_lightning.studies.trial_results import StudyNotes, collect_results
from lora_lightning.studies.trial_runs import CheckedStudy, check_configurations
from lora_lightning.studies.trials import Configuration

PLACE_OF_LOGGER = {"save_dir", "name", "version", "default_hp_metric"}  # that of a run is in the study's folder


def check_study(
    plan: StudyPlan, folder: StudyFolder, progress: Callable[[Configuration], None] = lambda _: None
) -> CheckedStudy:
    """Checks a study before anything is trained; first against the study that its folder has.

    Args:
        plan: The study.
        folder: Its folder, which may not exist.
        progress: Called before each configuration.

    Returns:
        What the check found.

    Raises:
        LoraLightningError: If an option, the data, the folder or the storage does not fit.
    """
    check_additions(plan, folder)
    if plan.study.storage is not None:
        check_storage_answers(plan.study.storage)
    warn_about_loggers(plan)
    if note := note_on_time_limits(plan.study):
        rank_zero_warn(note)
    return check_configurations(plan, folder, progress)


def warn_about_loggers(plan: StudyPlan) -> None:
    """Warns of loggers of the base configs that a study replaces by its own.

    Args:
        plan: The study.
    """
    loggers = [(config.get("trainer") or {}).get("logger") for config in base_contents(plan.study)]
    entries = [entry for logger in loggers for entry in (logger if isinstance(logger, list) else [logger])]
    paths = [entry.get("class_path") if isinstance(entry, dict) else entry for entry in entries]
    names = {path.rpartition(".")[2] for path in paths if isinstance(path, str)}
    own = [entry.get("init_args") for entry in entries if isinstance(entry, dict)]
    if left_out := sorted({name for each in own if isinstance(each, dict) for name in each} - PLACE_OF_LOGGER):
        rank_zero_warn(
            f"the base config sets {', '.join(left_out)} of its logger, which a study leaves out: it logs each run in "
            "the same way, in its folder"
        )
    if replaced := sorted(names - {"TensorBoardLogger"}):
        rank_zero_warn(
            f"the base config logs with {', '.join(replaced)}, but a study logs each run with TensorBoardLogger in its "
            "folder; nothing is sent elsewhere"
        )


def judge_study(study: OpenStudy) -> StudyAudit:
    """Analyzes the finished trials of a study.

    Args:
        study: The study.

    Returns:
        The verdicts, and what was left out.

    Raises:
        ConfigurationError: If no trial is finished.
        LoraLightningError: If a run folder is damaged.
    """
    plan = study.plan
    statuses = study.journal.statuses(plan.trials)
    if not any(statuses[trial.id].state == "finished" for trial in plan.tested):
        msg = f"none of the {plan.size} trials of {study.folder.path} is finished and tested"
        reason = _budget_reason(study)
        msg += f", because {reason}; raise it, and run the study again" if reason else "; run the study first"
        raise ConfigurationError(msg)
    found = collect_results(plan, study.folder, study.tag, statuses)
    results, note_on_costs = comparable_costs(found.results, found.runs)
    notes = (results.unfinished, *notes_on_study(study, found), note_on_costs, wide_margin_note(results))
    analysis = analyze_study(results)
    if plan.study.search is None:
        further = (weak_reference_note, better_than_recommended_note)
        notes = (*notes, *(note(results, analysis) for note in further))
    else:
        analysis = replace(analysis, recommendation=recommend_winner(results, analysis))
    return StudyAudit(results, analysis, tuple(note for note in notes if note))


def notes_on_study(study: OpenStudy, found: StudyNotes) -> tuple[str, ...]:
    """Says what has to be known of a study to judge its results, whether in its report or beside another study.

    Args:
        study: The study.
        found: What was collected from it.

    Returns:
        Sentences.
    """
    plan = study.plan
    notes = (
        budget_note(study),
        load_added(study.folder.path).note,
        *found.notes,
        note_on_time_limits(study.planned.study),
        *notes_on_rates(plan, study.rates(), study.journal.statuses(plan.trials)),
        *_search_notes(study),
    )
    return tuple(filter(None, notes))


def budget_note(study: OpenStudy) -> str:
    """Says that the budget left something out; empty if it did not."""
    budget, plan = study.planned.study.budget, study.plan
    if budget is None:
        return ""
    untried, is_spent = study.runs_not_tried, study.is_over_budget
    waiting = sum(status.state == "waiting" for status in study.journal.statuses(plan.trials).values())
    left_out = untried + (waiting + plan.size - len(plan.trials) if is_spent else 0)
    if not left_out:
        return ""
    why = "is spent" if is_spent else "has ended the search, to leave time for the tested runs"
    return f"The budget of {budget:g} hours {why}, so that {left_out} of {plan.size + untried} runs were not started."


def check_budget_sufficed(study: OpenStudy) -> None:
    """Raises an error if the budget left something out.

    Args:
        study: The study.

    Raises:
        TrialsFailed: Says how much.
    """
    if reason := _budget_reason(study):
        msg = f"{reason}; to train them, raise `budget` in the study's YAML, and repeat `study run`"
        raise TrialsFailed(msg)


def _budget_reason(study: OpenStudy) -> str:
    """The note on the budget inside of a sentence."""
    note = budget_note(study)
    return f"{note[:1].lower()}{note[1:].removesuffix('.')}"


def _search_notes(study: OpenStudy) -> list[str]:
    search = study.planned.study.search
    if search is None:
        return []
    return notes_on_search(
        study.planned.study, study.journal.search_runs(), study.validation_tag, study.higher_is_better
    )


def write_recommendation(study: OpenStudy, audit: StudyAudit) -> Path | None:
    """Writes the config of the recommended configuration, which `fit` trains as it is.

    Args:
        study: The study.
        audit: Its verdicts.

    Returns:
        The file; `None` if nothing is recommended, or the recommended configuration has no finished run.

    Raises:
        TrainingError: If the file cannot be written.
    """
    name = audit.analysis.recommendation.name
    path = study.folder.path / RECOMMENDED
    if name is None:
        path.unlink(missing_ok=True)  # what an earlier report recommended
        return None
    trials = [trial for trial in study.plan.tested if trial.configuration == name]
    finished = [trial for trial in trials if trial.seed in audit.results.configuration(name).values]
    if not finished:
        return None
    text = (study.folder.run(finished[0]) / CONFIG).read_text(encoding="utf-8")
    config = _as_own_run(yaml.safe_load(text), study.plan.study.name)
    head = f"# {name}: recommended by the study {study.plan.study.name}\n"
    return save_text(path, head + yaml.safe_dump(config, sort_keys=False))


def _as_own_run(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Moves the config of a trial out of the study's folder."""
    trainer = {key: value for key, value in config["trainer"].items() if key != "enable_progress_bar"}
    logger = trainer["logger"] if isinstance(trainer["logger"], dict) else trainer["logger"][0]
    own = {"save_dir": "lightning_logs", "name": f"{name}_recommended", "version": None}
    trainer["logger"] = {**logger, "init_args": {**logger["init_args"], **own}}
    return {**config, "trainer": trainer}
