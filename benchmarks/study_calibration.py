"""Simulates studies whose truth is known, and counts how often their verdicts and intervals are right; prints JSON.

A configuration is compared with the reference on the same seeds and test examples. Easy examples are easy for both;
each configuration also has examples of its own that it finds hard, each run has noise, and each run of a configuration
is a bit better or worse than others on all examples (the spread). True effects are 1.5, 1 and 0 margins below the
reference. Counted are: how often "not worse by more than the margin" is proven, how often the 95 % interval contains
the truth, and the same for two rules in common use: a percentile bootstrap over seeds and test examples, and "the worst
seed is within the margin". Two more kinds of studies are of configurations of which hardly any answer differs from the
reference's, and none is better at the margin: there t intervals are too narrow.

Example:
    python benchmarks/study_calibration.py --metric accuracy f1 --json docs/study_calibration.json
    python benchmarks/study_calibration.py --metric auroc --json docs/study_calibration.json --page docs/statistics.md
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import norm

from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.paired import ROUNDING, paired_difference, seeds_estimate, two_way_estimate
from lora_lightning.statistics.pseudo_values import (
    auroc_pseudo_values,
    f1_pseudo_values,
    weighted_mean_pseudo_values,
)

Floats = NDArray[np.float64]
EFFECTS = (-1.5, -1.0, 0.0)  # in margins; the second is the margin itself
SEEDS = (3, 5, 10)
SPREADS = (0.0, 0.6, 2.0)  # standard deviation between seeds of the difference, in points or percent
BATCH, RESAMPLES = 50, 200
POINTS = 0.005  # the margin of fractions
PERCENT = math.log(1.01)  # the margin of log perplexity
OWN, NOISE = 0.025, 0.025  # shares of an example's variance that belong to a configuration, and to one run
ACCURACY, AUROC, F1 = 0.945, 0.975, 0.9  # of the reference
POSITIVE, ALARMS = 0.3, 0.02  # share of positive examples, and of false alarms among the others
STUDIES = 2000
COLUMNS = (
    "metric",
    "spread",
    "seeds",
    "coverage",
    "error at the margin",
    "error at 1.5 margins",
    "power",
    "bootstrap: coverage",
    "bootstrap: error",
    "worst seed: error",
    "worst seed: power",
)
MARKS = ("<!-- calibration: begin -->", "<!-- calibration: end -->")


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch of studies, for the reference and a configuration.

    Attributes:
        luck: shape (2, studies, seeds, examples), standard normal; how hard an example is in a run.
        quality: shape (2, studies, seeds, 1), standard normal; how good a run is as a whole.
        hard: shape (2, studies, 1, examples), the part of `luck` that all runs of a configuration share.
        random: For what else a metric needs.
    """

    luck: Floats
    quality: Floats
    hard: Floats
    random: np.random.Generator


def draw(random: np.random.Generator, studies: int, seeds: int, examples: int) -> Draws:
    """Draws the random numbers of a batch of studies."""

    def normal(*shape: int) -> Floats:
        numbers: NDArray[np.float32] = random.standard_normal(shape, dtype=np.float32)
        return numbers.astype(np.float64)

    shared = math.sqrt(1 - OWN - NOISE) * normal(1, studies, 1, examples)
    hard = shared + math.sqrt(OWN) * normal(2, studies, 1, examples)
    luck = hard + math.sqrt(NOISE) * normal(2, studies, seeds, examples)
    return Draws(luck, normal(2, studies, seeds, 1), hard, random)


@dataclass(frozen=True)
class SimulatedMetric:
    """A metric whose true effect is known.

    Attributes:
        examples: Test examples of a study.
        margin: In the unit of the differences.
        simulate: From the draws, true effects and the spread (both in the unit of the differences) to a pair for each
            effect: paired differences, shape (studies, seeds, examples), and the truth, shape (studies,).
        limit: The largest possible absolute difference of an example; `None` if it is not known.
        spreads: Which are simulated.
    """

    examples: int
    margin: float
    simulate: Callable[[Draws, Sequence[float], float], Iterator[tuple[Floats, Floats]]]
    limit: float | None = None
    spreads: Sequence[float] = SPREADS


def simulate_accuracy(draws: Draws, effects: Sequence[float], spread: float) -> Iterator[tuple[Floats, Floats]]:
    """Hits; the reference has an accuracy of 94.5 %."""
    reference = _hits(draws, 0, 0.0, spread)
    for effect in effects:
        yield _hits(draws, 1, effect, spread) - reference, np.full(len(reference), effect)


def simulate_rare_changes(draws: Draws, effects: Sequence[float], _: float) -> Iterator[tuple[Floats, Floats]]:
    """Few answers differ, by all seeds alike: losses alone, but as many gains where both are equally good."""
    yield from _rare_changes(draws, effects, 1.0)


def simulate_rare_changes_of_half(draws: Draws, effects: Sequence[float], _: float) -> Iterator[tuple[Floats, Floats]]:
    """The same with twice as many answers, each of which changes with half of the seeds."""
    yield from _rare_changes(draws, effects, 0.5)


def _rare_changes(draws: Draws, effects: Sequence[float], share: float) -> Iterator[tuple[Floats, Floats]]:
    """Changes of answers, each seen by a share of the seeds."""
    luck = ndtr(draws.hard[0] / math.sqrt(1 - NOISE))
    seen = draws.random.random(draws.luck.shape[1:]) < share
    for effect in effects:
        lost = max(-effect, POINTS / 2) / share
        gained = lost + effect / share
        changes = np.where(luck < lost, -1.0, np.where(luck < lost + gained, 1.0, 0.0))
        yield changes * seen, np.full(len(changes), effect)


def simulate_seeds_only(draws: Draws, effects: Sequence[float], spread: float) -> Iterator[tuple[Floats, Floats]]:
    """Means of seeds on one given test set, as for a metric that is no mean over examples."""
    reference, chance = _hits(draws, 0, 0.0, spread), _chance(draws, 0, 0.0, spread)
    for effect in effects:
        means = (_hits(draws, 1, effect, spread) - reference).mean(-1, keepdims=True)
        yield means, (_chance(draws, 1, effect, spread) - chance).mean(-1)


def _sigma(spread: float) -> float:
    return spread / (math.sqrt(2) * float(norm.pdf(ndtri(ACCURACY))))


def _threshold(effect: float, spread: float) -> float:
    return math.sqrt(1 + _sigma(spread) ** 2) * float(ndtri(ACCURACY + effect))


def _hits(draws: Draws, which: int, effect: float, spread: float) -> Floats:
    limits = _threshold(effect, spread) + _sigma(spread) * draws.quality[which]
    return np.asarray(draws.luck[which] < limits, dtype=np.float64)


def _chance(draws: Draws, which: int, effect: float, spread: float) -> Floats:
    """Chance of a hit on each example of a given test set, over all seeds."""
    distance = _threshold(effect, spread) - draws.hard[which, :, 0]
    return np.asarray(ndtr(distance / math.sqrt(NOISE + _sigma(spread) ** 2)))


def simulate_auroc(draws: Draws, effects: Sequence[float], spread: float) -> Iterator[tuple[Floats, Floats]]:
    """Scores of 30 % positive examples; the reference has an area under the ROC curve of 0.975."""
    labels = draws.random.random(draws.hard.shape[1::2]) < POSITIVE
    sigma = spread / float(norm.pdf(ndtri(AUROC)))

    def values(which: int, effect: float) -> Floats:
        shift = math.sqrt(2 + sigma**2) * ndtri(AUROC + effect) + sigma * draws.quality[which]
        scores = draws.luck[which] + labels[:, None] * shift
        return _pseudo_values(scores, lambda study, numbers: auroc_pseudo_values(labels[study], numbers))

    reference = values(0, 0.0)
    for effect in effects:
        yield values(1, effect) - reference, np.full(len(labels), effect)


def simulate_f1(draws: Draws, effects: Sequence[float], spread: float) -> Iterator[tuple[Floats, Floats]]:
    """Predictions for 30 % positive examples with 2 % false alarms; the reference has an F1 score of 0.9."""
    labels = draws.random.random(draws.hard.shape[1::2]) < POSITIVE
    plain = brentq(lambda threshold: _mean_f1(threshold, 0.0) - F1, -3, 6)
    slope = (_mean_f1(plain + 1e-3, 0.0) - _mean_f1(plain - 1e-3, 0.0)) / 2e-3
    sigma = spread / (math.sqrt(2) * slope)

    def values(which: int, effect: float) -> Floats:
        threshold = brentq(lambda threshold: _mean_f1(threshold, sigma) - F1 - effect, -3, 9)
        limits = np.where(labels[:, None], threshold + sigma * draws.quality[which], ndtri(ALARMS))
        hits = (draws.luck[which] < limits).astype(np.float64)
        return _pseudo_values(hits, lambda study, numbers: f1_pseudo_values(labels[study], numbers > 0))

    reference = values(0, 0.0)
    for effect in effects:
        yield values(1, effect) - reference, np.full(len(labels), effect)


def _mean_f1(threshold: float, sigma: float) -> float:
    """The F1 score of all examples there could be, averaged over seeds by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    hits = POSITIVE * ndtr(threshold + sigma * nodes)
    scores = 2 * hits / (hits + POSITIVE + (1 - POSITIVE) * ALARMS)
    return float((scores * weights).sum() / weights.sum())


def simulate_log_perplexity(draws: Draws, effects: Sequence[float], spread: float) -> Iterator[tuple[Floats, Floats]]:
    """Mean losses of documents of different lengths; smaller is better."""
    tokens = draws.random.lognormal(5.0, 0.8, draws.hard.shape[1::2])
    noise = 2.0 * (draws.luck - draws.hard) / np.sqrt(tokens[:, None])  # of a run
    losses = 3.0 + 0.3 * draws.hard + noise + spread / math.sqrt(2) * draws.quality
    reference, other = (
        _pseudo_values(each, lambda study, numbers: weighted_mean_pseudo_values(numbers, tokens[study]))
        for each in losses
    )
    for effect in effects:
        yield reference - other + effect, np.full(len(tokens), effect)


def _pseudo_values(table: Floats, of_run: Callable[[int, Floats], Floats | None]) -> Floats:
    """Applies a function to every run of every study."""
    found = np.empty(table.shape)
    for place in np.ndindex(table.shape[:2]):
        values = of_run(place[0], table[place])
        if values is None:
            msg = "a simulated test set is too small for pseudo-values"
            raise RuntimeError(msg)
        found[place] = values
    return found


METRICS = {
    "accuracy": SimulatedMetric(800, POINTS, simulate_accuracy, 1.0),
    "auroc": SimulatedMetric(400, POINTS, simulate_auroc),
    "f1": SimulatedMetric(400, POINTS, simulate_f1),
    "log_perplexity": SimulatedMetric(200, PERCENT, simulate_log_perplexity),
    "seeds_only": SimulatedMetric(800, POINTS, simulate_seeds_only),
    "rare_changes": SimulatedMetric(1500, POINTS, simulate_rare_changes, 1.0, (0.0,)),
    "rare_changes_of_half": SimulatedMetric(800, POINTS, simulate_rare_changes_of_half, 1.0, (0.0,)),
}


def judge(
    differences: Floats, truth: Floats, bound: Floats, limit: float | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Judges many studies at once, as `paired_difference` and its test judge one.

    Args:
        differences: shape (studies, seeds, examples).
        truth: shape (studies,), the true effects.
        bound: shape (studies,), what the mean must be proven to exceed.
        limit: The largest possible absolute difference of an example, if it is known; then each study is judged by
            `paired_difference` itself.

    Returns:
        Whether the interval contains the truth, and whether the test proves the bound exceeded; each of shape
        (studies,). If all differences are 0, the interval is [0, 0]; if all equal another number, there is no interval,
        which claims nothing.
    """
    if limit is not None:
        single = [paired_difference(table, limit) for table in differences]
        covered = [found.covered.contains(true) for found, true in zip(single, truth, strict=True)]
        proven = [found.p_value_above(least) <= ERROR_RATE for found, least in zip(single, bound, strict=True)]
        return np.array(covered), np.array(proven)
    mean = differences.mean((-2, -1))
    several = differences.shape[-1] > 1
    found = ([two_way_estimate(differences)] if several else []) + [seeds_estimate(differences.mean(-1))]
    half, p = np.zeros(len(mean)), np.zeros(len(mean))
    for error, freedom in found:
        usable = error > 0
        half = np.where(usable, np.maximum(half, stdtrit(freedom, 0.975) * error), half)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.where(usable, np.maximum(p, stdtr(freedom, (bound - mean) / error)), p)
    # As `paired_difference`: equal differences other than 0 show no variance to judge by.
    no_interval = (np.ptp(differences, (-2, -1)) <= ROUNDING * np.abs(differences).max((-2, -1))) & (mean != 0)
    return (np.abs(mean - truth) <= half) | no_interval, (p <= ERROR_RATE) & ~no_interval


def bootstrap(
    random: np.random.Generator, differences: Floats, truth: Floats, bound: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Judges studies by percentiles of means over seeds and examples that are drawn with replacement."""
    seeds, examples = differences.shape[1:]
    of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    of_examples = random.multinomial(examples, np.full(examples, 1 / examples), RESAMPLES) / examples
    means = np.einsum("bs,nsi,bi->nb", of_seeds, differences, of_examples, optimize=True)
    low, lower, high = np.quantile(means, [0.025, 0.05, 0.975], axis=1)
    return (low <= truth) & (truth <= high), lower > bound


@dataclass(frozen=True)
class Cell:
    """One line of the table: rates in percent.

    Attributes:
        metric: A key of `METRICS`.
        spread: In points or percent.
        seeds: Number of seeds.
        studies: Number of simulated studies.
        coverage: Of the 95 % interval, at a true effect of one margin.
        proven: Share of proven studies by true effect in margins; at -1 and below each proof is an error.
        bootstrap_coverage: Of the bootstrap's 95 % interval.
        bootstrap_error: Proofs by the bootstrap at a true effect of one margin.
        worst_seed_error: Proofs by the worst seed at a true effect of one margin.
        worst_seed_power: Proofs by the worst seed without an effect.
    """

    metric: str
    spread: float
    seeds: int
    studies: int
    coverage: float
    proven: dict[str, float]
    bootstrap_coverage: float
    bootstrap_error: float
    worst_seed_error: float
    worst_seed_power: float


def simulate_cell(metric: str, spread: float, seeds: int, studies: int = STUDIES) -> Cell:
    """Simulates studies of one kind.

    Args:
        metric: A key of `METRICS`.
        spread: Standard deviation between seeds of the difference, in points or percent.
        seeds: Number of seeds, at least 2.
        studies: Number of studies.

    Returns:
        How often they are right.
    """
    kind = METRICS[metric]
    random = np.random.default_rng([*metric.encode(), round(10 * spread), seeds])
    counts: dict[str, list[NDArray[np.bool_]]] = {}
    for size in batch_sizes(studies):
        draws = draw(random, size, seeds, kind.examples)
        simulated = kind.simulate(draws, [effect * kind.margin for effect in EFFECTS], spread / 100)
        for effect, (differences, truth) in zip(EFFECTS, simulated, strict=True):
            bound = truth - (1 + effect) * kind.margin
            covered, proven = judge(differences, truth, bound, kind.limit)
            counts.setdefault(f"proven {effect:g}", []).append(proven)
            if effect == -1:
                resampled = bootstrap(random, differences, truth, bound)
                for name, found in zip(("covered", "boot covered", "boot"), (covered, *resampled), strict=True):
                    counts.setdefault(name, []).append(found)
            worst = differences.mean(-1).min(-1) >= bound
            counts.setdefault(f"worst {effect:g}", []).append(worst)
    rates = {name: 100 * float(np.concatenate(found).mean()) for name, found in counts.items()}
    by_effect = {f"{effect:g}": rates[f"proven {effect:g}"] for effect in EFFECTS}
    others = [rates[name] for name in ("boot covered", "boot", "worst -1", "worst 0")]
    return Cell(metric, spread, seeds, studies, rates["covered"], by_effect, *others)


def batch_sizes(studies: int) -> Iterator[int]:
    """Splits studies into batches that fit into memory."""
    for start in range(0, studies, BATCH):
        yield min(BATCH, studies - start)


def markdown_table(cells: Sequence[Cell]) -> str:
    """Formats cells as a table of docs/statistics.md."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
    for cell in cells:
        p = cell.proven
        rates = [cell.coverage, p["-1"], p["-1.5"], p["0"], cell.bootstrap_coverage, cell.bootstrap_error]
        rates += [cell.worst_seed_error, cell.worst_seed_power]
        shown = " | ".join(f"{rate:.1f}" for rate in rates)
        lines.append(f"| {cell.metric.replace('_', ' ')} | {cell.spread:g} | {cell.seeds} | {shown} |")
    return "\n".join(lines)


def json_lines(cells: Sequence[Cell]) -> str:
    """Formats cells as a JSON list with one line each."""
    return "[\n" + ",\n".join(json.dumps(asdict(cell)) for cell in cells) + "\n]\n"


def write_page(page: Path, cells: Sequence[Cell]) -> None:
    """Replaces the table in a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{markdown_table(cells)}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    """Simulates the cells that are asked for, and keeps others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric", nargs="*", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--spread", nargs="*", type=float, default=list(SPREADS), choices=SPREADS)
    parser.add_argument("--studies", type=int, default=STUDIES, help="studies a cell")
    parser.add_argument("--json", type=Path, help="where cells are kept; others than those asked for stay")
    parser.add_argument("--page", type=Path, help="a page whose table is replaced")
    options = parser.parse_args()
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    asked = [(name, spread) for name in options.metric for spread in METRICS[name].spreads if spread in options.spread]
    cells = [Cell(**each) for each in kept if (each["metric"], each["spread"]) not in asked]
    for metric, spread in asked:
        cells += [simulate_cell(metric, spread, seeds, options.studies) for seeds in SEEDS]
        cells.sort(key=lambda cell: (list(METRICS).index(cell.metric), cell.spread, cell.seeds))
        if options.json:
            options.json.write_text(json_lines(cells))
    if options.page:
        write_page(options.page, cells)
    print(json_lines(cells))


if __name__ == "__main__":
    main()
