"""Runs a diagnosis: checks it, starts its study, and the study of the list of modules to skip."""

from collections.abc import Callable
from dataclasses import replace

from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
from lora_lightning.diagnosis.finished_runs import check_precisions, finished_runs
from lora_lightning.diagnosis.measuring import SENSITIVITY, Measurer
from lora_lightning.diagnosis.proof_runs import BUDGET_SPENT, hours_left
from lora_lightning.diagnosis.rank_threshold import find_rank_threshold
from lora_lightning.diagnosis.sensitivity import Sensitivity
from lora_lightning.diagnosis.skip_proof import proof_study, reason_not_to_train
from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.errors import TrainingError
from lora_lightning.studies.open_study import OpenStudy, start_study
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.study_run import check_study
from lora_lightning.studies.trial_results import collect_results
from lora_lightning.studies.trial_runs import CheckedStudy
from lora_lightning.studies.trials import Configuration
from lora_lightning.training.user_errors import is_memory_error

Report = Callable[[str], None]


def check_diagnosis(
    diagnosis: Diagnosis, plan: StudyPlan, folder: DiagnosisFolder, progress: Callable[[Configuration], None]
) -> CheckedStudy:
    """Checks a diagnosis before anything is trained.

    Args:
        diagnosis: The diagnosis.
        plan: The plan of its study.
        folder: Its folder, which may not exist.
        progress: Called before each configuration.

    Returns:
        What the check of the study found.

    Raises:
        LoraLightningError: If an option, the data, or the folder does not fit.
    """
    folder.check(diagnosis)  # before the study gains what only another diagnosis has
    checked = check_study(plan, folder.study, progress)
    check_precisions(diagnosis, plan, folder.study)
    return checked


def start_diagnosis(
    diagnosis: Diagnosis, plan: StudyPlan, folder: DiagnosisFolder, checked: CheckedStudy, *, retry_failed: bool
) -> OpenStudy:
    """Creates a diagnosis in its folder, or adds what it has gained since.

    Args:
        diagnosis: The diagnosis.
        plan: The plan of its study, which is checked.
        folder: Its folder.
        checked: What the check found.
        retry_failed: Whether to run failed trials once more.

    Returns:
        Its study.

    Raises:
        ConfigurationError: If the folder has another diagnosis.
        TrainingError: If a file cannot be written.
    """
    folder.check(diagnosis)
    study = start_study(plan, folder.study, checked, retry_failed=retry_failed)
    folder.save(diagnosis)
    return study


def has_both_precisions(diagnosis: Diagnosis, study: OpenStudy) -> bool:
    """Whether each precision has a finished run, without which there is nothing to compare.

    Args:
        diagnosis: The diagnosis.
        study: Its study.
    """
    statuses = study.statuses()
    finished = {trial.configuration for trial in study.plan.tested if statuses[trial.id].state == "finished"}
    return all(
        any(diagnosis.configuration(precision, rank) in finished for rank in diagnosis.ranks)
        for precision in diagnosis.precisions
    )


def measure_runs(diagnosis: Diagnosis, folder: DiagnosisFolder, study: OpenStudy, report: Report) -> None:
    """Measures the finished runs.

    Args:
        diagnosis: The diagnosis.
        folder: Its folder.
        study: Its study.
        report: Is called with a line about each step.

    Raises:
        LoraLightningError: If runs cannot be compared, or something cannot be measured.
    """
    metric = study.tag.partition("/")[2]
    measurer = Measurer(diagnosis, folder, finished_runs(study), metric, report)
    try:
        measurer.measure_all()
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        msg = "there is not enough memory to measure the runs, of which two are open at once; what is finished and "
        msg += "measured is kept. Free memory, or set measure.rows below data.eval_batch_size, so that batches are "
        msg += "smaller, and repeat the command"
        raise TrainingError(msg) from error


def start_proof(
    diagnosis: Diagnosis, folder: DiagnosisFolder, study: OpenStudy, report: Report, *, retry_failed: bool
) -> OpenStudy | None:
    """Starts the study of the list of modules to skip, if there is a loss to buy back.

    Args:
        diagnosis: The diagnosis.
        folder: Its folder, with the measured sensitivity.
        study: Its study.
        report: Is called with why there is nothing to train.
        retry_failed: Whether to run failed trials once more.

    Returns:
        The study; `None` if nothing is to be trained.

    Raises:
        LoraLightningError: If the lists are no options of `fit`, or a file cannot be written.
    """
    metric = study.tag.partition("/")[2]
    runs = finished_runs(study)
    found = Measurer(diagnosis, folder, runs, metric, report).known(SENSITIVITY, Sensitivity)
    choice = None if found is None else found.skip
    if diagnosis.proof is None or choice is None:
        return None
    statuses = study.journal.statuses(study.plan.trials)
    results = collect_results(study.plan, folder.study, study.tag, statuses).results
    if why_not := reason_not_to_train(diagnosis, choice, find_rank_threshold(diagnosis, results).compared):
        report(why_not)
        return None
    own, hours = folder.proof(choice.lists), hours_left(folder, study, choice.lists)
    if hours == 0 and own.path not in folder.proofs:
        report(BUDGET_SPENT)
        return None
    skipped = next(run.skipped for run in runs if run.precision == diagnosis.quantized)
    lists = proof_study(diagnosis, study.planned, choice, diagnosis.proof, skipped)
    plan = plan_study(replace(lists, name=f"{lists.name}-{own.path.name}", budget=hours))
    return start_study(plan, own, check_study(plan, own), retry_failed=retry_failed)
