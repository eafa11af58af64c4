"""What a compressed folder says of itself: numbers as JSON, a picture, and a section of its model card."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.artefacts.compress_results import ChosenThreshold, CompressResult, RankMeasurement
from lora_lightning.artefacts.rank_trials import shown_ends
from lora_lightning.figures.compression import RankPoint, compression_figure
from lora_lightning.figures.png import png_bytes
from lora_lightning.lora.config import LoraSettings
from lora_lightning.statistics import Metric, Verdict
from lora_lightning.statistics.verdicts import shown_margin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON, PICTURE = "compression.json", "compression.png"


def verdict_sentences(result: CompressResult) -> tuple[str, str]:
    """What was found, in words.

    Args:
        result: The compression.

    Returns:
        What the validation split says, and whether the test split confirms it.
    """
    margin, chosen = shown_margin(result.metric), result.chosen
    if chosen is result.full:
        found = result.sequence[0]
        first = (
            f"No rank below {result.r} is proven enough for this adapter: {found.name} is {_in_words(found)} on "
            f"{result.measured_on} (difference {shown_ends(found.difference, result.metric)}, margin {margin})."
        )
        more = _missing(found, result.metric)
        return first, f"The folder holds rank {result.r}, as it was trained. {more}".rstrip()
    what = f"k = {result.k}" if chosen.rule == "uniform" else chosen.name
    first = (
        f"{what} is enough for this adapter: {result.metric.name} is not worse than that of the full adapter by more "
        f"than {margin} (difference {shown_ends(chosen.difference, result.metric)}, 95 % interval) on "
        f"{result.measured_on}."
    )
    return first, _confirmation(result)


def _confirmation(result: CompressResult) -> str:
    difference = shown_ends(result.test.difference, result.metric)
    if result.is_tested_on_validation:
        return (
            f"Not confirmed: {result.tested_on}, has the rows of the validation split, on which the rank was chosen "
            f"(difference {difference}); train with data.test_share, such as 0.2, to hold out other rows, or give the "
            "data of another test split."
        )
    state = "Confirmed" if result.confirmed else "Not confirmed: undecided"
    return f"{state} on {result.tested_on}: difference {difference}."


def _missing(found: RankMeasurement, metric: Metric) -> str:
    """What would decide, if that is known."""
    if found.verdict is not Verdict.UNDECIDED or found.missing_examples is None:
        return ""
    return (
        f"At a margin of {shown_margin(metric)} a proof takes about {found.missing_examples:,} examples; a larger "
        "--margin takes fewer."
    )


def _in_words(found: RankMeasurement) -> str:
    return {
        Verdict.WORSE: "worse by more than the margin",
        Verdict.UNDECIDED: "undecided",
        Verdict.NOT_ENOUGH_EVIDENCE: "not proven for lack of evidence",
    }.get(found.verdict or Verdict.UNDECIDED, str(found.verdict))


def result_notes(result: CompressResult, lora: LoraSettings | None) -> list[str]:
    """Sentences about what a user might not expect.

    Args:
        result: The compression.
        lora: The settings of the run.

    Returns:
        The sentences.
    """
    notes = [] if result.threshold is None else [threshold_note(result.threshold, result.tested_on)]
    if result.sizes.written >= result.sizes.full:
        notes.append(
            f"the written folder is not smaller than the run's own ({result.sizes.written:,} against "
            f"{result.sizes.full:,} bytes), because {_why_not_smaller(result)}."
        )
    if result.layout == "mixed":
        notes.append("mixed ranks are right in PEFT only: other loaders read one alpha and one r.")
    if lora is not None and lora.use_dora:
        notes.append(
            "under DoRA the low-rank part of the direction was truncated, and the trained magnitudes were kept; DoRA "
            "is right in PEFT only."
        )
    if not result.rivals:
        reason = "adapters of experts have one rank" if result.k < result.r else "no lower rank is proven to be enough"
        notes.append(f"no other choice of ranks was compared, because {reason}.")
    return notes


def _why_not_smaller(result: CompressResult) -> str:
    reasons, k = [], max(result.chosen.ranks.values())
    if result.k == result.r:
        reasons.append("no lower rank is proven to be enough")
    if result.layout == "portable" and result.rank > k:
        reasons.append(f"portable ranks are 8, 16, 32, 64, 128 and 256 (--layout exact pads to k = {k} alone)")
    if result.sizes.full < result.sizes.full_in_float32:
        reasons.append("the run's own is in 16 bits, and the written one in float32")
    return " and because ".join(reasons) or "the layers were trained at different ranks, and one rank holds all"


def threshold_note(found: ChosenThreshold, tested_on: str) -> str:
    """What the threshold in the folder is, and what follows it on the test split.

    Args:
        found: The threshold.
        tested_on: What the test examples are.

    Returns:
        A sentence.
    """
    words = {
        "out_of_scope_threshold": "for queries out of scope",
        "label_threshold": "for labels",
        "null_threshold": "for unanswerable questions",
    }
    chosen = (
        f"the threshold {words.get(found.name, found.name)} was chosen again on validation, by the written adapter: "
        f"{found.written:.4g} ({found.full:.4g} for the full one)"
    )
    parts = [f"{name} {written:.4g} ({full:.4g})" for name, (full, written) in found.metrics.items()]
    return f"{chosen}; with it, {tested_on.partition(',')[0]} has {', '.join(parts)}." if parts else f"{chosen}."


def write_report(result: CompressResult, folder: Path) -> None:
    """Writes JSON, picture and card into an adapter folder.

    Args:
        result: The compression.
        folder: Has a README.md if the model has a card.

    Raises:
        OSError: If the disk is full.
    """
    (folder / JSON).write_text(json.dumps(result.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / PICTURE).write_bytes(png_bytes(result_figure(result)))
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").rstrip() if card.is_file() else "# LoRA adapter"
    card.write_text(f"{text}\n\n{card_section(result)}", encoding="utf-8")


def result_figure(result: CompressResult) -> "Figure":
    """Draws quality against k."""
    return compression_figure(
        result.metric,
        _point(result.full, result.r),
        [_point(_on_all_examples(found, result), found.k) for found in result.sequence],
        [_point(_on_all_examples(found, result)) for found in result.rivals],
        result.k,
    )


def _on_all_examples(found: RankMeasurement, result: CompressResult) -> RankMeasurement:
    """What was measured on some examples stands at its difference from the full adapter, which is on the same ones."""
    sign = 1.0 if result.metric.higher_is_better else -1.0
    return replace(found, value=result.full.value + sign * found.difference.value)


def _point(found: RankMeasurement, rank: float | None = None) -> RankPoint:
    """A rival stands at the mean rank of its layers."""
    place = sum(found.ranks.values()) / len(found.ranks) if rank is None else rank
    return RankPoint(place, found.value, found.difference, found.verdict)


def card_section(result: CompressResult) -> str:
    """The section of the model card about the compression.

    Args:
        result: The compression.

    Returns:
        Markdown.
    """
    padded = ", padded with zeros" if result.rank > min(result.chosen.ranks.values()) else ""
    layout = (
        f"`lora_alpha` = r everywhere; ranks are {min(result.chosen.ranks.values())} to {result.rank}."
        if result.layout == "mixed"
        else f"Every layer has rank {result.rank}{padded}, `lora_alpha` = r, and the scaling is in the factors."
    )
    rows = [_table_row(found, result) for found in result.validation]
    loaders = [
        f"| {found.target} | {found.outcome} | {'; '.join(found.reasons)} | {found.read_on} |"
        for found in result.loaders
    ]
    lines = [
        "## Compression",
        "",
        "The adapter of a training run was truncated by singular value decomposition of each update.",
        *verdict_sentences(result),
        layout,
        "",
        f"![quality against rank]({PICTURE})",
        "",
        f"| ranks | parameters | examples | {result.metric.name} | difference (95 % interval) | verdict |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *rows,
        "",
        "| loader | loads it | why | rules of |",
        "| --- | --- | --- | --- |",
        *loaders,
    ]
    return "\n".join(lines) + "\n"


def _table_row(found: RankMeasurement, result: CompressResult) -> str:
    value = "undefined" if math.isnan(found.value) else f"{result.metric.shown_value(found.value):.4g}"
    difference = "" if math.isnan(found.difference.value) else shown_ends(found.difference, result.metric)
    verdict = "" if found.verdict is None else str(found.verdict)
    return f"| {found.name} | {found.parameters:,} | {found.examples:,} | {value} | {difference} | {verdict} |"
