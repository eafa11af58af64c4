"""The runs with lists of modules to skip: their part of the budget, whether they compare, and what they lack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
from lora_lightning.diagnosis.finished_runs import FinishedRun, check_comparable
from lora_lightning.diagnosis.sensitivity import SkipChoice
from lora_lightning.diagnosis.skip_proof import SkipFinding, judge_skips, seeds_of_proof
from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.journal import ENDED, TrialStatus
from lora_lightning.studies.open_study import HOUR, OpenStudy, open_study
from lora_lightning.studies.same_inputs import check_same_rows, note_on_versions
from lora_lightning.studies.study_folder import STUDY, load_added
from lora_lightning.studies.trial_results import StudyNotes, collect_results
from lora_lightning.studies.trials import Trial

NOT_STARTED = "The runs with the list have not been started."
BUDGET_SPENT = "The budget of the diagnosis is spent, so no list is trained."


@dataclass(frozen=True)
class Proof:
    """What the runs with lists show so far.

    Attributes:
        finding: The judgement; `None` until all runs have ended and each list has a finished one.
        reason: Why there is no judgement; empty if there is one.
        notes: What the runs lack.
    """

    finding: SkipFinding | None
    reason: str = ""
    notes: tuple[str, ...] = ()


def hours_left(folder: DiagnosisFolder, study: OpenStudy, lists: Sequence[Sequence[str]]) -> float | None:
    """What the diagnosis's own runs, and those with other lists, leave of its budget.

    Args:
        folder: The folder of the diagnosis.
        study: Its study.
        lists: The list and the random ones, whose own runs are not subtracted.

    Returns:
        Hours, at least 0; `None` without a budget.
    """
    budget = study.planned.study.budget
    if budget is None:
        return None
    others = [open_study(path) for path in folder.proofs if path != folder.proof(lists).path]
    spent = sum(sum(each.journal.spent_seconds()) for each in (study, *others))
    return max(0.0, budget - spent / HOUR)


def judge_proof(
    diagnosis: Diagnosis,
    folder: DiagnosisFolder,
    study: OpenStudy,
    runs: Sequence[FinishedRun],
    main: StudyNotes,
    choice: SkipChoice,
) -> Proof:
    """Judges the runs of exactly these lists once all have ended.

    Args:
        diagnosis: The diagnosis.
        folder: Its folder.
        study: Its study.
        runs: The finished runs of both precisions.
        main: Their results.
        choice: The lists.

    Returns:
        The judgement, or why there is none.

    Raises:
        DataError: If a run with a list has other data, another base model or other labels than the others.
    """
    own = folder.proof(choice.lists)
    if diagnosis.proof is None or not (own.path / STUDY).is_file():
        return Proof(None, BUDGET_SPENT if hours_left(folder, study, choice.lists) == 0 else NOT_STARTED)
    opened = open_study(own.path)
    plan = opened.plan
    statuses = opened.journal.statuses(plan.trials)
    collected = collect_results(plan, own, opened.tag, statuses)
    finished = [
        (trial, RunRecord.load(own.run(trial))) for trial in plan.tested if statuses[trial.id].state == "finished"
    ]
    every = [*((run.trial, run.record) for run in runs), *finished]
    check_comparable(every)
    check_same_rows([*main.rows, *collected.rows])
    lists = collected.results.configurations
    versions = note_on_versions(every)  # also if each study has one version
    notes = [note for note in (collected.results.unfinished, load_added(own.path).note, *collected.notes) if note]
    notes += [versions] if versions and versions not in (*notes, *main.notes) else []
    if why := why_not_judged(plan.tested, statuses, is_over_budget=opened.is_over_budget):
        return Proof(None, why, tuple(notes))
    full, quantized = (
        main.results.configuration(diagnosis.configuration(precision, diagnosis.rank))
        for precision in diagnosis.precisions
    )
    if not seeds_of_proof(diagnosis.proof, full, quantized, *lists):
        return Proof(None, "No seed has finished runs of all lists and of both precisions.", tuple(notes))
    found = judge_skips(full, quantized, lists, choice, diagnosis.proof, main.results.metric)
    return Proof(found, "", tuple(notes))


def why_not_judged(trials: Sequence[Trial], statuses: Mapping[str, TrialStatus], *, is_over_budget: bool) -> str:
    """Says why lists cannot be judged yet: runs that have not ended, or a list all of whose runs failed.

    Args:
        trials: The runs with lists.
        statuses: Their states by id.
        is_over_budget: Whether no further run is started.

    Returns:
        Sentences; empty if each list has a finished run and all runs have ended.
    """
    left = sum(statuses[trial.id].state not in ENDED for trial in trials)
    with_result = {trial.configuration for trial in trials if statuses[trial.id].state == "finished"}
    failed = [trial for trial in trials if statuses[trial.id].state == "failed"]
    sentences = []
    if left:
        spent = ", and the budget is spent" if is_over_budget else ""
        sentences.append(f"{left} of {len(trials)} runs with lists have not finished{spent}.")
    if failed and (left or any(trial.configuration not in with_result for trial in failed)):
        sentence = f"{len(failed)} of {len(trials)} runs with lists failed, the first one ({failed[0].title}) because "
        sentences.append(f"{sentence}{statuses[failed[0].id].error.rstrip('.')}.")
    return " ".join(sentences)
