"""Finds the least rank that is enough, writes the adapter at it, loads it again, and confirms the verdict on test."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from lightning import Trainer
from peft import PeftModel

from lora_lightning.analysis.metric_scale import choose_metric, choose_scale
from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.analysis.rank_choices import adapter_parameters, candidate_ranks, portable_rank
from lora_lightning.artefacts.compress_checks import (
    ComparedMetric,
    Ranks,
    check_layout_of_experts,
    check_ranks_below,
)
from lora_lightning.artefacts.compress_report import result_notes, write_report
from lora_lightning.artefacts.compress_results import (
    ChosenThreshold,
    CompressResult,
    Layout,
    RankMeasurement,
    Sizes,
)
from lora_lightning.artefacts.example_measuring import Measured, SplitExamples
from lora_lightning.artefacts.finished_run import PreparedRun
from lora_lightning.artefacts.loader_rules import AdapterFacts, LoaderCheck, check_loaders, read_adapter_facts
from lora_lightning.artefacts.merge_gate import find_inequality
from lora_lightning.artefacts.observers import ValidationObserver
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.output_folder import ADAPTER, new_folder, scratch_folder
from lora_lightning.artefacts.plain_adapter import (
    compare_logits,
    load_plain_adapter,
    logit_tolerance,
    logits_of_some_rows,
    release_weights,
    weight_bytes,
    write_adapter,
)
from lora_lightning.artefacts.rank_trials import Comparison, RankChoice, RankTrials, shown_ends
from lora_lightning.artefacts.trained_rivals import measure_trained_run
from lora_lightning.errors import ConfigurationError, LoraLightningError, VerificationError
from lora_lightning.lora.compression import decompose_adapters, set_adapter_config, set_adapter_ranks
from lora_lightning.lora.merging import without_adapters
from lora_lightning.statistics import Metric, Verdict
from lora_lightning.statistics.verdicts import shown_margin
from lora_lightning.tasks import AdaptationTask

FLOAT32 = 4  # bytes
ROWS_WITHOUT_VERDICT = 512  # at most, for what is only shown: rivals, and ranks that the tests did not come to
SHARE_WITHOUT_VERDICT = 1 / 8  # of the validation split, at most: showing must not cost more than deciding


@dataclass(frozen=True)
class CompressOptions:
    """What the user asked for, as in `compress`, once it is checked.

    Attributes:
        metric: What decides.
        margin: `None` for the usual one.
        ranks: From the largest down; empty for the usual ones.
        layout: Of the written folder.
        rivals: Runs that were trained at a lower rank.
        check_targets: Programs that have to load the folder right.
    """

    metric: ComparedMetric
    margin: float | None
    ranks: Ranks
    layout: Layout
    rivals: Sequence[PreparedRun]
    check_targets: Sequence[str]


class Search(NamedTuple):
    """What the validation split decided.

    Attributes:
        comparison: With the full adapter.
        rows: The full adapter, the sequence and the rivals.
        k: The least rank that is proven; r if none is.
        chosen: The ranks to write.
        row: Of the chosen ranks.
    """

    comparison: Comparison
    rows: list[RankMeasurement]
    k: int
    chosen: RankChoice
    row: RankMeasurement

    @property
    def is_full(self) -> bool:
        """Whether what is written is the full adapter, up to rounding."""
        return self.row.rule == "full" or self.row.verdict is Verdict.IDENTICAL


class CompressJob:
    """Compresses the adapter of one run. One model is in memory at a time.

    Args:
        run: To compress.
        output: The folder to write.
        options: What the user asked for.
        report: Is called with a line about each step.
        overwrite: As in `compress`.
    """

    def __init__(
        self,
        run: PreparedRun,
        output: Path,
        options: CompressOptions,
        report: Callable[[str], None],
        *,
        overwrite: bool = False,
    ) -> None:
        self.opened: OpenedAdapter = run.open()
        self.adapter = run.record.adapter
        self.output, self.options, self.report, self.overwrite = output, options, report, overwrite
        observer = cast("ValidationObserver", self.opened.observer)
        self.task: AdaptationTask = observer.task
        self.trainer: Trainer = observer.trainer

    def run(self) -> CompressResult:
        """Measures, writes, and checks what was written.

        Returns:
            What was found.

        Raises:
            ConfigurationError: If the adapter has no lower rank, or an option does not fit it.
            VerificationError: If a check fails; nothing is written.
        """
        start = time.monotonic()
        with new_folder(self.output, overwrite=self.overwrite, marker=ADAPTER) as draft:
            with scratch_folder(self.output) as scratch:
                network, full_in_float32 = self._open_plain_adapter(scratch / "full")
            trials = RankTrials(network, decompose_adapters(network), self.report)
            self._check_adapter(trials)
            examples = SplitExamples(self.task, self.trainer, self.options.metric.split)
            search = self._search(trials, examples)
            tests = SplitExamples(self.task, self.trainer, self._test_split(examples.split))
            full = None if search.is_full else self._measure_on_test(trials, search, tests)
            stored = self._stored_ranks(search.chosen)
            kept, written_size = self._write(trials, search, stored, draft)
            full_size = full_in_float32 if self.adapter is None else weight_bytes(self.adapter)
            sizes = Sizes(full_size, kept, written_size, full_in_float32)
            loaders = self._check_targets(read_adapter_facts(draft))
            again, difference = self._load_again(trials, draft)
            written = tests.measure(again, threshold=search.row.threshold)
            release_weights(again)
            tested = self._compare_on_test(search, full or written)
            test = self._confirm(tested, search, written)
            rivals, rival_notes = self._measure_rivals(examples.split, search.comparison)
            result = CompressResult(
                source=self.opened.source,
                output=self.output,
                metric=search.comparison.metric,
                r=trials.r,
                k=search.k,
                rank=max(stored.values()),
                layout=self.options.layout,
                validation=(*search.rows, *rivals),
                test=test,
                full_test=tested.full_row(trials.full),
                sizes=sizes,
                loaders=loaders,
                max_logit_difference=difference.max_logit_difference,
                largest_logit=difference.largest_logit,
                measured_on=examples.in_words(search.rows[0].examples),
                tested_on=tests.in_words(test.examples),
                is_tested_on_validation=tests.fingerprint == examples.fingerprint,
                seconds=time.monotonic() - start,
                threshold=self._chosen_threshold(tested.full, written),
            )
            result = replace(result, notes=(*self.opened.notes, *rival_notes, *result_notes(result, self.task.lora)))
            write_report(result, draft)
        return result

    def _open_plain_adapter(self, folder: Path) -> tuple[PeftModel, int]:
        """Exports the adapter and loads it as anybody would; what is truncated is what the run's folder stores."""
        self.report("exporting the adapter as plain LoRA, and loading it on a fresh base")
        own = self.opened.network
        size = write_adapter(self.opened, self.task, own, folder)
        self._check_targets(_facts_if_compressed(read_adapter_facts(folder), self.options.layout))
        before = logits_of_some_rows(self.opened, own)
        with without_adapters(own):
            base = logits_of_some_rows(self.opened, own)
        tolerance = logit_tolerance(own)
        release_weights(own)
        network = load_plain_adapter(self.trainer, self.task, folder)
        difference = compare_logits(before, logits_of_some_rows(self.opened, network), base)
        _check_equality(difference, tolerance, "the run's adapter, exported and loaded by PEFT,")
        self.task.network = network
        return network, size

    def _check_adapter(self, trials: RankTrials) -> None:
        source = self.opened.source
        if not any(spectrum.any() for spectrum in trials.spectra.values()):
            msg = f"{source}: the adapter changes nothing (dW = 0 in every layer), so there is nothing to compress."
            raise VerificationError(msg)
        check_ranks_below(trials.r, self.options.ranks, source)
        check_layout_of_experts(self.options.layout, has_experts=trials.has_experts)

    def _search(self, trials: RankTrials, examples: SplitExamples) -> Search:
        """Chooses the rank on the validation split."""
        layout, full = self.options.layout, examples.measure(trials.network, chooses_threshold=True)
        comparison = Comparison(self._metric(full, examples.split), full)
        full_row = comparison.full_row(trials.full)
        self.report(f"full adapter: {comparison.metric.name} on {examples.in_words(full_row.examples)}")
        candidates = self._candidates(trials.r)
        rows = trials.run_sequence(examples, comparison, candidates, layout)
        proven = [found for found in rows if found.verdict and found.verdict.proven]
        row = proven[-1] if proven else full_row
        k = row.k or trials.r
        chosen = trials.candidate(k, layout) if proven else trials.full
        rows += self._measure_others(
            trials, examples, comparison.metric, candidates[len(rows) :], k if proven else None
        )
        return Search(comparison, [full_row, *rows], k, chosen, row)

    def _measure_others(
        self, trials: RankTrials, examples: SplitExamples, metric: Metric, untested: Sequence[int], k: int | None
    ) -> list[RankMeasurement]:
        """What is only shown, on some rows: ranks that the tests did not come to, and rivals of the chosen one."""
        if not untested and k is None:
            return []
        layout = self.options.layout
        few = examples.spread(min(ROWS_WITHOUT_VERDICT, int(SHARE_WITHOUT_VERDICT * examples.row_count)))
        beside = Comparison(metric, few.measure(trials.truncate(trials.full), chooses_threshold=True))
        rows = trials.show_untested(few, beside, untested, layout)
        return rows if k is None else [*rows, *trials.rivals(k, layout, few, beside)]

    def _metric(self, full: Measured, split: str) -> Metric:
        name = self.options.metric.name
        if full.outcomes(name) is None:
            msg = (
                f"{name} of the full adapter is undefined on {split} (too few examples of a class, equal predictions, "
                "or documents without numbers), so ranks cannot be compared by it; give another --metric"
                f"{_one_of(full.comparable_metrics)}, or more rows."
            )
            raise ConfigurationError(msg)
        return choose_metric(name, choose_scale(name, [full.metrics[name]]), None, self.options.margin)

    def _candidates(self, r: int) -> list[int]:
        wanted = self.options.ranks
        return list(range(r - 1, 0, -1)) if wanted == "all" else list(wanted) or candidate_ranks(r)

    def _test_split(self, validation: str) -> str:
        """Of several test splits the one that is called like the validation split, such as `test_mismatched`."""
        names: list[str] = self.trainer.datamodule.split_names("test")  # type: ignore[attr-defined]
        return next((name for name in names if name.partition("_")[2] == validation.partition("_")[2]), names[0])

    def _measure_on_test(self, trials: RankTrials, search: Search, tests: SplitExamples) -> Measured:
        full = tests.measure(trials.truncate(trials.full), threshold=search.comparison.full.threshold)
        self._compare_on_test(search, full)  # says so before anything is written
        return full

    def _compare_on_test(self, search: Search, full: Measured) -> Comparison:
        metric = search.comparison.metric
        if full.outcomes(metric.name) is None:
            others = [name for name in full.comparable_metrics if name in search.comparison.full.comparable_metrics]
            msg = (
                f"{metric.name} of the full adapter is undefined on the test split (too few examples of a class, or "
                f"equal predictions), so nothing can be confirmed there; give another --metric{_one_of(others)}, or "
                "more test rows."
            )
            raise ConfigurationError(msg)
        return Comparison(metric, full)

    def _stored_ranks(self, chosen: RankChoice) -> dict[str, int]:
        """One rank for all layers, unless they are mixed: a layer that was trained at a lower rank is padded, too."""
        if self.options.layout == "mixed":
            return chosen.ranks
        largest = max(chosen.ranks.values())
        return dict.fromkeys(chosen.ranks, portable_rank(largest) if self.options.layout == "portable" else largest)

    def _write(self, trials: RankTrials, search: Search, stored: dict[str, int], draft: Path) -> tuple[int, int]:
        chosen = search.chosen
        self.report(f"writing {chosen.name} at rank {max(stored.values())}")
        set_adapter_ranks(trials.network, trials.decomposed, chosen.ranks, stored)
        set_adapter_config(trials.network, stored)
        self.task.set_threshold(search.row.threshold)
        written = write_adapter(self.opened, self.task, trials.network, draft)
        padding = FLOAT32 * (adapter_parameters(stored, trials.costs) - chosen.parameters)
        return written - padding, written

    def _check_targets(self, facts: AdapterFacts) -> tuple[LoaderCheck, ...]:
        checks = check_loaders(facts)
        for found in checks:
            if found.target in self.options.check_targets and found.outcome != "right":
                what = "would refuse" if found.outcome == "refused" else "would silently load something else than"
                msg = (
                    f"{found.target} {what} this adapter: {'; '.join(found.reasons)} (rules of {found.read_on}); "
                    f"nothing was written. Leave {found.target} out of --check_targets, or merge the adapter."
                )
                raise VerificationError(msg)
        return checks

    def _load_again(self, trials: RankTrials, draft: Path) -> tuple[PeftModel, OutputDifference]:
        self.report("loading the written folder on a fresh base, and testing it")
        judged = trials.network
        before = logits_of_some_rows(self.opened, judged)
        with without_adapters(judged):
            base = logits_of_some_rows(self.opened, judged)
        tolerance = logit_tolerance(judged)
        release_weights(judged)
        trials.decomposed.clear()
        again = load_plain_adapter(self.trainer, self.task, draft)
        difference = compare_logits(before, logits_of_some_rows(self.opened, again), base)
        _check_equality(difference, tolerance, "the written folder, loaded by PEFT on a fresh base,")
        return again, difference

    def _measure_rivals(self, split: str, comparison: Comparison) -> tuple[list[RankMeasurement], list[str]]:
        """The runs that were trained at a lower rank; one that cannot be opened is named, and costs nothing else."""
        found, notes = [], []
        for run in self.options.rivals:
            try:
                found.append(measure_trained_run(run, split, comparison, self.report))
            except LoraLightningError as error:
                notes.append(f"the run {run.record.folder} was not compared: {error}")
        return found, notes

    def _confirm(self, tested: Comparison, search: Search, measured: Measured) -> RankMeasurement:
        chosen = search.chosen
        if search.is_full:
            return tested.identical(chosen)
        found = tested.compare(chosen, measured, is_tested=True)
        self.report(f"{chosen.name} on test: {tested.shown(found)}")
        if found.verdict is Verdict.WORSE:
            metric = tested.metric
            msg = (
                f"{chosen.name} was enough on validation, but on test it is worse than the full adapter by more than "
                f"{shown_margin(metric)} (difference {shown_ends(found.difference, metric)}); nothing was written. "
                "Use a larger --margin, more validation rows, or the adapter as it is."
            )
            raise VerificationError(msg)
        return found

    def _chosen_threshold(self, full: Measured, written: Measured) -> ChosenThreshold | None:
        if self.task.threshold_name is None or full.threshold is None or written.threshold is None:
            return None
        names = [name for name in self.task.metrics_at_threshold() if name in full.metrics and name in written.metrics]
        metrics = {name: (full.metrics[name], written.metrics[name]) for name in names}
        return ChosenThreshold(self.task.threshold_name, full.threshold, written.threshold, metrics)


def _check_equality(difference: OutputDifference, tolerance: float, what: str) -> None:
    if clause := find_inequality(difference, tolerance):
        msg = f"{what} is not the model that was judged: {clause}; nothing was written."
        raise VerificationError(msg)


def _one_of(names: Sequence[str]) -> str:
    return f", one of {', '.join(names)}" if names else ""


def _facts_if_compressed(facts: AdapterFacts, layout: Layout) -> AdapterFacts:
    """What any compressed folder of an adapter will hold, known before anything is measured."""
    mixed: dict[str, Any] = {"layer": 2} if layout == "mixed" else {}
    known = {"r": 1, "lora_alpha": 1, "use_rslora": False, "rank_pattern": mixed, "alpha_pattern": mixed}
    return replace(facts, config={**facts.config, **known})
