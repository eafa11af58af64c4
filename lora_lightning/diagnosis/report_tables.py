"""The tables of a diagnosis's report: numbers as texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from statistics import fmean

from lora_lightning.diagnosis.adapter_similarity import AdapterSimilarity, PairKind
from lora_lightning.diagnosis.base_errors import BaseErrors, LayerError, mean_of_known
from lora_lightning.diagnosis.costs import PEAK_MEMORY, PROCESS_MEMORY, CostTable
from lora_lightning.diagnosis.effects import Direction, Effect, Grouping
from lora_lightning.diagnosis.failure_modes import FailureMode
from lora_lightning.diagnosis.merge_recovery import MergeRecoveries
from lora_lightning.diagnosis.model_behavior import Behaviors, PairBehavior
from lora_lightning.diagnosis.rank_threshold import RankThreshold
from lora_lightning.diagnosis.sensitivity import Agreement, Sensitivity, SkipChoice
from lora_lightning.diagnosis.skip_proof import SENSITIVE, SkipFinding
from lora_lightning.diagnosis.task_numbers import OF_LABELS, TaskNumbers
from lora_lightning.diagnosis.verdicts import DiagnosisVerdict
from lora_lightning.reports.page import PageTable
from lora_lightning.statistics.divergence import Estimate
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.recommendation import shown_cost
from lora_lightning.statistics.study_results import Metric

MOST_MODULES = 400  # rows; the JSON file has all
PREDICTIONS = {
    "mean_kl": "mean KL divergence, nats",
    "median_kl": "median KL divergence",
    "kl_99": "99 % KL divergence",
    "kl_99_9": "99.9 % KL divergence",
    "max_kl": "maximum KL divergence",
    "mean_change_of_p": "mean change of p",
    "rms_change_of_p": "RMS change of p",
    "same_top": "same top token",
    "perplexity_ratio": "perplexity ratio",
}


def number(value: float) -> str:
    """Formats a number; a dash if it is unknown."""
    return f"{value:.3g}" if math.isfinite(value) else "-"


def percent(value: float) -> str:
    """Formats a share in percent; a dash if it is unknown."""
    return f"{100 * value:.3g} %" if math.isfinite(value) else "-"


def interval(found: Interval) -> str:
    """Formats a number with its interval."""
    if not math.isfinite(found.value):
        return "-"
    ends = f" ({found.low:.3g} to {found.high:.3g})" if math.isfinite(found.low) else " (no interval)"
    return f"{found.value:.3g}{ends}"


def percent_interval(found: Interval) -> str:
    """Formats a share with its interval, in percent."""
    if not math.isfinite(found.value):
        return "-"
    return f"{interval(Interval(100 * found.value, 100 * found.low, 100 * found.high))} %"


def estimate(found: Estimate) -> str:
    """Formats a number with its standard error."""
    if not math.isfinite(found.value):
        return "-"
    return f"{found.value:.4g}" + (f" \u00b1 {found.error:.2g}" if math.isfinite(found.error) else "")


def verdicts_table(verdicts: Sequence[DiagnosisVerdict]) -> PageTable:
    """What is decided."""
    rows = tuple((each.name.replace("_", " "), str(each.state), each.sentence) for each in verdicts)
    return PageTable(("verdict", "reached", "numbers"), rows, texts=frozenset({2}), states=1)


def failures_table(failures: Sequence[FailureMode]) -> PageTable:
    """What goes wrong."""
    rows = tuple((each.name, each.symptom, each.evidence, each.cause, each.remedy) for each in failures)
    headings = ("failure mode", "symptom", "evidence", "likely cause", "remedy")
    return PageTable(headings, rows, texts=frozenset({1, 2, 3, 4}))


def similarity_tables(found: AdapterSimilarity) -> tuple[PageTable, ...]:
    """How alike updates are, over all modules and by module."""
    kinds = [kind for kind in PairKind if kind in found.by_kind]
    titles = {
        PairKind.PRECISION: "another precision, same seed (same A at the start)",
        PairKind.SEED: "another seed, same precision",
        PairKind.BOTH: "another precision and another seed",
    }

    def mean_of(name: str, kind: PairKind) -> float:
        known = [getattr(each, name)[kind] for each in found.modules if not math.isnan(getattr(each, name)[kind])]
        return fmean(known) if known else math.nan

    names = ("distance", "cosine", "output_overlap", "input_overlap", "largest_angle")
    rows = [(titles[kind], *(number(mean_of(name, kind)) for name in names)) for kind in kinds]
    random = [fmean(getattr(each, f"random_{name}") for each in found.modules) for name in names[2:]]
    rows.append(("random subspaces", number(math.sqrt(2)), "0", *map(number, random)))
    headings = (
        "pairs that differ in",
        "relative distance",
        "cosine of dW",
        "overlap of outputs",
        "overlap of inputs",
        "largest angle, degrees",
    )
    shown = found.modules[:MOST_MODULES]
    by_kind = {"distance": "relative distance", "cosine": "cosine"}
    by_kind |= {"output_overlap": "overlap of outputs", "input_overlap": "overlap of inputs"}
    by_kind["largest_angle"] = "largest angle"
    beside = [name for name in by_kind if name not in {"distance", "cosine"}]
    each = [
        (
            module.module,
            *(number(getattr(module, name).get(kind, math.nan)) for name in by_kind for kind in kinds),
            *(number(getattr(module, f"random_{name}")) for name in beside),
            *map(number, module.norms),
        )
        for module in shown
    ]
    columns = (
        "module",
        *(f"{title}, {kind}" for title in by_kind.values() for kind in kinds),
        *(f"{by_kind[name]}, random subspaces" for name in beside),
        "||dW||, not quantized",
        "||dW||, quantized",
    )
    caption = f"Each module ({len(shown)} of {len(found.modules)}), means over pairs by what differs between them; "
    caption += "those of another precision alone share A at the start; angles in degrees"
    return (PageTable(headings, tuple(rows)), PageTable(columns, tuple(each), caption=caption, folded=True))


def errors_tables(found: BaseErrors) -> tuple[PageTable, ...]:
    """What quantizing does to weights, by kind of module and by module."""
    headings = (
        "modules",
        "||W - Q(W)|| / ||W||",
        "canceled by adapters on it",
        "by the other adapters",
        "possible at this rank",
        "excess kurtosis",
        "beyond 4 SD",
        "largest, SD",
    )

    def row(name: str, layers: Sequence[LayerError]) -> tuple[str, ...]:
        return (
            name,
            percent(mean_of_known(each.error for each in layers)),
            percent(mean_of_known(each.canceled for each in layers)),
            percent(mean_of_known(each.canceled_by_other for each in layers)),
            percent(mean_of_known(each.reachable for each in layers)),
            number(mean_of_known(each.excess_kurtosis for each in layers)),
            percent(mean_of_known(each.outlier_share for each in layers)),
            number(max(each.largest for each in layers)),
        )

    kinds: dict[str, list[LayerError]] = {}
    for each in found.layers:
        kinds.setdefault(each.kind, []).append(each)
    shown = found.layers[:MOST_MODULES]
    caption = f"Each module ({len(shown)} of {len(found.layers)})"
    return (
        PageTable(headings, tuple(row(f"{kind} ({len(layers)})", layers) for kind, layers in kinds.items())),
        PageTable(headings, tuple(row(each.module, [each]) for each in shown), caption=caption, folded=True),
    )


def effects_tables(found: Sensitivity, metric: Metric, task: TaskNumbers = OF_LABELS) -> tuple[PageTable, ...]:
    """What quantizing parts does, and how well cheap scores agree; without what the task has not."""
    parts = _known_parts(found, metric, task)
    tables = []
    scores = {score.module: score for score in found.scores}
    for grouping in (Grouping.KIND, Grouping.LAYER):
        own = [each for each in found.effects if each.grouping is grouping]
        one_in = {each.group: each for each in own if each.direction is Direction.IN}
        one_out = {each.group: each for each in own if each.direction is Direction.OUT}
        rows = tuple(
            (group, str(each.modules), *_effect(each, parts), *_effect(one_out[group], parts))
            for group, each in one_in.items()
        )
        headings = ("", "modules", *(f"one in: {name}" for name in parts), *(f"one out: {name}" for name in parts))
        tables.append(PageTable((f"by {grouping}", *headings[1:]), rows))
    singles = [each for each in found.effects if each.grouping in {Grouping.MODULE, Grouping.ALL}]
    rows = tuple(
        (
            each.group,
            number(scores[each.group].fisher if each.group in scores else sum(s.fisher for s in found.scores)),
            number(scores[each.group].taylor if each.group in scores else sum(s.taylor for s in found.scores)),
            *_effect(each, parts),
        )
        for each in singles
    )
    headings = ("module", "Fisher score (for ranks)", task.heading("Taylor score"), *parts)
    of_all = _of_all_modules(found)
    tables.append(PageTable(headings, rows, caption=f"Modules singly{of_all}, and all together"))
    agreements = tuple(
        (str(each.grouping), _ranked_by(each), each.effect, number(each.correlation), str(each.groups))
        for each in found.agreements
        if _is_known(found, attrgetter(each.effect))
    )
    headings = ("groups by", "score", "measured", "Spearman's correlation", "groups")
    caption = f"Cheap scores against measured effects, one in; modules{of_all or ', all of them'}"
    if of_all:
        caption += ": a correlation among the largest alone is usually lower than among all"
    tables.append(PageTable(headings, agreements, texts=frozenset({1, 2}), caption=caption))
    return tuple(tables)


def _ranked_by(each: Agreement) -> str:
    return f"size of {each.score}" if (each.score, each.effect) == ("taylor", "divergence") else each.score


def _of_all_modules(found: Sensitivity) -> str:
    """Which modules were quantized singly; empty if all were."""
    singles, every = len(found.singles), len(found.scores)
    return "" if singles == every else f" ({singles} of {every}, those with the largest Fisher scores)"


Part = Callable[[Effect], Interval]


def _known_parts(found: Sensitivity, metric: Metric, task: TaskNumbers) -> dict[str, Part]:
    """The parts of effects that the task has, by heading: regressions have no divergence."""
    every: dict[str, Part] = {
        task.heading(task.loss): lambda each: each.loss,
        f"{metric.name}{metric.unit and ','}{metric.unit} better": lambda each: shown_change(each.metric, metric),
        "KL divergence, nats": lambda each: each.divergence,
    }
    return {title: part for title, part in every.items() if _is_known(found, part)}


def _is_known(found: Sensitivity, part: Part) -> bool:
    return any(math.isfinite(part(each).value) for each in found.effects)


def _effect(each: Effect, parts: Mapping[str, Part]) -> tuple[str, ...]:
    return tuple(interval(part(each)) for part in parts.values())


def lists_table(found: SkipFinding, choice: SkipChoice, metric: Metric) -> PageTable:
    """The list beside each random one: bytes and quality."""
    own = found.means.get(SENSITIVE, math.nan)
    rows = [(SENSITIVE, f"{choice.more_bytes:,}", f"{own:.4g}", "-", "-")]
    rows += [
        (
            each.name,
            f"{each.more_bytes:,} ({each.more_bytes / choice.more_bytes - 1:+.1%})",
            f"{each.mean:.4g}",
            interval(shown_change(each.difference.interval, metric)),
            number(each.p_value),
        )
        for each in found.random
    ]
    caption = f"The list, number {found.rank} of {len(rows)}, and random lists, the best first (p values by Holm)"
    better = f"by how much the list is better{metric.unit and ','}{metric.unit}"
    return PageTable(("list", "more bytes", metric.name, better, "p, one-sided"), tuple(rows), caption=caption)


def shown_change(found: Interval, metric: Metric) -> Interval:
    """A difference of the metric, larger is better, in the unit in which differences are shown."""
    return Interval(*(metric.shown_difference(each) for each in (found.value, found.low, found.high)))


def ranks_tables(found: RankThreshold) -> tuple[PageTable, ...]:
    """Which rank is enough, and what quantization costs at each."""
    rows = []
    for each in found.precisions:
        for rank, mean in sorted(each.means.items()):
            verdict = str(each.verdicts.get(rank, "reference"))
            seeds = str(each.seeds[rank])
            rows.append((each.precision, str(rank), seeds, interval(mean), verdict, each.sentences.get(rank, "")))
    headings = ("precision", "r", "seeds", "mean (95 % interval over seeds)", "verdict", "in words")
    losses = tuple(
        (f"r = {each.rank} against r = {each.other_rank}", str(each.verdict), number(each.p_value), each.sentence)
        for each in (*found.losses, *found.bought_back)
    )
    caption = "The quantized precision against the other one, at the same rank and at smaller ones (p values by Holm, "
    caption += "except for both at the compared rank, which was chosen beforehand; a dash: not tested, since there is "
    caption += "one seed or no variance, or runs of the better one failed)"
    return (
        PageTable(headings, tuple(rows), texts=frozenset({5}), states=4),
        PageTable(("ranks", "verdict", "p", "in words"), losses, texts=frozenset({3}), states=1, caption=caption),
    )


def behavior_tables(found: Behaviors) -> tuple[PageTable, ...]:
    """How pairs of models behave: by what differs between them, then one column for each pair."""
    pairs = found.pairs
    kinds = {kind: [pair for pair in pairs if pair.kind is kind] for kind in PairKind}
    known = {kind: own for kind, own in kinds.items() if own}
    rows = tuple(
        (title, *(_over_pairs([value(pair) for pair in own]) for own in known.values()))
        for title, value in _measures(pairs).items()
    )
    headings = ("", *(f"{kind.shown} ({_counted(len(own))})" for kind, own in known.items()))
    caption = "Means over pairs (least to largest)"
    return (PageTable(headings, rows, caption=caption), _pairs_table(pairs))


def _counted(pairs: int) -> str:
    return f"{pairs} pair{'s' if pairs > 1 else ''}"


def _measures(pairs: Sequence[PairBehavior]) -> dict[str, Callable[[PairBehavior], float]]:
    """Numbers of a pair by title, those that a pair has."""

    def of_predictions(name: str) -> Callable[[PairBehavior], float]:
        return lambda pair: math.nan if pair.predictions is None else getattr(pair.predictions, name).value

    found: dict[str, Callable[[PairBehavior], float]] = {}
    found |= {title: of_predictions(name) for name, title in PREDICTIONS.items() if is_known(pairs, name)}
    if any(pair.greedy for pair in pairs):
        found["greedy completions: equal up to"] = lambda pair: math.nan if pair.greedy is None else pair.greedy.value
    if any(pair.flips for pair in pairs):
        found["decisions: agreement"] = lambda pair: math.nan if pair.flips is None else pair.flips.agreement
    if any(pair.layers for pair in pairs):
        found["last layer: mean cosine"] = lambda pair: pair.layers[-1].cosine if pair.layers else math.nan
        found["last layer: CKA"] = lambda pair: pair.layers[-1].cka if pair.layers else math.nan
    return found


def is_known(pairs: Sequence[PairBehavior], name: str) -> bool:
    """Whether any pair has a number of `PREDICTIONS`: quantiles near the maximum need many predictions."""
    return any(math.isfinite(getattr(each.predictions, name).value) for each in pairs if each.predictions is not None)


def _over_pairs(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "-"
    ends = f" ({min(known):.4g} to {max(known):.4g})" if len(known) > 1 else ""
    return f"{fmean(known):.4g}{ends}"


def _pairs_table(pairs: Sequence[PairBehavior]) -> PageTable:
    rows: list[tuple[str, ...]] = []
    for name, title in PREDICTIONS.items():
        if is_known(pairs, name):
            each = ("-" if p.predictions is None else estimate(getattr(p.predictions, name)) for p in pairs)
            rows.append((title, *each))
    if any(pair.greedy for pair in pairs):
        rows.append(("greedy completions: equal up to", *(_greedy(pair) for pair in pairs)))
    if any(pair.flips for pair in pairs):
        rows.append(("decisions: agreement", *(percent(p.flips.agreement) if p.flips else "-" for p in pairs)))
        rows.append(("decisions: lost / gained / other", *(_flips(pair) for pair in pairs)))
    if any(pair.layers for pair in pairs):
        rows.append(("last layer: mean cosine", *(number(p.layers[-1].cosine) if p.layers else "-" for p in pairs)))
        rows.append(("last layer: CKA", *(number(p.layers[-1].cka) if p.layers else "-" for p in pairs)))
    headings = ("", *(f"{pair.first} / {pair.second}" for pair in pairs))
    return PageTable(headings, tuple(rows), caption="Each pair, with standard errors over examples", folded=True)


def layers_tables(found: Behaviors) -> tuple[PageTable, ...]:
    """How alike hidden states are after each layer, by kind of pair."""
    kinds = {kind: [pair.layers for pair in found.pairs if pair.kind is kind and pair.layers] for kind in PairKind}
    known = {kind: pairs for kind, pairs in kinds.items() if pairs}
    if not known:
        return ()
    names = {"cosine": "mean cosine", "cka": "CKA"}
    rows = [
        (
            "embeddings" if not place else f"layer {place}",
            *(_range([getattr(each, name) for each in group]) for name in names for group in layer),
        )
        for place, layer in enumerate(zip(*(zip(*pairs, strict=True) for pairs in known.values()), strict=True))
    ]
    headings = ("after", *(f"{title}, {kind.shown}" for title in names.values() for kind in known))
    caption = "Hidden states after each layer: mean over pairs (least to largest)"
    return (PageTable(headings, tuple(rows), caption=caption, folded=True),)


def _range(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]  # fewer than four texts have no CKA
    if not known:
        return "-"
    ends = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
    return f"{fmean(known):.3f}{ends}"


def _greedy(pair: PairBehavior) -> str:
    return "-" if pair.greedy is None else f"{percent(pair.greedy.value)} \u00b1 {percent(pair.greedy.error)}"


def _flips(pair: PairBehavior) -> str:
    return "-" if pair.flips is None else f"{pair.flips.lost} / {pair.flips.gained} / {pair.flips.other}"


def merges_table(found: MergeRecoveries, task: TaskNumbers = OF_LABELS) -> PageTable:
    """What each merge target does."""
    rows = tuple(
        (
            each.target,
            interval(each.recovery.ratio) if each.recovery.has_gain else "not judged",
            interval(each.recovery.change),
            interval(each.recovery.gain),
        )
        for each in found.targets
    )
    change, gain = "change of log-likelihood", "gain of the adapter"
    if task.of_errors:
        change, gain = "by how much the squared error falls", "by how much the adapter lowers it"
    return PageTable(("merged into", "recovery ratio", change, gain), rows)


def costs_table(found: CostTable) -> PageTable:
    """What configurations cost, with savings of the quantized ones."""
    names = list(dict.fromkeys(cost for row in found.rows for cost in row.costs))
    rows = []
    for row in found.rows:
        cells = []
        for cost in names:
            saved = f"; {_less(row.savings[cost])}" if cost in row.savings else ""
            on_front = " \u2605" if cost in found.pareto and row.configuration in found.pareto[cost].best else ""
            cells.append(f"{_cost(row.costs[cost])}{saved}{on_front}" if cost in row.costs else "-")
        rows.append((row.configuration, str(len(row.seeds)), f"{row.quality:.4g}", *cells))
    headings = ("configuration", "seeds", "quality", *(_heading(cost, found) for cost in names))
    caption = (
        "Means over the seeds of both precisions at the rank; after the semicolon: against the other precision. In "
    )
    caption += (
        "parentheses: 95 % intervals over seeds; without one, all seeds cost the same, or there is one seed. A star: "
    )
    caption += "on the Pareto front of that cost, of means over the seeds that all configurations with it have."
    if found.is_process_memory and PEAK_MEMORY in names:
        caption += f" Peak memory is not compared: {PROCESS_MEMORY}."
    caption += f" {found.note_on_devices}" if found.note_on_devices else ""
    return PageTable(headings, tuple(rows), caption=caption)


def _heading(cost: str, found: CostTable) -> str:
    whole = " (of the whole process)" if cost == PEAK_MEMORY and found.is_process_memory else ""
    return f"{cost.replace('_', ' ')}{whole}"


def _cost(found: Interval) -> str:
    ends = f" ({shown_cost(found.low)} to {shown_cost(found.high)})" if found.low < found.high else ""
    return f"{shown_cost(found.value)}{ends}"


def _less(saving: Interval) -> str:
    ends = f" ({-saving.high:+.0f} to {-saving.low:+.0f})" if saving.low < saving.high else ""
    return f"{-saving.value:+.0f} %{ends}"
