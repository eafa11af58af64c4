"""Finds the least rank that is enough, writes the adapter at it, loads it again, and confirms the verdict on test."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from lightning import Trainer
from peft import PeftModel

from lora_lightning.analysis.merge_verdict import default_tolerance
from lora_lightning.analysis.metric_scale import TableScale, choose_metric, choose_scale
from lora_lightning.analysis.rank_choices import adapter_parameters, candidate_ranks, portable_rank
from lora_lightning.artefacts.compress_report import result_notes, write_report
from lora_lightning.artefacts.compress_results import CompressResult, Layout, RankMeasurement, Sizes
from lora_lightning.artefacts.example_measuring import Measured, SplitExamples, choose_compared_metric
from lora_lightning.artefacts.loader_rules import AdapterFacts, LoaderCheck, check_loaders, read_adapter_facts
from lora_lightning.artefacts.observers import ValidationObserver
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.output_folder import ADAPTER, new_folder, scratch_folder
from lora_lightning.artefacts.plain_adapter import (
    compare_logits,
    load_plain_adapter,
    logits_of_some_batches,
    write_adapter,
)
from lora_lightning.artefacts.rank_trials import Comparison, RankChoice, RankTrials, shown_ends
from lora_lightning.artefacts.trained_rivals import measure_trained_run
from lora_lightning.errors import ConfigurationError, VerificationError
from lora_lightning.lora.compression import decompose_adapters, set_adapter_config, set_adapter_ranks
from lora_lightning.statistics import Metric, Verdict
from lora_lightning.statistics.verdicts import shown_margin
from lora_lightning.tasks import AdaptationTask

FLOAT32 = 4  # bytes
ROWS_WITHOUT_VERDICT = 512  # at most, for what is only shown: rivals, and ranks that the tests did not come to


@dataclass(frozen=True)
class CompressOptions:
    """What the user asked for, as in `compress`."""

    metric: str | None
    margin: float | None
    ranks: tuple[int, ...] | Literal["all"]
    layout: Layout
    trained_at_k: tuple[Path, ...]
    check_targets: tuple[str, ...]
    data: tuple[str, ...]


class Search(NamedTuple):
    """What the validation split decided.

    Attributes:
        comparison: With the full adapter.
        rows: The full adapter, the sequence and the rivals.
        k: The least rank that is proven; r if none is.
        chosen: The ranks to write.
    """

    comparison: Comparison
    rows: list[RankMeasurement]
    k: int
    chosen: RankChoice


class CompressJob:
    """Compresses the adapter of one run.

    Args:
        opened: The run, validated.
        output: The folder to write.
        options: What the user asked for.
        report: Is called with a line about each step.
        overwrite: As in `compress`.
    """

    def __init__(
        self,
        opened: OpenedAdapter,
        output: Path,
        options: CompressOptions,
        report: Callable[[str], None],
        *,
        overwrite: bool = False,
    ) -> None:
        self.opened, self.output, self.options, self.report = opened, output, options, report
        self.overwrite = overwrite
        observer = cast("ValidationObserver", opened.observer)
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
                network, full_size = self._open_plain_adapter(scratch / "full")
            trials = RankTrials(network, decompose_adapters(network), self.report)
            self._check_adapter(trials)
            examples = SplitExamples(self.task, self.trainer, "val")
            search = self._search(trials, examples)
            tests = SplitExamples(self.task, self.trainer, "test")
            tested = self._compare_on_test(search, tests.measure(trials.truncate(trials.full)))
            rows = [*search.rows, *self._measure_trained_runs(examples, search.comparison)]
            stored = self._stored_ranks(search.chosen)
            sizes = self._write(trials, search.chosen, stored, draft, full_size)
            loaders = self._check_targets(read_adapter_facts(draft))
            moved, largest, again = self._load_again(network, draft)
            test = self._confirm(tested, search.chosen, tests.measure(again))
            result = CompressResult(
                source=self.opened.source,
                output=self.output,
                metric=search.comparison.metric,
                r=trials.r,
                k=search.k,
                rank=max(stored.values()),
                layout=self.options.layout,
                validation=tuple(rows),
                test=test,
                full_test=tested.full_row(trials.full),
                sizes=sizes,
                loaders=loaders,
                max_logit_difference=moved,
                largest_logit=largest,
                measured_on=examples.in_words(search.rows[0].examples),
                tested_on=tests.in_words(test.examples),
                is_tested_on_validation=tests.fingerprint == examples.fingerprint,
                seconds=time.monotonic() - start,
            )
            result = replace(result, notes=(*self.opened.notes, *result_notes(result, self.task.lora)))
            write_report(result, draft)
        return result

    def _open_plain_adapter(self, folder: Path) -> tuple[PeftModel, int]:
        """Exports the adapter and loads it as anybody would; what is truncated is what the run's folder stores."""
        self.report("exporting the adapter as plain LoRA, and loading it on a fresh base")
        own = self.opened.network
        size = write_adapter(self.opened, self.task, own, folder)
        self._check_targets(_facts_if_compressed(read_adapter_facts(folder), self.options.layout))
        before = logits_of_some_batches(self.opened, own)
        network = load_plain_adapter(self.trainer, self.task, folder)
        difference, largest = compare_logits(before, logits_of_some_batches(self.opened, network))
        self._check_logits(difference, largest, "the run's adapter, exported and loaded by PEFT,")
        self.task.network = network  # the run's own is not needed any more
        return network, size

    def _check_logits(self, difference: float, largest: float, what: str) -> None:
        allowed = default_tolerance(self.opened.network) * max(1.0, largest)
        if not difference <= allowed:
            msg = (
                f"{what} is not the model that was judged: logits move by up to {difference:.1e}, and {allowed:.1e} is "
                "allowed; nothing was written."
            )
            raise VerificationError(msg)

    def _check_adapter(self, trials: RankTrials) -> None:
        source = self.opened.source
        if not any(spectrum.any() for spectrum in trials.spectra.values()):
            msg = f"{source}: the adapter changes nothing (dW = 0 in every layer), so there is nothing to compress."
            raise VerificationError(msg)
        if trials.r == 1:
            msg = f"the adapter of {source} has rank 1 in every layer, so there is no lower rank to truncate it to."
            raise ConfigurationError(msg)
        wanted = self.options.ranks
        if beyond := [k for k in wanted if wanted != "all" and int(k) >= trials.r]:
            msg = f"--ranks has {beyond[0]}, but the adapter has rank {trials.r}; give ranks from 1 to {trials.r - 1}."
            raise ConfigurationError(msg)
        if trials.has_experts and self.options.layout == "mixed":
            msg = (
                "--layout is mixed, but the adapter is on experts (target_parameters), whose ranks this command does "
                "not mix; choose portable or exact."
            )
            raise ConfigurationError(msg)

    def _search(self, trials: RankTrials, examples: SplitExamples) -> Search:
        """Chooses the rank on the validation split."""
        layout, full = self.options.layout, examples.measure(trials.network)
        comparison = Comparison(self._choose_metric(full), full)
        self.report(
            f"full adapter: {comparison.metric.name} on {examples.in_words(comparison.full_row(trials.full).examples)}"
        )
        candidates = self._candidates(trials.r)
        rows = trials.run_sequence(examples, comparison, candidates, layout)
        proven = [found.k for found in rows if found.k and found.verdict and found.verdict.proven]
        k = proven[-1] if proven else trials.r
        few = examples.spread(ROWS_WITHOUT_VERDICT)
        beside = comparison
        if few is not examples:
            beside = Comparison(comparison.metric, few.measure(trials.truncate(trials.full)))
        rows += trials.show_untested(few, beside, candidates[len(rows) :], layout)
        rows += trials.rivals(k, layout, few, beside) if proven else []
        chosen = trials.candidate(k, layout) if proven else trials.full
        return Search(comparison, [comparison.full_row(trials.full), *rows], k, chosen)

    def _compare_on_test(self, search: Search, full: Measured) -> Comparison:
        metric = search.comparison.metric
        if full.outcomes(metric.name) is None:
            others = [name for name in full.comparable_metrics if name in search.comparison.full.comparable_metrics]
            msg = (
                f"{metric.name} of the full adapter is undefined on the test split (too few examples of a class, or "
                f"equal predictions), so nothing can be confirmed there; give another --metric, one of "
                f"{', '.join(others)}, or more test rows."
            )
            raise ConfigurationError(msg)
        return Comparison(metric, full)

    def _candidates(self, r: int) -> list[int]:
        wanted = self.options.ranks
        return list(range(r - 1, 0, -1)) if wanted == "all" else list(wanted) or candidate_ranks(r)

    def _choose_metric(self, full: Measured) -> Metric:
        name = choose_compared_metric(full, self.options.metric, self.opened.monitor)
        scale = choose_scale(name, [full.metrics[name]])
        if self.options.margin is None and scale is TableScale.PLAIN:
            others = [each for each in full.comparable_metrics if choose_scale(each, []) is not TableScale.PLAIN]
            msg = (
                f"{name} has no usual margin; give --margin, the largest loss in its unit that does not matter, or "
                f"another --metric{', such as ' if others else ''}{', '.join(others[:3])}."
            )
            raise ConfigurationError(msg)
        return choose_metric(name, scale, None, self.options.margin)

    def _measure_trained_runs(self, examples: SplitExamples, comparison: Comparison) -> list[RankMeasurement]:
        return [
            measure_trained_run(folder, self.options.data, examples, comparison, self.report)
            for folder in self.options.trained_at_k
        ]

    def _stored_ranks(self, chosen: RankChoice) -> dict[str, int]:
        if self.options.layout != "portable":
            return chosen.ranks
        return dict.fromkeys(chosen.ranks, portable_rank(max(chosen.ranks.values())))

    def _write(
        self, trials: RankTrials, chosen: RankChoice, stored: dict[str, int], draft: Path, full_size: int
    ) -> Sizes:
        self.report(f"writing {chosen.name} at rank {max(stored.values())}")
        set_adapter_ranks(trials.network, trials.decomposed, chosen.ranks, stored)
        set_adapter_config(trials.network, stored)
        written = write_adapter(self.opened, self.task, trials.network, draft)
        padding = FLOAT32 * (adapter_parameters(stored, trials.costs) - chosen.parameters)
        return Sizes(full_size, written - padding, written)

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

    def _load_again(self, judged: PeftModel, draft: Path) -> tuple[float, float, PeftModel]:
        self.report("loading the written folder on a fresh base, and testing it")
        before = logits_of_some_batches(self.opened, judged)
        again = load_plain_adapter(self.trainer, self.task, draft)
        difference, largest = compare_logits(before, logits_of_some_batches(self.opened, again))
        self._check_logits(difference, largest, "the written folder, loaded by PEFT on a fresh base,")
        return difference, largest, again

    def _confirm(self, tested: Comparison, chosen: RankChoice, measured: Measured) -> RankMeasurement:
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


def _facts_if_compressed(facts: AdapterFacts, layout: Layout) -> AdapterFacts:
    """What any compressed folder of an adapter will hold, known before anything is measured."""
    mixed: dict[str, Any] = {"layer": 2} if layout == "mixed" else {}
    known = {"r": 1, "lora_alpha": 1, "use_rslora": False, "rank_pattern": mixed, "alpha_pattern": mixed}
    return replace(facts, config={**facts.config, **known})
