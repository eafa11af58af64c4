"""The report of a diagnosis: its findings as one HTML page, with figures as files."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

from lora_lightning.diagnosis import report_tables as tables
from lora_lightning.diagnosis.adapter_similarity import AdapterSimilarity, PairKind
from lora_lightning.diagnosis.base_errors import BaseErrors
from lora_lightning.diagnosis.effects import Direction, Effect, Grouping
from lora_lightning.diagnosis.findings import Findings, note_on_options
from lora_lightning.diagnosis.model_behavior import Behaviors
from lora_lightning.diagnosis.report_figures import (
    behavior_figures,
    costs_figures,
    errors_figure,
    ranks_figure,
    sensitivity_figures,
    shown_seeds,
    similarity_figures,
)
from lora_lightning.diagnosis.sensitivity import Sensitivity
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.diagnosis.verdicts import State
from lora_lightning.reports.page import Page, PageTable, Section, write_page
from lora_lightning.statistics.verdicts import shown_margin

READING = (
    "Not worse: proven not to be worse by more than "
    "the margin; the chance of a false proof is 5 %. A p value below 0.05 tells a difference from zero. Updates are "
    "dW = scaling B A, since the factors A and B alone mean nothing; a similarity is read beside those of another seed "
    "and of random subspaces. Relative distance is 0 for equal updates and 1.41 for orthogonal ones of the same size; "
    "an overlap is the mean squared cosine of principal angles. Effects of quantization are measured on validation "
    "examples: one in quantizes the group alone, one out leaves the group out of everything. Intervals hold for new "
    "examples, or for new seeds where seeds are compared. After the sign \u00b1 are standard errors over examples. "
    "Nothing here is about models of other sizes."
)


def write_report(findings: Findings, folder: Path) -> Path:
    """Writes the report.

    Args:
        findings: What was found.
        folder: Where to; created if it does not exist.

    Returns:
        The page.

    Raises:
        DataError: If a file cannot be written.
    """
    return write_page(make_page(findings), folder)


def make_page(findings: Findings) -> Page:
    """Arranges the findings on a page.

    Args:
        findings: What was found.

    Returns:
        The page; sections without data are left out.
    """
    full, quantized = findings.precisions
    quality = next(each for each in findings.verdicts if each.name is VerdictName.NOT_WORSE)
    sections = [
        _advice(findings),
        _failures(findings),
        _adapters(findings),
        _base(findings),
        _modules(findings),
        _ranks(findings),
        _behavior(findings),
        _merges(findings),
        _costs(findings),
    ]
    caution = "" if findings.errors is None else findings.errors.caution
    subtitle = f"{full} against {quantized}; {findings.metric.name}, margin {shown_margin(findings.metric)}; compared "
    subtitle += f"at r = {findings.rank} " + (
        f"with {shown_seeds(findings.seeds)}" if findings.seeds else "without a seed that both precisions have"
    )
    different = findings.different_options
    cautions = [note_on_options(findings.precisions, different)] if different else []
    cautions += [caution] if caution else []
    return Page(
        title=findings.name,
        subtitle=subtitle,
        answers=(*_answers(findings), *cautions),
        proven=quality.state in {State.YES, State.NO},
        sections=tuple(_with_caution(section, caution) for section in sections if section is not None),
        notes=(*findings.notes, _share_of_measuring(findings)),
        reading=f"{_training(findings)} {READING}",
    )


def _training(findings: Findings) -> str:
    """What both precisions have in common, as far as it is known."""
    if findings.different_options is None:
        return "Both precisions are trained on the same data; no rank has runs of both, so options are not compared."
    options = (
        "other options (named above)" if findings.different_options else "the same options but for model.quantization"
    )
    return f"Both precisions are trained on the same data with {options}; verdicts on quality compare the same seeds."


def _with_caution(section: Section, caution: str) -> Section:
    """Says beside each figure what limits its numbers."""
    figures = (replace(each, description=f"{each.description} {caution}".rstrip()) for each in section.figures)
    return replace(section, figures=tuple(figures))


def _answers(findings: Findings) -> tuple[str, ...]:
    full, quantized = findings.precisions
    advice = findings.advice
    reasons = {quantized: advice.use_quantized, full: advice.use_full}
    found = [f"Use {name} when {reason}" for name, own in reasons.items() for reason in own]
    found += [f"If you use {quantized}, {what}" for what in advice.if_quantized]
    if without := [name for name, own in reasons.items() if not own]:
        found.append(f"Nothing measured so far speaks for {' or for '.join(without)}.")
    return tuple(sentence if sentence.endswith(".") else f"{sentence}." for sentence in found)


def _share_of_measuring(findings: Findings) -> str:
    if not findings.training_seconds:
        return ""
    own, trained = findings.measuring_seconds, findings.training_seconds
    return f"Measuring took {own:.0f} s, {own / trained:.0%} of the {trained:.0f} s of training."


def _advice(findings: Findings) -> Section:
    missing = tuple(f"Not decided: {sentence}" for sentence in findings.advice.missing)
    return Section("Verdicts", tables=(tables.verdicts_table(findings.verdicts),), items=missing)


def _failures(findings: Findings) -> Section:
    if not findings.failures:
        return Section("Failure modes", ("No failure mode was found in what was measured.",))
    return Section("Failure modes", tables=(tables.failures_table(findings.failures),))


def _adapters(findings: Findings) -> Section | None:
    found = findings.similarity
    if found is None:
        return None
    demo = found.demo
    rotated = (
        f"Cosines of A and of B mean nothing: the adapter of {demo.module} beside itself with rotated factors has "
    )
    rotated += f"the cosine {demo.update:.3f} of dW, {demo.a:.3f} of A and {demo.b:.3f} of B."
    names = (VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED, VerdictName.PRECISIONS_DIFFER)
    in_full = findings.trained_in_full
    paragraphs = [*(_sentence(findings, name) for name in names), rotated, *_start(findings, found)]
    paragraphs += [in_full.note] if in_full is not None and in_full.note else []
    return Section(
        "Does quantization change what is learnt?",
        tuple(paragraphs),
        tables=tables.similarity_tables(found),
        figures=similarity_figures(findings, found),
    )


def _start(findings: Findings, found: AdapterSimilarity) -> list[str]:
    """Why pairs of one seed decide nothing, with their numbers."""
    start = found.start
    if not math.isfinite(start.same_seed):
        return []
    near, far = (found.by_kind.get(kind, math.nan) for kind in (PairKind.PRECISION, PairKind.BOTH))
    text = "Runs with one seed start with the same A, and keep it: its cosine between the precisions is "
    text += f"{start.same_seed:.3f} with one seed and {tables.number(start.other_seed)} with two. Their distance "
    text += (
        f"({tables.number(near)}, with two seeds {tables.number(far)}) would be small for that alone, so it decides "
    )
    text += "nothing: "
    if not findings.other_seeds:
        return [text + "both verdicts need seeds of the quantized precision of their own (compare.other_seeds)."]
    return [
        text + f"both verdicts take the seeds {', '.join(map(str, findings.other_seeds))} of the quantized precision."
    ]


def _sentence(findings: Findings, name: VerdictName) -> str:
    return next(each.sentence for each in findings.verdicts if each.name is name)


def _base(findings: Findings) -> Section | None:
    found = findings.errors
    if found is None or not found.layers:
        return None
    saved = 100 * (1 - found.quantized_bytes / found.full_bytes)
    text = f"The weights take {found.full_bytes / 1e6:,.1f} MB without quantization and "
    text += f"{found.quantized_bytes / 1e6:,.1f} MB with it, {saved:.0f} % less, adapters included. {found.counted_in}"
    return Section(
        "What does quantization do to the base?",
        (text, _canceled(found)),
        tables=tables.errors_tables(found),
        figures=(errors_figure(found),),
    )


def _canceled(found: BaseErrors) -> str:
    own, others = found.adapters
    canceled, by_other = (tables.percent_interval(each) for each in (found.canceled, found.canceled_by_other))
    return (
        f"An adapter cancels, as the mean over layers, {canceled} of a layer's error if it was trained on the "
        f"quantized base ({own} at the compared rank), and {by_other} if it has never seen that error ({others})."
    )


def _modules(findings: Findings) -> Section | None:
    found = findings.sensitivity
    if found is None:
        return None
    joint = found.joint
    text = f"Measured on {found.examples:,} validation examples, by quantizing parts of the base of a run without "
    text += f"quantization{f' ({findings.measured[0]})' if findings.measured else ''}, which stands for all others. "
    if found.predictions:
        text += f"Divergences are of {found.predictions:,} predictions for these examples{_sampled(findings)}. "
    text += _joint(findings, joint)
    if findings.rounds_inputs:
        text += f" These parts have the weights of {findings.precisions[1]} and not its rounding of inputs, which is "
        text += "in no score, effect or list here."
    has_loss = math.isfinite(joint.loss.value)
    paragraphs = [
        text,
        *(_additivity(grouping, found) for grouping in found.additivity if has_loss),
        *_skip_list(found, _sentence(findings, VerdictName.SKIP_LIST_PROVEN)),
    ]
    return Section(
        "Which layers are sensitive?",
        tuple(paragraphs),
        tables=(*tables.effects_tables(found, findings.metric, findings.numbers), *_lists(findings)),
        figures=sensitivity_figures(found),
    )


def _joint(findings: Findings, joint: Effect) -> str:
    """What quantizing everything does, without what the task has not."""
    metric, numbers = findings.metric, findings.numbers
    change = tables.shown_change(joint.metric, metric)
    parts = {
        f"changes the {numbers.loss} by {tables.interval(joint.loss)}{numbers.unit}": joint.loss,
        f"makes {metric.name} better by {tables.interval(change)}{metric.unit}": change,
        f"changes the predictions by {tables.interval(joint.divergence)} nats of KL divergence": joint.divergence,
    }
    known = [text for text, part in parts.items() if math.isfinite(part.value)]
    return f"Quantizing everything {' and '.join(filter(None, (', '.join(known[:-1]), *known[-1:])))}." if known else ""


def _additivity(grouping: Grouping, sensitivity: Sensitivity) -> str:
    found, joint = sensitivity.additivity[grouping], sensitivity.joint
    if not math.isfinite(found.low):
        own = (each for each in sensitivity.effects if each.grouping is grouping and each.direction is Direction.IN)
        outside, why = joint.modules - sum(each.modules for each in own), "there are too few examples"
        if outside:
            why = f"{outside} of {joint.modules} quantized modules are in no {grouping}, so that a sum would lack them"
        return f"By {grouping}, it is not known whether single effects on the loss add up: {why}."
    told = "are not told from adding up" if found.contains(0.0) else "do not add up"
    return (
        f"By {grouping}, single effects on the loss {told}: their sum minus the joint one is {tables.interval(found)}."
    )


def _skip_list(found: Sensitivity, proof: str) -> list[str]:
    choice = found.skip
    if not found.singles:
        return ["No module was quantized singly (measure.singles), so there is no list of modules to skip."]
    if not choice.modules:
        return ["No sensitive module fits into the budget of bytes for a list of modules to skip."]
    named = ", ".join(choice.modules)
    sentence = f"skip_modules, for {100 * choice.share:.3g} % more memory: {named}."
    return [sentence, proof]


def _lists(findings: Findings) -> tuple[PageTable, ...]:
    choice = None if findings.sensitivity is None else findings.sensitivity.skip
    if findings.skip is None or choice is None:
        return ()
    return (tables.lists_table(findings.skip, choice, findings.metric),)


def _ranks(findings: Findings) -> Section:
    return Section(
        "Which rank is enough at which precision?",
        (_sentence(findings, VerdictName.ENOUGH_RANK), _sentence(findings, VerdictName.MORE_RANK)),
        tables=tables.ranks_tables(findings.ranks),
        figures=(ranks_figure(findings),),
    )


def _behavior(findings: Findings) -> Section | None:
    found = findings.behaviors
    if found is None or not found.pairs:
        return None
    measures = ", in the measures of llama.cpp" if any(pair.predictions for pair in found.pairs) else ""
    full, quantized = findings.precisions
    products = "with products in float32 on both sides"
    if findings.rounds_inputs:
        products = f"with products in float32 for {full} and of 8-bit integers, which round inputs too, for {quantized}"
    text = f"On {found.examples:,} validation examples{measures}, {products}.{_what_was_compared(findings, found)}"
    return Section(
        "Do the models behave alike?",
        (text, _baseline(found, has_other_options=bool(findings.different_options))),
        tables=(*tables.behavior_tables(found), *tables.layers_tables(found)),
        figures=behavior_figures(found),
    )


def _baseline(found: Behaviors, *, has_other_options: bool) -> str:
    """Which pairs can be read beside which: those of one seed share more than their precision can change."""
    kinds = Counter(pair.kind for pair in found.pairs)
    text = ""
    if PairKind.PRECISION in kinds:
        text = "Two precisions with one seed start with the same adapter and, where there is one, the same new head, "
        text += "and see the data in the same order. They are near each other for that alone, so they do "
        text += "not show that quantization changes little. "
    if PairKind.SEED not in kinds:
        return text + "Both have one seed in common, so it is not known what chance alone changes."
    if PairKind.BOTH not in kinds:
        return text + "Two seeds show what chance alone changes, but no pair differs in precision and seed."
    text += "Two seeds show what chance alone changes. Beside them stand pairs that differ in precision and seed"
    if min(kinds[PairKind.SEED], kinds[PairKind.BOTH]) == 1:
        return f"{text}; with one pair of a kind there is no range, so what they differ in more may be chance."
    others = " or with the other options that differ" if has_other_options else ""
    return f"{text}: what these differ in more, beyond the ranges in the table, comes with the quantization{others}."


def _what_was_compared(findings: Findings, found: Behaviors) -> str:
    """How many predictions, hidden states and completions the numbers of each pair are of."""
    counts = {pair.predictions.rows for pair in found.pairs if pair.predictions is not None}
    parts = []
    if counts:
        rows = " or ".join(f"{count:,}" for count in sorted(counts))
        what = "KL divergences"
        what += ", changes of p and perplexities" if tables.is_known(found.pairs, "perplexity_ratio") else ""
        parts.append(f"{what} are of {rows} predictions{_sampled(findings)}")
    if found.probed:
        text = f"hidden states are of {found.probed:,} texts, evenly spread over their lengths, each the mean over all "
        parts.append(f"{text}positions, of which a classifier may read one alone")
    if found.completions:
        parts.append(f"completions are of {found.completions:,} texts, spread alike")
    parts.append(found.decisions)
    return f" {'; '.join(parts)}." if parts else ""


def _sampled(findings: Findings) -> str:
    """That a language model's divergences are of some tokens only."""
    return " (tokens, up to the same number from each batch)" if findings.numbers.of_tokens else ""


def _merges(findings: Findings) -> Section | None:
    found = findings.merges
    if found is None or not found.targets:
        return None
    text = (
        f"The adapter of {found.run}, merged in memory. The recovery ratio is 1 if its gain is kept, 0 if it is lost. "
    )
    text += _products_of_merges(findings)
    text += "Intervals are over validation examples of this one adapter; other seeds and ranks may differ."
    return Section("What does each merge target do?", (text,), tables=(tables.merges_table(found, findings.numbers),))


def _products_of_merges(findings: Findings) -> str:
    if not findings.rounds_inputs:
        return "Products are in float32 before and after merging. "
    return (
        "Before merging and after requantizing, layers multiply 8-bit integers, which rounds their inputs; the other "
        "merges multiply in float32, so a part of their change may be that this rounding is gone. "
    )


def _costs(findings: Findings) -> Section:
    return Section("What does it cost?", tables=(tables.costs_table(findings.costs),), figures=costs_figures(findings))
