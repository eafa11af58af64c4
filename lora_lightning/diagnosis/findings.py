"""All that a diagnosis has found so far: from its runs and measurements to verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lightning.datamodules.base import VALIDATION
from lora_lightning.diagnosis.adapter_similarity import AdapterSimilarity
from lora_lightning.diagnosis.advice import Advice, advise
from lora_lightning.diagnosis.base_errors import BaseErrors
from lora_lightning.diagnosis.costs import CostTable, cost_table, note_on_missing_costs, weights_by_rank
from lora_lightning.diagnosis.devices import devices_of_times
from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
from lora_lightning.diagnosis.failure_modes import (
    Evidence,
    FailureMode,
    find_failure_modes,
    unchecked_failure_modes,
    undecided_failure_modes,
)
from lora_lightning.diagnosis.finished_runs import FinishedRun, different_options, finished_runs
from lora_lightning.diagnosis.measuring import BEHAVIOR, ERRORS, MERGES, SENSITIVITY, SIMILARITY, Measurer
from lora_lightning.diagnosis.merge_recovery import MergeRecoveries
from lora_lightning.diagnosis.model_behavior import Behaviors
from lora_lightning.diagnosis.product_dtypes import note_on_products, rounds_inputs
from lora_lightning.diagnosis.proof_runs import BUDGET_SPENT, judge_proof
from lora_lightning.diagnosis.rank_threshold import RankThreshold, find_rank_threshold
from lora_lightning.diagnosis.sensitivity import Sensitivity
from lora_lightning.diagnosis.skip_proof import SkipFinding, reason_not_to_train
from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.diagnosis.task_numbers import TaskNumbers, task_numbers
from lora_lightning.diagnosis.trained_in_full import TrainedInFull, trained_in_full
from lora_lightning.diagnosis.verdicts import DiagnosisVerdict, State, reach_verdicts
from lora_lightning.diagnosis.weight_dtypes import weights_dtype
from lora_lightning.errors import ConfigurationError, TrialsFailed, VerificationError
from lora_lightning.runs.curves import Curve
from lora_lightning.statistics.study_results import Metric, StudyResults
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.study_folder import load_added
from lora_lightning.studies.study_run import budget_note
from lora_lightning.studies.trial_results import collect_results

LOSS = "loss"
WEIGHTS_FILE = "adapter_model.safetensors"
GPU = "cuda"  # where peak memory is what PyTorch allocated, and not that of the process


@dataclass(frozen=True)
class Findings:
    """What a diagnosis has found; `None` where something was not measured.

    Attributes:
        name: Of the diagnosis.
        precisions: The one that is not quantized, and the quantized one.
        rank: The rank at which they are compared closely.
        seeds: Seeds of which both have finished runs at that rank.
        other_seeds: Further seeds of the quantized precision, as far as their runs are finished.
        measured: Titles of the runs on whose base and adapters modules and merges are measured, the one that is not
            quantized first; empty if no seed has both.
        different_options: Options beside `model.quantization` that differ between the precisions, with the values of
            both; `None` if no rank has runs of both.
        metric: The metric that decides.
        ranks: What ranks show.
        similarity: Of adapters.
        trained_in_full: What trains beside the adapters, of a run at the compared rank; `None` if there is none.
        errors: Of the base.
        sensitivity: Of modules.
        behaviors: Of models.
        numbers: What the losses and predictions of the task are.
        merges: Of merge targets.
        skip: Of the list of modules to skip.
        skipped: The modules that the quantized precision skips anyway.
        costs: Of configurations.
        failures: Failure modes.
        verdicts: What is decided.
        advice: When to use which precision.
        notes: What was left out.
        training_seconds: Of all runs, as far as known.
        measuring_seconds: Of everything else.
        unfinished: How many runs of both precisions are left, as a sentence; empty if all have ended.
        rounds_inputs: Whether quantized layers round their inputs, too, as those of 8 bits do.
    """

    name: str
    precisions: tuple[str, str]
    rank: int
    seeds: tuple[int, ...]
    other_seeds: tuple[int, ...]
    measured: tuple[str, ...]
    different_options: Mapping[str, tuple[Any, Any]] | None
    metric: Metric
    ranks: RankThreshold
    similarity: AdapterSimilarity | None
    trained_in_full: TrainedInFull | None
    errors: BaseErrors | None
    sensitivity: Sensitivity | None
    behaviors: Behaviors | None
    numbers: TaskNumbers
    merges: MergeRecoveries | None
    skip: SkipFinding | None
    skipped: tuple[str, ...]
    costs: CostTable
    failures: tuple[FailureMode, ...]
    verdicts: tuple[DiagnosisVerdict, ...]
    advice: Advice
    notes: tuple[str, ...]
    training_seconds: float
    measuring_seconds: float
    unfinished: str = ""
    rounds_inputs: bool = False


def collect_findings(diagnosis: Diagnosis, folder: DiagnosisFolder, study: OpenStudy) -> Findings:
    """Collects what is known so far.

    Args:
        diagnosis: The diagnosis.
        folder: Its folder.
        study: Its study.

    Returns:
        The findings.

    Raises:
        ConfigurationError: If no run of a precision is finished.
        LoraLightningError: If a run or a measurement is damaged, or runs cannot be compared.
    """
    runs = finished_runs(study)
    for precision in diagnosis.precisions:
        if not any(run.precision == precision for run in runs):
            msg = f"no run of the precision {precision!r} in {folder.path} is finished and tested, so that nothing can "
            spent = budget_note(study)
            remedy = f" {spent} Raise budget in the YAML, and run the diagnosis again"
            msg += f"be compared.{remedy}" if spent else "be compared; run the diagnosis first"
            raise ConfigurationError(msg)
    collected = collect_results(study.plan, folder.study, study.tag, study.journal.statuses(study.plan.trials))
    results = collected.results
    ranks = find_rank_threshold(diagnosis, results)
    measured = Measurer(diagnosis, folder, runs, study.tag.partition("/")[2], lambda _: None)
    similarity, errors = measured.known(SIMILARITY, AdapterSimilarity), measured.known(ERRORS, BaseErrors)
    sensitivity, merges = measured.known(SENSITIVITY, Sensitivity), measured.known(MERGES, MergeRecoveries)
    behaviors = measured.known(BEHAVIOR, Behaviors)
    choice = None if sensitivity is None else sensitivity.skip
    why_not = reason_not_to_train(diagnosis, choice, ranks.compared)
    skip: SkipFinding | None = None
    proof_notes: tuple[str, ...] = ()
    if choice is not None and not why_not:
        proof = judge_proof(diagnosis, folder, study, runs, collected, choice)
        skip, why_not, proof_notes = proof.finding, proof.reason, proof.notes
    skipped = tuple(next(run.skipped for run in runs if run.precision == diagnosis.quantized))
    evidence = Evidence(
        ranks,
        similarity,
        errors,
        sensitivity,
        merges,
        utilization=_utilization(diagnosis, results),
        skipped=skipped,
        validation_losses=_validation_losses(measured),
        rounds_inputs=rounds_inputs(_first_run(runs, diagnosis.quantized)),
    )
    failures = find_failure_modes(evidence)
    unchecked, undecided = unchecked_failure_modes(evidence), undecided_failure_modes(evidence)
    lacking = _lacking_note(diagnosis, measured)
    verdicts = reach_verdicts(
        diagnosis, ranks, similarity, merges, skip, failures, unchecked, undecided, why_not, lacking
    )
    different = different_options(diagnosis, runs)
    costs = _costs(diagnosis, results, errors, runs)
    compared = [run for side in measured.sides for run in side.values()]
    in_full = trained_in_full(compared[0]) if compared else None
    return Findings(
        name=study.plan.study.name,
        precisions=diagnosis.precisions,
        rank=diagnosis.rank,
        seeds=tuple(measured.common_seeds),
        other_seeds=tuple(seed for seed in diagnosis.other_seeds if seed in measured.quantized),
        measured=tuple(run.title for run in measured.pair or ()),
        different_options=different,
        metric=results.metric,
        ranks=ranks,
        similarity=similarity,
        trained_in_full=in_full,
        errors=errors,
        sensitivity=sensitivity,
        behaviors=behaviors,
        numbers=task_numbers(runs[0]),
        merges=merges,
        skip=skip,
        skipped=skipped,
        costs=costs,
        failures=failures,
        verdicts=verdicts,
        advice=advise(diagnosis, verdicts, costs, ranks.compared, merges),
        notes=tuple(
            note
            for note in (
                note_on_options(diagnosis.precisions, different) if different else "",
                note_on_products(*(_first_run(runs, precision) for precision in diagnosis.precisions)),
                "" if errors is None else errors.caution,
                "" if errors is None or {*errors.dtypes} == {"float32"} else errors.counted_in,
                lacking,
                "" if in_full is None else in_full.note,
                note_on_missing_costs(costs),
                results.unfinished,
                budget_note(study),
                load_added(folder.path).note,
                *collected.notes,
                *(f"Of the runs with lists of modules to skip: {note}" for note in proof_notes),
                _merge_note(merges),
                _stale_note(measured),
            )
            if note
        ),
        training_seconds=sum(run.record.timings.fit or 0.0 for run in runs),
        measuring_seconds=folder.measured_seconds,
        unfinished=results.unfinished,
        rounds_inputs=evidence.rounds_inputs,
    )


def check_budget_for_lists(findings: Findings, proof: OpenStudy | None) -> None:
    """Raises an error if the budget left no time for the runs with lists of modules to skip, or for some of them.

    Args:
        findings: What a diagnosis found.
        proof: The study of these runs; `None` if it was not started.

    Raises:
        TrialsFailed: Says so.
    """
    note = "" if proof is None else budget_note(proof)
    if any(verdict.sentence == BUDGET_SPENT for verdict in findings.verdicts):
        note = BUDGET_SPENT
    if note:
        reason = f"{note[0].lower()}{note[1:].removesuffix('.')}"
        msg = f"runs with lists of modules have what is left of the budget: {reason}; raise it in the YAML, and repeat "
        msg += "the command"
        raise TrialsFailed(msg)


def check_required(diagnosis: Diagnosis, findings: Findings) -> None:
    """Raises an error if a verdict that the YAML requires is not reached, or rests on a part of the runs.

    Args:
        diagnosis: The diagnosis.
        findings: What it found.

    Raises:
        VerificationError: Names these verdicts.
    """
    if diagnosis.require and findings.unfinished:
        msg = f"the required verdicts ({', '.join(diagnosis.require)}) are not reached while runs are left. "
        msg += f"{findings.unfinished} Run the diagnosis again, which trains them"
        raise VerificationError(msg)
    unmet = [each for each in findings.verdicts if each.name in diagnosis.require and each.state is not State.YES]
    if unmet:
        reasons = (
            f"the required verdict {each.name} is not reached ({each.state}): {each.sentence.rstrip('.')}"
            for each in unmet
        )
        msg = f"{'; '.join(reasons)}."
        raise VerificationError(msg)


def _utilization(diagnosis: Diagnosis, results: StudyResults) -> dict[str, Mapping[int, float]]:
    largest = diagnosis.ranks[-1]
    names = {precision: diagnosis.configuration(precision, largest) for precision in diagnosis.precisions}
    found = {
        precision: results.configuration(name).measurements.get("rank_utilization", {})
        for precision, name in names.items()
    }
    return {precision: shares for precision, shares in found.items() if shares}


def _validation_losses(measured: Measurer) -> dict[str, dict[int, NDArray[np.float64]]]:
    """The curves of both precisions, of the seeds that both have: other seeds have no pair to be read beside.

    Of several validation splits, such as those of MNLI, it is the curve of the first one.
    """
    found: dict[str, dict[int, NDArray[np.float64]]] = {}
    for precision, side in zip(measured.diagnosis.precisions, measured.sides, strict=True):
        curves = {seed: validation_loss(side[seed].record.curves) for seed in measured.common_seeds}
        found[precision] = {
            seed: np.array([curve.steps, curve.values], dtype=np.float64)
            for seed, curve in curves.items()
            if curve is not None
        }
    return found


def validation_loss(curves: Mapping[str, Curve]) -> Curve | None:
    """Finds the validation loss of a run.

    Args:
        curves: Of the run, by tag.

    Returns:
        The curve of the first validation split, such as `val_matched/loss` of MNLI; `None` if none was logged.
    """
    own = [name for name in curves if name.startswith(VALIDATION) and name.partition("/")[2] == LOSS]
    return curves[own[0]] if own else None


def _costs(
    diagnosis: Diagnosis, results: StudyResults, errors: BaseErrors | None, runs: Sequence[FinishedRun]
) -> CostTable:
    bytes_of_numbers = {
        precision: weights_dtype(_first_run(runs, precision)).itemsize for precision in diagnosis.precisions
    }
    weights = weights_by_rank(diagnosis, results, _weight_bytes(diagnosis, errors), bytes_of_numbers)
    on_gpu = all(run.record.device == GPU for run in runs)
    sizes, devices = _adapter_bytes(diagnosis, runs), devices_of_times(runs)
    return cost_table(diagnosis, results, weights, sizes, is_process_memory=not on_gpu, devices=devices)


def _first_run(runs: Sequence[FinishedRun], precision: str) -> FinishedRun:
    return next(run for run in runs if run.precision == precision)


def _weight_bytes(diagnosis: Diagnosis, errors: BaseErrors | None) -> dict[str, float]:
    if errors is None:
        return {}
    sizes = (errors.full_bytes, errors.quantized_bytes)
    return {precision: float(size) for precision, size in zip(diagnosis.precisions, sizes, strict=True)}


def _adapter_bytes(diagnosis: Diagnosis, runs: Sequence[FinishedRun]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        path = (run.record.adapter or Path()) / WEIGHTS_FILE
        if path.is_file():
            sizes = found.setdefault(diagnosis.configuration(run.precision, run.rank), {})
            sizes[run.seed] = float(path.stat().st_size)
    return found


def _stale_note(measured: Measurer) -> str:
    """Names measurements that are of other runs, settings or releases and do not count."""
    inputs = measured.inputs()
    names = (SIMILARITY, ERRORS, SENSITIVITY, MERGES, BEHAVIOR)
    stale = [
        name.replace("_", " ")
        for name in names
        if measured.folder.has_measurement(name)
        and not (name in inputs and measured.folder.is_measured(name, inputs[name]))
    ]
    if not stale:
        return ""
    return (
        f"Measured on other runs, with other settings or by another release, and left out: {', '.join(stale)}; run the "
        "diagnosis again."
    )


def note_on_options(precisions: Sequence[str], different: Mapping[str, tuple[Any, Any]]) -> str:
    """Names the options beside `model.quantization` that differ between the precisions.

    Args:
        precisions: Names of both.
        different: Values of both by option; at least one.

    Returns:
        A sentence.
    """
    full, quantized = precisions
    named = "; ".join(
        f"{name} is {own} for {full} and {other} for {quantized}" for name, (own, other) in different.items()
    )
    return f"The precisions differ in more than model.quantization, so this is compared too: {named}."


def _lacking_note(diagnosis: Diagnosis, measured: Measurer) -> str:
    """Names seeds of the compared rank that are not used."""
    lacking = [seed for seed in diagnosis.seeds if seed not in measured.common_seeds]
    lacking += [seed for seed in diagnosis.other_seeds if seed not in measured.quantized]
    if not lacking:
        return ""
    return f"Seeds that lack a finished run at r = {diagnosis.rank}: {', '.join(map(str, lacking))}."


def _merge_note(merges: MergeRecoveries | None) -> str:
    return "" if merges is None or not merges.note else f"{merges.note[0].upper()}{merges.note[1:]}"
