"""Measures everything on the finished runs of a diagnosis; what was measured on the same runs before is kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lora_lightning.artefacts.saved_updates import saved_updates
from lora_lightning.diagnosis.adapter_similarity import Adapter, AdapterSimilarity, PairKind, compare_adapters
from lora_lightning.diagnosis.base_errors import BaseErrors, Updates, measure_base_errors
from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.diagnosis.merge_recovery import MergeRecoveries, measure_merges
from lora_lightning.diagnosis.model_behavior import Behaviors, Observed, PairBehavior, compare_behavior, observe
from lora_lightning.diagnosis.opened_runs import OpenedRuns
from lora_lightning.diagnosis.sensitivity import Sensitivity, measure_sensitivity
from lora_lightning.diagnosis.specification import Diagnosis, SkipProof
from lora_lightning.diagnosis.weight_dtypes import dtype_name, weights_dtype

SIMILARITY, ERRORS, SENSITIVITY = "adapter_similarity", "base_errors", "sensitivity"
BEHAVIOR, MERGES = "model_behavior", "merge_recovery"

Report = Callable[[str], None]
Kind = TypeVar("Kind")


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
        pair = self.pair
        self.opened = OpenedRuns(diagnosis.measuring.rows, pair[0] if pair else None)

    @property
    def sides(self) -> tuple[Mapping[int, FinishedRun], Mapping[int, FinishedRun]]:
        """The finished runs at the compared rank by seed, without quantization and with it."""
        return self.full, self.quantized

    @property
    def common_seeds(self) -> list[int]:
        """The seeds with finished runs of both precisions, ascending: their order in the YAML decides nothing."""
        return sorted(seed for seed in self.diagnosis.seeds if seed in self.full and seed in self.quantized)

    @property
    def pair(self) -> tuple[FinishedRun, FinishedRun] | None:
        """The runs on which modules, errors and merges are measured; `None` if no seed has both.

        Those with the least seed, unless modules were measured on another pair before: with the effects of another one,
        other modules would be chosen, and all runs with lists would train anew.
        """
        pairs = [(self.full[seed], self.quantized[seed]) for seed in self.common_seeds]
        measured = (pair for pair in pairs if self.folder.is_measured(SENSITIVITY, self._sensitivity_inputs(pair)))
        return next(measured, next(iter(pairs), None))

    @property
    def other_quantized(self) -> list[FinishedRun]:
        """The finished runs of the quantized precision with seeds of their own, ascending."""
        return [self.quantized[seed] for seed in sorted(self.diagnosis.other_seeds) if seed in self.quantized]

    def inputs(self) -> dict[str, dict[str, Any]]:
        """What each measurement depends on, by its name; only those that the finished runs allow.

        Nothing else: measured again, rounding could choose other modules to skip, whose runs would all train again.
        """
        found: dict[str, dict[str, Any]] = {}
        if self.full and self.quantized:
            runs = [run.identity for run in (*self.full.values(), *self.quantized.values())]
            seeds, others = (sorted(each) for each in (self.diagnosis.seeds, self.diagnosis.other_seeds))
            found[SIMILARITY] = {"runs": runs, "seeds": seeds, "other": others}
        if (both := self.pair) is None:
            return found
        pairs = [run.identity for seed in self.common_seeds for run in (self.full[seed], self.quantized[seed])]
        pair: dict[str, Any] = {"runs": [run.identity for run in both]}
        measuring = self.diagnosis.measuring
        rows = {**pair, "rows": measuring.rows}
        completions = {"prompts": measuring.prompts, "new_tokens": measuring.new_tokens}
        return found | {
            ERRORS: {
                **pair,
                **_dtypes_of(both),
                "adapters": [run.identity for run in (*self.full.values(), *self.quantized.values())],
            },
            SENSITIVITY: self._sensitivity_inputs(both),
            MERGES: rows,
            BEHAVIOR: {**rows, **completions, "runs": [*pairs, *(run.identity for run in self.other_quantized)]},
        }

    def _sensitivity_inputs(self, pair: tuple[FinishedRun, FinishedRun]) -> dict[str, Any]:
        measuring, budget = self.diagnosis.measuring, self._budget
        lists = {"more_bytes": budget.more_bytes, "random_lists": budget.random_lists}
        settings = {"rows": measuring.rows, "singles": measuring.singles, "metric": self.metric}
        return {"runs": [run.identity for run in pair], **_dtypes_of(pair), **settings, **lists}

    @property
    def _budget(self) -> SkipProof:
        """Of the list of modules to skip, which costs nothing once effects are measured, also without a proof."""
        return self.diagnosis.proof or SkipProof()

    def known(self, name: str, kind: type[Kind]) -> Kind | None:
        """What was measured on the finished runs; `None` if it was not, or on other runs or with other settings."""
        inputs = self.inputs().get(name)
        return None if inputs is None else self.folder.stored(name, kind, inputs)

    def measure_all(self) -> None:
        """Measures what the finished runs allow.

        Raises:
            LoraLightningError: If a run's data or base is not there any more, or a file cannot be written.
        """
        inputs = self.inputs()
        if SIMILARITY in inputs:
            runs = [*self.full.values(), *self.quantized.values()]
            self.folder.measure(SIMILARITY, AdapterSimilarity, inputs[SIMILARITY], lambda: self._similarity(runs))
        if (pair := self.pair) is None:
            return
        full, quantized = pair
        errors = self.folder.measure(ERRORS, BaseErrors, inputs[ERRORS], lambda: self._errors(full, quantized))
        self.folder.measure(
            SENSITIVITY, Sensitivity, inputs[SENSITIVITY], lambda: self._sensitivity(full, quantized, errors)
        )
        self.folder.measure(MERGES, MergeRecoveries, inputs[MERGES], lambda: self._merges(quantized))
        self.folder.measure(BEHAVIOR, Behaviors, inputs[BEHAVIOR], self._behavior)

    def _similarity(self, runs: Sequence[FinishedRun]) -> AdapterSimilarity:
        self.report(f"comparing the updates of {len(runs)} adapters")
        adapters = [
            Adapter(
                run.title,
                run.precision == self.diagnosis.quantized,
                run.seed,
                _updates_of(run),
            )
            for run in runs
        ]
        return compare_adapters(adapters, self.diagnosis.seeds, self.diagnosis.other_seeds)

    def _errors(self, full: FinishedRun, quantized: FinishedRun) -> BaseErrors:
        self.report("measuring the error of each quantized layer")
        others, own = ([_updates_of(run) for run in side.values()] for side in self.sides)
        return measure_base_errors(self.opened.open(full), self.opened.open(quantized), own, others)

    def _sensitivity(self, full: FinishedRun, quantized: FinishedRun, errors: BaseErrors) -> Sensitivity:
        diagnosis = self.diagnosis
        self.report("scoring all modules in one backward pass")
        opened = self.opened.open(full), self.opened.open(quantized)
        return measure_sensitivity(*opened, self.metric, diagnosis.measuring, errors, self._budget, self.report)

    def _merges(self, quantized: FinishedRun) -> MergeRecoveries:
        self.report(f"merging {quantized.title} in memory")
        return measure_merges(self.opened.open(quantized))

    def _behavior(self) -> Behaviors:
        """One change at a time, and both at once: only those pairs share a start as little as two seeds do."""
        others = self.other_quantized[: len(self.common_seeds)]
        self.report(f"comparing the predictions of {2 * len(self.common_seeds) + len(others)} runs")
        pairs: list[PairBehavior] = []
        former: Observed | None = None
        examples, probed, completions, decided = 0, 0, 0, ""
        for place, seed in enumerate(self.common_seeds):
            full = self._observe(self.full[seed])
            if former is not None:
                pairs.append(compare_behavior(former, full, PairKind.SEED))
            quantized = self._observe(self.quantized[seed])
            pairs.append(compare_behavior(full, quantized, PairKind.PRECISION))
            if not others and former is not None:
                pairs.append(compare_behavior(former, quantized, PairKind.BOTH))
            if place < len(others):
                del quantized  # predictions of a language model are large
                pairs.append(compare_behavior(full, self._observe(others[place]), PairKind.BOTH))
            former = full
            examples, probed, completions, decided = full.examples, full.probed, len(full.completions), full.decided
        return Behaviors(examples, probed, completions, decided, tuple(pairs))

    def _observe(self, run: FinishedRun) -> Observed:
        return observe(self.opened.open(run), self.diagnosis.measuring)


def _dtypes_of(pair: tuple[FinishedRun, FinishedRun]) -> dict[str, Any]:
    """In which dtypes bytes are counted; nothing for float32, in which earlier releases counted all."""
    dtypes = [dtype_name(weights_dtype(run)) for run in pair]
    return {} if {*dtypes} == {"float32"} else {"dtypes": dtypes}


def _updates_of(run: FinishedRun) -> Updates:
    return {update.module: update for update in saved_updates(run.record.adapter or run.record.folder)}
