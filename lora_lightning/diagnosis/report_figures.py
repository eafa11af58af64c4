"""The figures of a diagnosis's report, with what they show in words."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from lora_lightning.diagnosis.adapter_similarity import AdapterSimilarity, PairKind
from lora_lightning.diagnosis.base_errors import BaseErrors
from lora_lightning.diagnosis.costs import PEAK_MEMORY, STEP, WEIGHTS
from lora_lightning.diagnosis.effects import Direction, Grouping, groups_of
from lora_lightning.diagnosis.findings import Findings
from lora_lightning.diagnosis.model_behavior import Behaviors
from lora_lightning.diagnosis.sensitivity import Sensitivity
from lora_lightning.figures.diagnosis import (
    alike_figure,
    cost_quality_figure,
    module_maps_figure,
    precision_ranks_figure,
    scores_figure,
    spectra_figure,
)
from lora_lightning.figures.study import axis_label, words
from lora_lightning.reports.files import ReportFigure
from lora_lightning.statistics.pareto import NO_TEST

SHARED_START = (
    "Two precisions with one seed share A at the start, and are near each other for that alone; what stands beside "
    "another seed is another precision and seed."
)
DRAWN_COSTS = (WEIGHTS, PEAK_MEMORY, STEP)


def similarity_figures(findings: Findings, found: AdapterSimilarity) -> tuple[ReportFigure, ...]:
    """Draws similarities by layer and module, and spectra."""
    panels = {kind.shown: {each.module: each.cosine[kind] for each in found.modules} for kind in _kinds(found)}
    spectra: dict[str, dict[str, list[float]]] = {}
    for place, precision in enumerate(findings.precisions):
        kinds: dict[str, list[Sequence[float]]] = {}
        for each in found.modules:
            kinds.setdefault(each.kind, []).append(each.spectra[place])
        spectra[precision] = {
            kind: [fmean(values) for values in zip(*group, strict=False)] for kind, group in kinds.items()
        }
    text = f"Cosine of the updates of two adapters by layer and module, by what differs between them. {SHARED_START}"
    return (
        ReportFigure("similarity", "Similarity of updates", text, module_maps_figure(panels, "cosine of dW", (0, 1))),
        *_angle_figures(found),
        ReportFigure(
            "spectra",
            "Spectra",
            "Singular values of the updates by kind of module, averaged over layers and seeds, for both precisions.",
            spectra_figure(spectra),
        ),
    )


def _kinds(found: AdapterSimilarity) -> list[PairKind]:
    return [kind for kind in PairKind if kind in found.by_kind]


def _angle_figures(found: AdapterSimilarity) -> tuple[ReportFigure, ...]:
    """Draws principal angles and overlaps by layer and module, by what differs between two adapters."""
    angles = {kind.shown: {each.module: each.largest_angle[kind] for each in found.modules} for kind in _kinds(found)}
    text = (
        "The largest principal angle between the column or row spaces of two updates, by layer and module; 90 degrees: "
    )
    text += f"a direction of one that the other one has nothing of. {SHARED_START}"
    figures = [ReportFigure("angles", "Principal angles", text, module_maps_figure(angles, "degrees", (0, 90)))]
    for side, spaces in (("outputs", "column"), ("inputs", "row")):
        overlaps = {
            kind.shown: {each.module: getattr(each, f"{side[:-1]}_overlap")[kind] for each in found.modules}
            for kind in _kinds(found)
        }
        text = f"Overlap of the {spaces} spaces ({side}) of two updates, the mean squared cosine of principal angles, "
        text += f"by layer and module. {SHARED_START}"
        figure = module_maps_figure(overlaps, "overlap", (0, 1))
        figures.append(ReportFigure(f"overlaps_{side}", f"Overlap of subspaces, {side}", text, figure))
    return tuple(figures)


def errors_figure(found: BaseErrors) -> ReportFigure:
    """Draws the error of quantizing each weight."""
    panels = {"relative error": {each.module: each.error for each in found.layers}}
    text = "The relative error of quantizing each weight, by layer and module."
    return ReportFigure("errors", "Quantization error", text, module_maps_figure(panels, "||W - Q(W)|| / ||W||"))


def sensitivity_figures(found: Sensitivity) -> tuple[ReportFigure, ...]:
    """Draws scores by layer and module, and against measured divergences if the task has any."""
    panels = {"Fisher score": {score.module: score.fisher for score in found.scores}}
    by_module = {score.module: score for score in found.scores}
    points = {}
    for grouping in (Grouping.KIND, Grouping.LAYER, Grouping.MODULE):
        own = [each for each in found.effects if each.grouping is grouping and each.direction is Direction.IN]
        groups = (
            {each.group: [each.group] for each in own}
            if grouping is Grouping.MODULE
            else groups_of(by_module, grouping)
        )
        points[str(grouping)] = [
            (sum(by_module[name].fisher for name in groups[each.group]), each.divergence.value) for each in own
        ]
    return (
        ReportFigure(
            "sensitivity",
            "Sensitivity",
            "The score of one backward pass for quantizing each module, by layer and module. It ranks modules.",
            module_maps_figure(panels, "score"),
        ),
        *_scores_figure(found, points),
    )


def _scores_figure(found: Sensitivity, points: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[ReportFigure, ...]:
    if not any(math.isfinite(divergence) for pairs in points.values() for _, divergence in pairs):
        return ()
    return (
        ReportFigure(
            "scores",
            "Cheap score against measurement",
            "Measured divergence of the predictions against the sum of Fisher scores, for kinds, layers and "
            f"{len(found.singles)} of {len(found.scores)} modules, those with the largest scores. Scores rank: their "
            "size is that of a divergence only for a model that is as sure as it is right, with one label an example.",
            scores_figure(points),
        ),
    )


def behavior_figures(found: Behaviors) -> tuple[ReportFigure, ...]:
    """Draws the similarity of hidden states by layer, as means over pairs."""
    kinds = {kind: [pair.layers for pair in found.pairs if pair.kind is kind and pair.layers] for kind in PairKind}
    known = {kind.shown: pairs for kind, pairs in kinds.items() if pairs}
    if not known:
        return ()
    counts = " and ".join(f"{len(pairs)} ({kind})" for kind, pairs in known.items())
    names = {"cka": ("Hidden states", "debiased linear CKA"), "cosine": ("Embedding similarity", "mean cosine")}
    return tuple(
        ReportFigure(
            f"layers_{name}",
            title,
            f"{label} of the hidden states after each layer, by what differs between two models; means over pairs: "
            f"{counts}. Two precisions with one seed share adapter and head at the start, and are near each other for "
            "that alone; what stands beside another seed is another precision and seed.",
            alike_figure(
                {
                    kind: [fmean(getattr(each, name) for each in layer) for layer in zip(*pairs, strict=True)]
                    for kind, pairs in known.items()
                },
                label,
            ),
        )
        for name, (title, label) in names.items()
    )


def ranks_figure(findings: Findings) -> ReportFigure:
    """Draws quality against rank for both precisions."""
    found = findings.ranks
    means = {each.precision: each.means for each in found.precisions}
    enough = {each.precision: each.smallest for each in found.precisions}
    return ReportFigure(
        "ranks",
        f"{words(findings.metric.name)} against rank",
        "Means over all seeds of each, whose number is in the table, with 95 % intervals where there are two or more; "
        "verdicts compare the same seeds. A ring marks the least rank proven to be enough.",
        precision_ranks_figure(means, enough, axis_label(None, findings.metric)),
    )


def shown_seeds(seeds: Sequence[int]) -> str:
    """Names seeds, such as `the seeds 0, 1, 2`."""
    return f"the seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def costs_figures(findings: Findings) -> tuple[ReportFigure, ...]:
    """Draws quality against memory and time."""
    found, label = findings.costs, axis_label(None, findings.metric)
    places = {precision: place for place, precision in enumerate(findings.precisions)}
    figures = []
    for cost in DRAWN_COSTS:
        front = found.pareto.get(cost)
        if front is not None and front.points:
            points = {
                row.configuration: (places[row.precision], *front.points[row.configuration])
                for row in found.rows
                if row.configuration in front.points
            }
            figure = cost_quality_figure(points, front.best, words(cost), label)
            text = f"{label} against {words(cost)}, as means over {shown_seeds(front.seeds)}, which all configurations "
            text += f"here have; on the Pareto front: {', '.join(front.best)}. {NO_TEST}"
            lacking = [row.configuration for row in found.rows if row.configuration not in front.points]
            text += f" Not measured, and not drawn: {', '.join(lacking)}." if lacking else ""
            figures.append(ReportFigure(f"cost_{cost}", f"Quality against {words(cost)}", text, figure))
    return tuple(figures)
