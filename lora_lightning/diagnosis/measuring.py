"""Measures everything on the finished runs of a diagnosis; what was measured on the same runs before is kept."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from lora_lightning.artefacts.saved_updates import saved_updates
from lora_lightning.diagnosis.adapter_similarity import Adapter, AdapterSimilarity, PairKind, compare_adapters
from lora_lightning.diagnosis.base_errors import BaseErrors, measure_base_errors
from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.diagnosis.merge_recovery import MergeRecoveries, measure_merges
from lora_lightning.diagnosis.model_behavior import Behaviors, Observed, PairBehavior, compare_behavior, observe
from lora_lightning.diagnosis.opened_runs import OpenedRuns
from lora_lightning.diagnosis.sensitivity import Sensitivity, measure_sensitivity
from lora_lightning.diagnosis.specification import Diagnosis

SIMILARITY, ERRORS, SENSITIVITY = "adapter_similarity", "base_errors", "sensitivity"
BEHAVIOR, MERGES = "model_behavior", "merge_recovery"
FEWEST_ADAPTERS = 2

Report = Callable[[str], None]


class Measurer:
    """Measures the runs at the compared rank.

    Args:
        diagnosis: The diagnosis.
        folder: Its folder, where results are kept.
        runs: All finished runs.
        metric: The metric that decides, without a split.
        report: Is called with a line about each step.
    """

    def __init__(
        self, diagnosis: Diagnosis, folder: DiagnosisFolder, runs: Sequence[FinishedRun], metric: str, report: Report
    ) -> None:
        self.diagnosis, self.folder, self.metric, self.report = diagnosis, folder, metric, report
        own = [run for run in runs if run.rank == diagnosis.rank]
        self.full = {run.seed: run for run in own if run.precision == diagnosis.full}
        self.quantized = {run.seed: run for run in own if run.precision == diagnosis.quantized}
        self.opened = OpenedRuns(diagnosis.measuring.rows)

    @property
    def common_seeds(self) -> list[int]:
        """The seeds with finished runs of both precisions, in the order of the diagnosis."""
        return [seed for seed in self.diagnosis.seeds if seed in self.full and seed in self.quantized]

    def measure_all(self) -> None:
        """Measures what the finished runs allow.

        Raises:
            LoraLightningError: If a run's data or base is not there any more, or a file cannot be written.
        """
        runs = [*self.full.values(), *self.quantized.values()]
        if len(runs) >= FEWEST_ADAPTERS and self.full and self.quantized:
            inputs = {"runs": [run.identity for run in runs], "other": self.diagnosis.other_seeds}
            self.folder.measure(SIMILARITY, AdapterSimilarity, inputs, lambda: self._similarity(runs))
        if not self.common_seeds:
            return
        full, quantized = (side[self.common_seeds[0]] for side in (self.full, self.quantized))
        pair: dict[str, Any] = {"runs": [full.identity, quantized.identity]}
        rows = {**pair, "rows": self.diagnosis.measuring.rows, "metric": self.metric}
        errors = self.folder.measure(ERRORS, BaseErrors, pair, lambda: self._errors(full, quantized))
        everything = {**rows, **asdict(self.diagnosis.measuring)}
        proof = None if self.diagnosis.proof is None else asdict(self.diagnosis.proof)
        self.folder.measure(
            SENSITIVITY,
            Sensitivity,
            {**everything, "proof": proof},
            lambda: self._sensitivity(full, quantized, errors),
        )
        self.folder.measure(MERGES, MergeRecoveries, rows, lambda: self._merges(quantized))
        pairs = [run.identity for seed in self.common_seeds for run in (self.full[seed], self.quantized[seed])]
        self.folder.measure(BEHAVIOR, Behaviors, {**everything, "runs": pairs}, self._behavior)

    def _similarity(self, runs: Sequence[FinishedRun]) -> AdapterSimilarity:
        self.report(f"comparing the updates of {len(runs)} adapters")
        adapters = [
            Adapter(
                run.title,
                run.precision == self.diagnosis.quantized,
                run.seed,
                {update.module: update for update in saved_updates(run.record.adapter or run.record.folder)},
            )
            for run in runs
        ]
        return compare_adapters(adapters, self.diagnosis.seeds, self.diagnosis.other_seeds)

    def _errors(self, full: FinishedRun, quantized: FinishedRun) -> BaseErrors:
        self.report("measuring the error of each quantized layer")
        return measure_base_errors(self.opened.open(full), self.opened.open(quantized))

    def _sensitivity(self, full: FinishedRun, quantized: FinishedRun, errors: BaseErrors) -> Sensitivity:
        diagnosis = self.diagnosis
        self.report("scoring all modules in one backward pass")
        opened = self.opened.open(full), self.opened.open(quantized)
        return measure_sensitivity(*opened, self.metric, diagnosis.measuring, errors, diagnosis.proof, self.report)

    def _merges(self, quantized: FinishedRun) -> MergeRecoveries:
        self.report(f"merging {quantized.title} in memory")
        return measure_merges(self.opened.open(quantized))

    def _behavior(self) -> Behaviors:
        self.report(f"comparing the predictions of {2 * len(self.common_seeds)} runs")
        pairs: list[PairBehavior] = []
        former: Observed | None = None
        examples = 0
        for seed in self.common_seeds:
            full, quantized = (
                observe(self.opened.open(side[seed]), self.diagnosis.measuring) for side in (self.full, self.quantized)
            )
            pairs.append(compare_behavior(full, quantized, PairKind.PRECISION))
            if former is not None:
                pairs.append(compare_behavior(former, full, PairKind.SEED))
            former, examples = full, len(next(iter(full.rows.values()), []))
        return Behaviors(examples, tuple(pairs))
