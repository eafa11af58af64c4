"""The report of a diagnosis: every number is there, nothing is loaded, names of strangers are escaped."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from matplotlib.figure import Figure

from lora_lightning.cli.diagnose_report import print_findings
from lora_lightning.diagnosis.adapter_similarity import PairKind
from lora_lightning.diagnosis.costs import CostTable
from lora_lightning.diagnosis.effects import Grouping
from lora_lightning.diagnosis.failure_modes import merge_drift
from lora_lightning.diagnosis.findings import Findings, check_required, validation_loss
from lora_lightning.diagnosis.report import make_page, write_report
from lora_lightning.diagnosis.report_figures import behavior_figures, sensitivity_figures, similarity_figures
from lora_lightning.diagnosis.report_tables import (
    behavior_tables,
    effects_tables,
    layers_tables,
    lists_table,
    ranks_tables,
    shown_change,
    similarity_tables,
)
from lora_lightning.diagnosis.results_files import write_findings, write_skip_list
from lora_lightning.diagnosis.sensitivity import Sensitivity
from lora_lightning.diagnosis.task_numbers import TaskNumbers
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.diagnosis.verdicts import State
from lora_lightning.errors import DataError, VerificationError
from lora_lightning.reports.page import Page as PageOfReport
from lora_lightning.reports.page import render_page, write_page
from lora_lightning.runs.curves import Curve
from lora_lightning.statistics.divergence import Estimate
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.study_results import Metric, Scale
from tests.diagnosis import planted
from tests.diagnosis.small_diagnosis import leave_figures_out
from tests.reports.test_study_report import HOSTILE, Page

TITLES = (
    "Verdicts",
    "Failure modes",
    "Does quantization change what is learnt?",
    "What does quantization do to the base?",
    "Which layers are sensitive?",
    "Which rank is enough at which precision?",
    "Do the models behave alike?",
    "What does each merge target do?",
    "What does it cost?",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("report") / "new"
    write_report(planted.findings(), found)
    return found


def test_the_answer_comes_first_and_every_part_is_there(folder: Path) -> None:
    text, found = (folder / "report.html").read_text(), planted.findings()
    first = re.search(r'<main>\s*<div class="answer">\s*<p>(.*?)</p>', text)
    assert first
    assert first[1].startswith(("Use NF4 when", "Use float32 when"))
    assert "Use float32 when quality counts: NF4, r = 8 is worse than float32, r = 8 by more than 2 points" in text
    assert [title for title in TITLES if f"<h2>{title}</h2>" in text] == list(TITLES)
    for verdict in found.verdicts:
        assert verdict.sentence in text
        assert f'class="verdict {verdict.state.replace(" ", "-")}">{verdict.state}' in text
    for name in ("mean KL divergence, nats", "99.9 % KL divergence", "RMS change of p", "same top token"):
        assert name in text
    assert "pad_token_id 100, 100 embeddings" in text
    assert "3 of 45 trials have not finished" in text
    assert "Measuring took 200 s, 20% of the 1000 s of training." in text
    assert f"skip_modules, for 10 % more memory: {planted.MODULES[0]}." in text
    assert "The list, number 1 of 2, and random lists, the best first" in text
    assert "1,990 (-0.5%)" in text
    assert "both verdicts take the seeds 10, 11, 12, 13, 14 of the quantized precision" in text


def test_options_and_seeds_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_out(monkeypatch)
    page = make_page(planted.findings(seeds=(1, 3)))
    assert page.subtitle.endswith("compared at r = 8 with the seeds 1, 3")
    assert "on the same data with the same options but for model.quantization" in page.reading
    different = {"model.init_args.lora.lora_alpha": (16, 8), "model.init_args.optimization.learning_rate": (0.1, 0.2)}
    page = make_page(planted.findings(different_options=different))
    assert page.answers[-1] == (
        "The precisions differ in more than model.quantization, so this is compared too: "
        "model.init_args.lora.lora_alpha is 16 for float32 and 8 for NF4; "
        "model.init_args.optimization.learning_rate is 0.1 for float32 and 0.2 for NF4."
    )
    assert "same options" not in page.reading
    page = make_page(planted.findings(different_options=None, seeds=()))
    assert "same options" not in page.reading
    assert page.subtitle.endswith("without a seed that both precisions have")


def test_what_numbers_are_of_stands_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_out(monkeypatch)
    found = planted.findings()
    paragraphs = {section.title: " ".join(section.paragraphs) for section in make_page(found).sections}
    one = "float32, r = 8, seed 0"
    canceled = "2 (1.5 to 2.5) % of a layer's error if it was trained on the quantized base (6 at the compared rank), "
    assert canceled + "and 0.1 (-0.1 to 0.3) % if it has never seen that error (3)." in paragraphs[TITLES[3]]
    assert f"of a run without quantization ({one}), which stands for all others" in paragraphs[TITLES[4]]
    assert "Divergences are of 1,024 predictions for these examples (tokens, up to the same" in paragraphs[TITLES[4]]
    assert "perplexities are of 1,024 predictions (tokens" in paragraphs[TITLES[6]]
    assert (
        "hidden states are of 64 texts, evenly spread over their lengths, each the mean over all positions, of which a "
        "classifier may read one alone; completions are of 16 texts, spread alike; decisions are the class of a text."
    ) in paragraphs[TITLES[6]]
    assert "of this one adapter; other seeds and ranks may differ" in paragraphs[TITLES[7]]
    merge = next(each for each in found.verdicts if each.name is VerdictName.MERGE_KEEPS_GAIN)
    assert merge.sentence.startswith("Merged into the dequantized weights, the adapter of NF4, r = 8, seed 0: recovery")
    in_full = "Beside the adapters, classifier trains in full (1,000 numbers, 25% of all that train at r = 8)"
    assert in_full in paragraphs[TITLES[2]]
    ranks, _ = ranks_tables(found.ranks)
    assert ranks.rows[0][:3] == ("float32", "2", "5")


def test_8_bit_layers_are_said_to_round_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_out(monkeypatch)
    for rounds in (True, False):
        sections = make_page(planted.findings(rounds_inputs=rounds)).sections
        paragraphs = {section.title: " ".join(section.paragraphs) for section in sections}
        behavior = "with products in float32 for float32 and of 8-bit integers, which round inputs too, for NF4."
        assert (behavior in paragraphs[TITLES[6]]) is rounds
        assert ("with products in float32 on both sides." in paragraphs[TITLES[6]]) is not rounds
        assert ("layers multiply 8-bit integers, which rounds their inputs" in paragraphs[TITLES[7]]) is rounds
        assert ("Products are in float32 before and after merging." in paragraphs[TITLES[7]]) is not rounds
        assert ("the weights of NF4 and not its rounding of inputs" in paragraphs[TITLES[4]]) is rounds
        drift = merge_drift(replace(planted.healthy(), merges=planted.merges(dequantized=0.9), rounds_inputs=rounds))
        assert drift is not None
        assert ("8-bit layers round their inputs" in drift.cause) is rounds


NAN = float("nan")
UNKNOWN = Interval(NAN, NAN, NAN)


def without(part: str, **changes: Any) -> Sensitivity:
    """The planted effects without one of their parts."""
    found = planted.sensitivity()
    return replace(found, effects=tuple(replace(each, **{part: UNKNOWN}) for each in found.effects), **changes)


def words_of(page: PageOfReport, *titles: str) -> str:
    """All that sections say, in paragraphs, tables and figures."""
    own = [section for section in page.sections if section.title in titles]
    texts = [each for section in own for each in section.paragraphs]
    for table in (table for section in own for table in section.tables):
        texts += [*table.headings, table.caption or "", *(cell for row in table.rows for cell in row)]
    return "\n".join(texts)


def test_a_regression_has_squared_errors_and_no_divergences(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_out(monkeypatch)
    behaviors = planted.behaviors()
    pairs = tuple(replace(each, predictions=None, greedy=None, flips=None) for each in behaviors.pairs)
    found = planted.findings(
        numbers=TaskNumbers(of_errors=True),
        sensitivity=without("divergence", predictions=0),
        skip=None,
        behaviors=replace(behaviors, pairs=pairs, completions=0),
    )
    page = make_page(found)
    text = words_of(page, TITLES[4], TITLES[6], TITLES[7])
    assert not re.search(r"nats|KL|likelihood|llama|perplexit|tokens", text)
    assert "Quantizing everything changes the squared error by 0.031 (0.03 to 0.032) and makes accuracy better" in text
    assert {"one in: squared error", "Fisher score (for ranks)", "by how much the squared error falls"} <= {
        *text.splitlines()
    }
    (scores,) = sensitivity_figures(without("divergence"))
    assert scores.name == "sensitivity"
    assert [each.name for each in sensitivity_figures(planted.sensitivity())] == ["sensitivity", "scores"]


def test_questions_have_no_loss_of_each_example_and_no_right_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_out(monkeypatch)
    behaviors, unknown = planted.behaviors(), Estimate(NAN)
    summary = behaviors.pairs[0].predictions
    assert summary is not None
    names = ("mean_change_of_p", "rms_change_of_p", "perplexity_ratio")
    unlabeled = replace(behaviors.pairs[0], predictions=replace(summary, **dict.fromkeys(names, unknown)))
    found = planted.findings(
        numbers=TaskNumbers(),
        sensitivity=without("loss"),
        behaviors=replace(behaviors, pairs=(unlabeled,)),
        skip=None,
    )
    page = make_page(found)
    text = words_of(page, TITLES[4], TITLES[6])
    assert "Quantizing everything makes accuracy better by -1.55 (" in text
    assert " points and changes the predictions by 0.062 (" in text
    assert "loss" not in text
    assert "KL divergences are of 1,024 predictions; hidden" in text
    assert "perplexity" not in text


def test_a_language_model_is_known_without_its_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_out(monkeypatch)
    pairs = tuple(replace(each, greedy=None) for each in planted.behaviors().pairs)  # measure.prompts: 0
    text = words_of(make_page(planted.findings(behaviors=replace(planted.behaviors(), pairs=pairs))), TITLES[4])
    assert "1,024 predictions for these examples (tokens, up to the same number from each batch)" in text


def test_modules_that_were_not_quantized_singly_are_said() -> None:
    found = planted.sensitivity()
    *_, singles, agreements = effects_tables(found, planted.results().metric)
    assert singles.caption == "Modules singly, and all together"
    assert agreements.caption.endswith("one in; modules, all of them")
    fewer = replace(found, effects=tuple(each for each in found.effects if each.group not in planted.MODULES[4:]))
    *_, singles, agreements = effects_tables(fewer, planted.results().metric)
    said = "(4 of 6, those with the largest Fisher scores)"
    assert said in singles.caption
    assert f"modules {said}: a correlation among the largest alone is usually lower" in agreements.caption
    assert "4 of 6 modules, those with the largest scores" in sensitivity_figures(fewer)[1].description


def test_why_it_is_not_known_whether_effects_add_up_is_said() -> None:
    """A quantized pooler is in no layer."""
    findings = planted.findings()
    found = findings.sensitivity
    assert found is not None
    added = found.additivity | {Grouping.LAYER: UNKNOWN}
    joint = replace(found.joint, modules=found.joint.modules + 1)
    changed = replace(found, additivity=added, effects=(*found.effects[:-1], joint))
    page = make_page(replace(findings, sensitivity=changed))
    text = next(" ".join(section.paragraphs) for section in page.sections if section.title == TITLES[4])
    assert "add up: 1 of 7 quantized modules are in no layer, so that a sum would lack them." in text


def test_what_is_not_decided_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = planted.findings(costs=CostTable((), {}))
    no_saving = "It is not measured that NF4 saves 5 % of memory or time."
    verdict = next(each for each in found.verdicts if each.state is State.UNDECIDED)
    print_findings(replace(found, advice=replace(found.advice, missing=(no_saving, verdict.sentence))))
    printed = capsys.readouterr().out
    assert f"\nnot decided\n- {no_saving}\n" in printed
    assert printed.count(verdict.sentence) == 1


def test_the_page_loads_nothing_and_is_small(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert len(page.labels) == text.count("<svg") == 14
    assert len(text) < 600_000
    assert "prefers-color-scheme: dark" in text
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names >= {
        "similarity",
        "angles",
        "overlaps_outputs",
        "overlaps_inputs",
        "spectra",
        "errors",
        "sensitivity",
        "scores",
        "ranks",
        "cost_weight_bytes",
    }
    assert names >= {"layers_cka", "layers_cosine"}
    for name in names:
        ET.parse(folder / "figures" / f"{name}.svg")  # noqa: S314  # our own file
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_strangers_are_escaped() -> None:
    found = planted.findings(name=HOSTILE, notes=(HOSTILE,), failures=())
    page = make_page(replace(found, verdicts=tuple(replace(each, sentence=HOSTILE) for each in found.verdicts)))
    sections = tuple(replace(section, figures=()) for section in page.sections)
    text = render_page(replace(page, sections=sections), [])
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text


def test_what_was_not_measured_is_left_out() -> None:
    nothing: dict[str, None] = dict.fromkeys(("similarity", "errors", "sensitivity", "behaviors", "merges", "skip"))
    page = make_page(planted.findings(**nothing, failures=()))
    assert [section.title for section in page.sections] == [
        *TITLES[:2],
        "Which rank is enough at which precision?",
        "What does it cost?",
    ]
    assert page.sections[1].paragraphs == ("No failure mode was found in what was measured.",)


def test_angles_and_hidden_states_are_in_tables_too() -> None:
    found = planted.findings()
    assert found.similarity is not None
    _, modules = similarity_tables(found.similarity)
    column = modules.headings.index("largest angle, seed")
    assert modules.rows[0][column] == f"{found.similarity.modules[0].largest_angle[PairKind.SEED]:.3g}"
    assert {"overlap of inputs, precision", "overlap of outputs, precision and seed"} <= {*modules.headings}
    module = found.similarity.modules[0]
    random = {f"{name}, random subspaces" for name in ("overlap of outputs", "overlap of inputs", "largest angle")}
    assert random | {"relative distance, precision", "relative distance, seed"} <= {*modules.headings}
    row = dict(zip(modules.headings, modules.rows[0], strict=True))
    assert row["relative distance, seed"] == f"{module.distance[PairKind.SEED]:.3g}"
    assert row["overlap of inputs, random subspaces"] == "0.2"  # 4 of 20
    assert row["largest angle, random subspaces"] == f"{module.random_largest_angle:.3g}"
    overall = next(row for row in similarity_tables(found.similarity)[0].rows if row[0] == "random subspaces")
    assert "-" not in overall
    pair, other, _ = planted.behaviors().pairs
    less = replace(pair, layers=tuple(replace(each, cka=each.cka - 0.02) for each in pair.layers))
    (layers,) = layers_tables(replace(planted.behaviors(), pairs=(pair, less, other)))
    assert layers.headings == (
        "after",
        "mean cosine, another precision, same start",
        "mean cosine, another seed",
        "CKA, another precision, same start",
        "CKA, another seed",
    )
    assert layers.rows[2] == ("layer 2", "0.970 (0.970 to 0.970)", "0.970", "0.940 (0.930 to 0.950)", "0.950")
    assert layers_tables(replace(planted.behaviors(), pairs=(replace(pair, layers=()),))) == ()
    unknown = replace(pair, layers=tuple(replace(each, cka=NAN) for each in pair.layers))  # of fewer than four texts
    (layers,) = layers_tables(replace(planted.behaviors(), pairs=(unknown,)))
    assert {row[-1] for row in layers.rows} == {"-"}


def test_what_limits_a_base_that_was_quantized_before_is_said_beside_each_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_figures_out(monkeypatch)
    for found, is_said in ((replace(planted.errors(), origin="Q4_1 (79 %)"), True), (planted.errors(), False)):
        page = make_page(planted.findings(errors=found))
        texts = [page.answers[-1], *(each.description for section in page.sections for each in section.figures)]
        assert len(texts) == 3
        assert all(("dequantized from Q4_1 (79 %), so this says little" in text) is is_said for text in texts)


def test_the_files_have_all_numbers(tmp_path: Path) -> None:
    found = planted.findings()
    content = json.loads(write_findings(found, tmp_path).read_text())
    assert content["ranks"]["compared"]["verdict"] == "worse"
    assert content["similarity"]["permutation"]["splits"] == 126
    assert content["sensitivity"]["skip"]["modules"] == [planted.MODULES[0]]
    path = write_skip_list(found, tmp_path)
    assert path is not None
    assert "proven by training: It is proven." in path.read_text()
    assert yaml.safe_load(path.read_text())["model"]["init_args"]["quantization"]["skip_modules"] == [
        "pooler",
        planted.MODULES[0],
    ]
    better = "Quantization makes the metric better,\ntold from zero."
    for state, said in ((State.NO, "refuted by training: "), (State.MISSING, "not proven by training: ")):
        others = tuple(
            replace(each, state=state, sentence=better) if each.name is VerdictName.SKIP_LIST_PROVEN else each
            for each in found.verdicts
        )
        write_skip_list(replace(found, verdicts=others), tmp_path)
        assert f"of the weights; {said}Quantization makes the metric better, told from zero.\n" in path.read_text()
        assert yaml.safe_load(path.read_text()).keys() == {"model"}
    assert write_skip_list(replace(found, sensitivity=None), tmp_path) is None
    assert not path.exists()


def test_a_required_verdict_that_is_not_reached_is_an_error() -> None:
    found: Findings = planted.findings()
    check_required(planted.diagnosis(require=("merge_keeps_gain", "skip_list_proven")), found)
    with pytest.raises(VerificationError, match=r"the required verdict not_worse is not reached \(no\): NF4, r = 8 is"):
        check_required(planted.diagnosis(require=("merge_keeps_gain", "not_worse")), found)
    with pytest.raises(VerificationError) as error:
        check_required(planted.diagnosis(require=("healthy", "not_worse")), found)
    assert "the required verdict not_worse is not reached (no): NF4, r = 8 is" in str(error.value)
    assert "; the required verdict healthy is not reached (no): Failure modes: pad token" in str(error.value)
    left = replace(found, unfinished="The report is partial: 3 of 45 trials have not finished.")
    check_required(planted.diagnosis(), left)
    with pytest.raises(VerificationError, match=r"not reached while runs are left\. The report is partial: 3 of 45"):
        check_required(planted.diagnosis(require=("merge_keeps_gain",)), left)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder for the report"):
        write_page(PageOfReport("name", "", ("answer",), True, ()), tmp_path / "file")


def test_effects_on_the_metric_are_in_its_unit_and_larger_is_better() -> None:
    perplexity = Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG)
    shown = shown_change(Interval(-0.01, -0.02, 0.0), perplexity)
    assert (shown.value, shown.low, shown.high) == pytest.approx((-1.005, -2.02, 0), abs=1e-3)
    kinds, *_ = effects_tables(planted.sensitivity(), planted.results().metric)
    assert "one in: accuracy, points better" in kinds.headings
    assert kinds.rows[0][3].startswith("-0.7 (")
    (section,) = (each for each in make_page(planted.findings()).sections if each.title == TITLES[4])
    assert "makes accuracy better by -1.55 (" in section.paragraphs[0]


def test_pairs_that_share_a_start_are_named_and_those_that_do_not_stand_beside_another_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = planted.findings()
    assert found.similarity is not None
    drawn: dict[str, list[str]] = {}

    def panels(maps: dict[str, object], label: str, *_: object) -> Figure:
        drawn[label] = [*maps]
        return Figure()

    for name in ("module_maps_figure", "alike_figure"):
        monkeypatch.setattr(f"lora_lightning.diagnosis.report_figures.{name}", panels)
    kinds = ["another precision, same start", "another seed", "another precision and seed"]
    figures = {each.name: each for each in similarity_figures(found, found.similarity)}
    figures |= {each.name: each for each in behavior_figures(planted.behaviors())}
    for label in ("cosine of dW", "degrees", "overlap", "debiased linear CKA", "mean cosine"):
        assert drawn[label] == kinds
    for name in ("similarity", "angles", "overlaps_outputs", "overlaps_inputs", "layers_cka", "layers_cosine"):
        assert "share" in figures[name].description
        assert "beside another seed is another precision and seed" in figures[name].description
    summary, each_pair = behavior_tables(planted.behaviors())
    assert summary.headings == ("", *(f"{kind} (1 pair)" for kind in kinds))
    assert each_pair.folded
    agreement = next(row for row in summary.rows if row[0] == "decisions: agreement")
    assert agreement[1:] == ("0.9375", "0.9375", "0.9")
    leave_figures_out(monkeypatch)
    pairs = planted.behaviors().pairs
    by_kind = {pair.kind: pair for pair in pairs}
    ranges = "in precision and seed: what these differ in more, beyond the ranges in the table, comes with the quantiz"
    for kept, said in (
        (pairs, "pairs that differ in precision and seed; with one pair of a kind there is no range, so what they"),
        ((*pairs, by_kind[PairKind.SEED]), "with one pair of a kind there is no range"),
        ((*pairs, by_kind[PairKind.SEED], by_kind[PairKind.BOTH]), ranges),
        (pairs[:2], "no pair differs in precision and seed"),
        (pairs[:1], "Both have one seed in common, so it is not known what chance alone changes"),
    ):
        page = make_page(replace(found, behaviors=replace(planted.behaviors(), pairs=kept)))
        (section,) = (each for each in page.sections if each.title == TITLES[6])
        assert "they do not show that quantization changes little" in section.paragraphs[1]
        assert said.lower() in section.paragraphs[1].lower()


def test_what_differs_beside_the_quantization_may_be_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_out(monkeypatch)
    behaviors, other = planted.behaviors(), {"model.init_args.lora.lora_alpha": (16, 8)}
    found = planted.findings(behaviors=replace(behaviors, pairs=behaviors.pairs * 2))
    for different, end in (
        ({}, "the quantization."),
        (other, "the quantization or with the other options that differ."),
    ):
        (section,) = (
            each for each in make_page(replace(found, different_options=different)).sections if each.title == TITLES[6]
        )
        assert section.paragraphs[1].endswith(end)


def test_a_better_list_is_better_whatever_the_direction_of_the_metric() -> None:
    choice, finding = planted.skip()
    table = lists_table(finding, choice, Metric("perplexity", 1.0, higher_is_better=False, scale=Scale.LOG))
    assert table.headings[3] == "by how much the list is better, %"
    assert table.rows[1][3].startswith("1.09 (")
    assert "larger" not in " ".join(table.headings)


def test_the_loss_of_the_first_validation_split_is_read() -> None:
    first, second = Curve((1,), (0.5,)), Curve((1,), (0.6,))
    others = {"train/loss": second, "val_matched/accuracy": second}
    assert validation_loss(others | {"val_matched/loss": first, "val_mismatched/loss": second}) is first
    assert validation_loss({"val/loss": first, "val/accuracy": second}) is first
    assert validation_loss(others) is None


def test_maps_are_drawn_of_what_is_there() -> None:
    found = planted.findings()
    assert found.similarity is not None
    only = {PairKind.BOTH: found.similarity.by_kind[PairKind.BOTH]}
    figures = similarity_figures(found, replace(found.similarity, by_kind=only))
    assert {"similarity", "angles", "overlaps_inputs"} <= {figure.name for figure in figures}
