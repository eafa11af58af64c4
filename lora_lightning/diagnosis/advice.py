"""When to use which precision, as far as verdicts and costs tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_lightning.diagnosis.costs import INFERENCE, PEAK_MEMORY, PROCESS_MEMORY, STEP, WEIGHTS, CostTable
from lora_lightning.diagnosis.merge_recovery import DEQUANTIZED, KEPT, MergeRecoveries
from lora_lightning.diagnosis.rank_threshold import PrecisionLoss
from lora_lightning.diagnosis.specification import Diagnosis
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.diagnosis.verdicts import DiagnosisVerdict, State
from lora_lightning.statistics.jackknife import Interval

MATTERS = 5.0  # percent of a cost
REQUANTIZED = "requantized"
NAMES = {WEIGHTS: "memory of the weights", PEAK_MEMORY: "peak memory", STEP: "time a step"}
NAMES |= {cost: f"inference time in batches of {cost.rpartition('_')[2]}" for cost in INFERENCE}


@dataclass(frozen=True)
class Advice:
    """When to use which precision.

    Attributes:
        use_quantized: Reasons for the quantized precision.
        use_full: Reasons for the other one.
        missing: What is not decided.
        if_quantized: What to do if the quantized precision is used, which is no reason to use it; empty without one.
    """

    use_quantized: tuple[str, ...]
    use_full: tuple[str, ...]
    missing: tuple[str, ...]
    if_quantized: tuple[str, ...] = ()


def advise(
    diagnosis: Diagnosis,
    verdicts: Sequence[DiagnosisVerdict],
    costs: CostTable,
    loss: PrecisionLoss | None,
    merges: MergeRecoveries | None,
) -> Advice:
    """Says when to use which precision.

    Args:
        diagnosis: The diagnosis.
        verdicts: Its verdicts.
        costs: What configurations cost.
        loss: Both precisions at the compared rank; `None` if runs are missing.
        merges: Of merge targets.

    Returns:
        Reasons, each with its numbers. Costs are listed whether or not quality is decided, which they say.
    """
    by_name = {each.name: each for each in verdicts}
    quality, skip = by_name[VerdictName.NOT_WORSE], by_name[VerdictName.SKIP_LIST_PROVEN]
    savings = _savings(diagnosis, costs)
    cheaper = _told(savings, diagnosis.quantized, 1)
    dearer = _told(savings, diagnosis.quantized, -1)
    use_quantized, use_full = [], []
    missing = []
    if not cheaper:
        missing.append(f"It is not measured that {diagnosis.quantized} saves {MATTERS:g} % of memory or time.")
    elif quality.state is State.YES:
        use_quantized.append(f"{cheaper} counts: {quality.sentence}")
    else:
        use_quantized.append(f"{cheaper} counts more than quality, {_doubt(quality, loss)}")
    if quality.state is State.NO:
        use_full.append(f"quality counts: {quality.sentence}")
    elif quality.state is State.UNDECIDED and loss is not None and loss.is_loss:
        use_full.append(f"quality counts, of which some is lost, by more than the margin or not: {quality.sentence}")
    if dearer:
        use_full.append(f"{dearer} counts")
    conditions = [f"leave the sensitive modules unquantized: {skip.sentence}"] if skip.state is State.YES else []
    conditions += _on_merges(by_name[VerdictName.MERGE_KEEPS_GAIN].state, merges)
    missing += [*_not_told(savings, diagnosis), *_not_compared(costs)]
    missing += [
        each.sentence
        for each in verdicts
        if each.state in {State.UNDECIDED, State.MISSING} and not (each is skip and diagnosis.proof is None)
    ]
    return Advice(tuple(use_quantized), tuple(use_full), tuple(missing), tuple(conditions) if use_quantized else ())


def _doubt(quality: DiagnosisVerdict, loss: PrecisionLoss | None) -> str:
    if quality.state is State.NO:
        return "which is lost"
    if loss is not None and loss.is_loss:
        return "of which some is lost, by more than the margin or not"
    return "of which a loss is not ruled out"


def _savings(diagnosis: Diagnosis, costs: CostTable) -> dict[str, Interval]:
    """What the quantized precision saves at the compared rank, in percent, by cost."""
    name = diagnosis.configuration(diagnosis.quantized, diagnosis.rank)
    row = next((row for row in costs.rows if row.configuration == name), None)
    return {} if row is None else {cost: row.savings[cost] for cost in NAMES if cost in row.savings}


def _is_told(cost: str, saving: Interval) -> bool:
    """Whether a saving is more than chance: what is counted is, what is measured needs an interval without 0."""
    return cost == WEIGHTS or saving.low > 0 or saving.high < 0


def _told(savings: Mapping[str, Interval], quantized: str, sign: int) -> str:
    """Names the costs that the quantized precision has less of (`sign` 1) or more of (-1), with numbers."""
    told = {cost: each for cost, each in savings.items() if _is_told(cost, each) and sign * each.value >= MATTERS}
    return " or ".join(f"{NAMES[cost]} ({quantized} takes {_percent(each)})" for cost, each in told.items())


def _not_told(savings: Mapping[str, Interval], diagnosis: Diagnosis) -> list[str]:
    """Names the costs that differ, but perhaps by chance."""
    return [
        f"Whether {NAMES[cost]} differs is not told from noise: {diagnosis.quantized} takes {_percent(each)}"
        + (", with one seed." if math.isnan(each.low) else ".")
        for cost, each in savings.items()
        if not _is_told(cost, each) and abs(each.value) >= MATTERS
    ]


def _not_compared(costs: CostTable) -> list[str]:
    notes = [costs.note_on_devices] if costs.note_on_devices else []
    if costs.is_process_memory and any(PEAK_MEMORY in row.costs for row in costs.rows):
        notes.append(f"Peak memory is not compared: {PROCESS_MEMORY}.")
    return notes


def _percent(saving: Interval) -> str:
    """Such as `60 % less`, or `43 % more, 95 % interval 40 to 46`."""
    if saving.value < 0:
        more = Interval(-saving.value, -saving.high, -saving.low)
        return f"{more.value:.0f} % more{_ends(more)}"
    return f"{saving.value:.0f} % less{_ends(saving)}"


def _ends(found: Interval) -> str:
    return f", 95 % interval {found.low:.0f} to {found.high:.0f}" if found.low < found.high else ""


def _on_merges(kept: State, merges: MergeRecoveries | None) -> list[str]:
    """Where the adapter belongs if a merge into the quantized base, or into the dequantized one, loses its gain."""
    again = "quantizing the merged model again loses a part of the adapter's gain"
    loses_again = merges is not None and _loses(merges, REQUANTIZED)
    if kept is State.NO:
        return [f"keep its adapter apart: even merged into the {DEQUANTIZED} base, it loses a part of its gain"]
    if not loses_again:
        return []
    if kept is State.YES:
        return [f"keep its adapter apart or merge it into the {DEQUANTIZED} base: {again}"]
    return [f"keep its adapter apart: {again}, and that a merge into the {DEQUANTIZED} base keeps it is not proven"]


def _loses(merges: MergeRecoveries, target: str) -> bool:
    found = next((each.recovery for each in merges.targets if each.target == target), None)
    return found is not None and found.has_gain and found.ratio.high < KEPT
