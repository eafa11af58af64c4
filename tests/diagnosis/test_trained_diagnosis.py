"""A diagnosis of tiny models, trained once: what it measures against references, and the command that runs it."""

import copy
import hashlib
import json
import math
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lora_lightning import RunRecord
from lora_lightning.analysis.similarity import delta_cosine
from lora_lightning.artefacts.saved_updates import saved_updates
from lora_lightning.cli.main import main
from lora_lightning.compat import bitsandbytes
from lora_lightning.diagnosis import merge_recovery, opened_runs
from lora_lightning.diagnosis.adapter_similarity import PairKind
from lora_lightning.diagnosis.base_errors import measure_base_errors, model_bytes
from lora_lightning.diagnosis.costs import INFERENCE, weights_by_rank
from lora_lightning.diagnosis.diagnosis_folder import SCHEMA_VERSION, DiagnosisFolder
from lora_lightning.diagnosis.effects import Direction, Grouping, QuantizedParts, groups_of
from lora_lightning.diagnosis.failure_modes import Evidence, merge_drift
from lora_lightning.diagnosis.findings import Findings, check_budget_for_lists, collect_findings
from lora_lightning.diagnosis.finished_runs import (
    FinishedRun,
    check_adapters,
    check_same_examples,
    different_options,
    finished_runs,
)
from lora_lightning.diagnosis.measuring import Measurer
from lora_lightning.diagnosis.merge_recovery import measure_merges
from lora_lightning.diagnosis.model_behavior import compare_behavior, hidden_states, observe
from lora_lightning.diagnosis.opened_runs import OpenedRun, OpenedRuns, full_weight_of, quantized_weight_of
from lora_lightning.diagnosis.proof_runs import BUDGET_SPENT
from lora_lightning.diagnosis.rank_threshold import RankThreshold, find_rank_threshold
from lora_lightning.diagnosis.report import make_page
from lora_lightning.diagnosis.running import measure_runs
from lora_lightning.diagnosis.sensitivity import (
    Sensitivity,
    choose_skips,
    measure_sensitivity,
    score_modules,
    summed_loss,
)
from lora_lightning.diagnosis.specification import Measuring, SkipProof
from lora_lightning.diagnosis.task_numbers import TaskNumbers, task_numbers
from lora_lightning.diagnosis.trained_in_full import trained_in_full
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.diagnosis.verdicts import State
from lora_lightning.errors import ConfigurationError, DataError, TrainingError, TrialsFailed
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_deltas
from lora_lightning.lora.parameter_names import ADAPTER, is_factor
from lora_lightning.lora.variants.adalora import AdaLoraSettings
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.study_results import ConfigurationResults
from lora_lightning.studies.journal import StudyJournal, TrialStatus
from lora_lightning.studies.open_study import open_study
from lora_lightning.studies.trial_numbers import TIMINGS
from lora_lightning.studies.trials import Trial
from lora_lightning.tasks import SequenceClassificationTask
from lora_lightning.training.commands import prepare_command
from tests.conftest import TinyBackbone
from tests.diagnosis import planted
from tests.diagnosis.small_diagnosis import intents, leave_figures_out, save_diagnosis
from tests.tiny_glue import save_tiny_glue

BITS = {"bits": 4, "compute_dtype": "float32"}
SETTINGS: dict[str, Any] = {
    "compare": {"rank": 4, "further_seeds": [1], "other_seeds": [5, 6]},
    "ranks": [4],
    "precisions": {"float32": {}, "NF4": {"model.quantization": {**BITS, "skip_modules": ["classifier"]}}},
}


@pytest.fixture(scope="module", autouse=True)
def reports_without_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_out(patch)
        yield


@pytest.fixture(scope="module")
def trained(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a diagnosis that has run: `small.yaml` and `diagnoses/small`."""
    here = tmp_path_factory.mktemp("diagnosis")
    path = save_diagnosis(here, intents(tiny_backbone("bert"), here), **SETTINGS)
    assert main(["diagnose", "run", str(path), f"--save_dir={here / 'diagnoses'}"]) == 0
    return here


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The folder of the diagnosis, to be changed."""
    return Path(shutil.copytree(trained / "diagnoses", tmp_path / "diagnoses")) / "small"


@pytest.fixture(scope="module")
def runs(trained: Path) -> dict[tuple[str, int], FinishedRun]:
    found = finished_runs(open_study(trained / "diagnoses/small"))
    return {(run.precision, run.seed): run for run in found}


@pytest.fixture(scope="module")
def pair(runs: dict[tuple[str, int], FinishedRun]) -> tuple[OpenedRun, OpenedRun]:
    """The runs with seed 0, without quantization and with it."""
    opened = OpenedRuns(24)
    return opened.open(runs["float32", 0]), opened.open(runs["NF4", 0])


def findings(folder: Path) -> Findings:
    own = DiagnosisFolder(folder)
    return collect_findings(own.load(), own, open_study(folder))


def test_the_files_have_all_numbers(trained: Path) -> None:
    folder = trained / "diagnoses/small"
    found = findings(folder)
    content = json.loads((folder / "diagnosis.json").read_text())
    assert content["precisions"] == ["float32", "NF4"]
    assert content["verdicts"][0]["name"] == "not_worse"
    assert {each.name for each in found.verdicts} == set(VerdictName)
    for part in (found.similarity, found.errors, found.sensitivity, found.behaviors, found.merges):
        assert part is not None
    assert found.measuring_seconds > 0
    assert (folder / "results.csv").is_file()
    assert found.sensitivity is not None
    assert found.sensitivity.skip.modules
    assert "not proven by training" in (folder / "skip_modules.yaml").read_text()  # nobody asked for a proof
    assert not (folder / "skip_modules").exists()
    row = found.costs.rows[1]
    assert row.configuration == "NF4, r = 4"
    assert 30 < row.savings["weight_bytes"].value < 80
    assert row.costs["adapter_bytes"].value > 1000
    assert found.costs.is_process_memory
    assert "peak_memory_bytes" not in row.savings
    assert any("inference time; diagnose run --timings" in note for note in found.notes)


def test_what_trains_in_full_is_named_with_its_share(
    trained: Path, runs: dict[tuple[str, int], FinishedRun], pair: tuple[OpenedRun, OpenedRun]
) -> None:
    found = findings(trained / "diagnoses/small")
    assert found.trained_in_full is not None
    trains = {name: each.numel() for name, each in pair[0].task.named_parameters() if each.requires_grad}
    in_full = {name: size for name, size in trains.items() if not is_factor(name)}
    assert found.trained_in_full.numbers == sum(in_full.values()) > 0
    assert found.trained_in_full.share == pytest.approx(sum(in_full.values()) / sum(trains.values()))
    assert found.trained_in_full.modules[-1] == "classifier"
    assert found.trained_in_full.note in found.notes
    saved = [replace(runs["float32", 0], record=replace(runs["float32", 0].record, trainable_parameters=None))]
    assert "%" not in trained_in_full(saved[0]).note


def test_biases_that_train_are_no_modules_that_train_in_full(
    runs: dict[tuple[str, int], FinishedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("layer.0.query.bias", "layer.0.value.bias", "classifier.weight", "classifier.bias")
    weights = {f"base_model.model.{name}": torch.zeros(3) for name in names}
    monkeypatch.setattr("lora_lightning.diagnosis.trained_in_full.read_adapter_weights", lambda _: weights)
    found = trained_in_full(runs["float32", 0])
    assert (found.modules, found.biases) == (("classifier",), 2)
    start = "Beside the adapters, classifier trains in full and the biases of 2 modules train (12 numbers"
    assert found.note.startswith(start)


def test_weights_at_another_rank_are_those_of_a_model_with_wider_factors(pair: tuple[OpenedRun, OpenedRun]) -> None:
    """Twice the rank is twice the factors; quantized weights, the head and all others stay."""
    errors = measure_base_errors(*pair, [], [])
    own = replace(planted.diagnosis(), ranks=(4, 8), rank=4)
    configurations = []
    for precision, opened in zip(own.precisions, pair, strict=True):
        trains = {name: each.numel() for name, each in opened.task.named_parameters() if each.requires_grad}
        factors = sum(size for name, size in trains.items() if is_factor(name))
        for rank, size in ((4, sum(trains.values())), (8, sum(trains.values()) + factors)):
            name = own.configuration(precision, rank)
            configurations.append(
                ConfigurationResults(name, {}, {}, measurements={"trainable_parameters": {0: float(size)}})
            )
    results = replace(planted.results(), configurations=configurations)
    compared = {"float32": float(errors.full_bytes), "NF4": float(errors.quantized_bytes)}
    found = weights_by_rank(own, results, compared, {"float32": 4, "NF4": 4})
    for precision, opened in zip(own.precisions, pair, strict=True):
        more = sum(each.nbytes for name, each in opened.task.named_parameters() if is_factor(name))
        counted = model_bytes(opened.task.built_network, opened.layers)
        assert found[f"{precision}, r = 4"] == counted
        assert found[f"{precision}, r = 8"] == counted + more


def test_updates_are_those_of_the_trained_models(
    trained: Path, runs: dict[tuple[str, int], FinishedRun], pair: tuple[OpenedRun, OpenedRun]
) -> None:
    own = {update.module: update for update in adapter_deltas(pair[0].task)}
    saved = {update.module: update for update in saved_updates(runs["float32", 0].record.adapter or Path())}
    assert saved.keys() == own.keys()
    for name, update in own.items():
        torch.testing.assert_close(saved[name].dense(), update.dense(), rtol=1e-5, atol=1e-7)
    quantized = {update.module: update for update in adapter_deltas(pair[1].task)}
    similarity = findings(trained / "diagnoses/small").similarity
    assert similarity is not None
    assert len(similarity.adapters) == 6
    assert similarity.permutation is not None
    assert similarity.permutation.splits == 3
    first = similarity.modules[0]
    cosines = [delta_cosine(own[first.module], quantized[first.module])]
    other = {
        precision: {update.module: update for update in saved_updates(runs[precision, 1].record.adapter or Path())}
        for precision in ("float32", "NF4")
    }
    cosines.append(delta_cosine(other["float32"][first.module], other["NF4"][first.module]))
    assert first.cosine[PairKind.PRECISION] == pytest.approx(np.mean(cosines), rel=1e-4)


def test_errors_and_bytes_are_those_of_numpy(pair: tuple[OpenedRun, OpenedRun]) -> None:
    full, quantized = pair
    updates = {update.module: update for update in adapter_deltas(quantized.task)}
    longer = {name: replace(update, B=3 * update.B) for name, update in updates.items()}
    other = {name: replace(update, B=-update.B) for name, update in updates.items()}
    found = measure_base_errors(full, quantized, [updates, longer], [other])
    assert {each.module for each in found.layers} == set(quantized.quantized_layers())
    assert len(found.layers) == 12
    for each in found.layers[:2]:
        weight = full_weight_of(full.layers[each.module]).numpy()
        rounded = quantized_weight_of(quantized.layers[each.module]).numpy()
        assert each.error == pytest.approx(np.linalg.norm(weight - rounded) / np.linalg.norm(weight), rel=1e-4)
        error = weight - rounded
        expected = float((updates[each.module].dense().numpy() * error).sum() / (error**2).sum())
        assert each.canceled == pytest.approx(2 * expected, rel=1e-3, abs=1e-6)  # the mean of one and three times it
        assert each.canceled_by_other == pytest.approx(-expected, rel=1e-3, abs=1e-6)
        assert 0 < each.reachable < 1
        assert each.full_bytes == 4 * weight.size
    mean = np.mean([each.canceled for each in found.layers])
    assert found.canceled.value == pytest.approx(mean)
    half = 12.706 * abs(mean / 2)  # Student's t with one degree of freedom; the standard error of x and 3 x is x
    assert found.canceled.high - found.canceled.value == pytest.approx(half, rel=1e-3)
    assert (found.canceled_by_other.value, found.adapters) == (pytest.approx(-mean / 2, rel=1e-3), (2, 1))
    assert math.isnan(found.canceled_by_other.low)
    own = sum(tensor.numel() * 4 for tensor in full.task.built_network.parameters())
    assert found.full_bytes == pytest.approx(own, rel=0.01)  # and buffers of positions
    saved = sum(each.full_bytes - each.quantized_bytes for each in found.layers)
    assert found.full_bytes - found.quantized_bytes == saved
    assert (found.pad_token_id, found.vocabulary) == (0, 200)


def in_bfloat16(opened: OpenedRun) -> OpenedRun:
    """A run as if it had trained with `bf16-true`; measurements open all runs in float32."""
    run = replace(opened.run, record=replace(opened.run.record))
    run.record.flat_settings["trainer.precision"] = "bf16-true"
    return replace(opened, run=run)


def test_bytes_are_those_of_the_dtype_in_which_a_run_trained(pair: tuple[OpenedRun, OpenedRun], trained: Path) -> None:
    full, quantized = pair
    plain = measure_base_errors(full, quantized, [], [])
    assert plain.dtypes == ("float32", "float32")
    assert plain.counted_in == "What is not quantized is counted in float32, as it was trained."
    halved = measure_base_errors(in_bfloat16(full), in_bfloat16(quantized), [], [])
    network = copy.deepcopy(full.task.built_network).bfloat16()
    tensors = {id(each): each for each in (*network.parameters(), *network.buffers())}
    assert halved.full_bytes == sum(each.nbytes for each in tensors.values()) < 0.6 * plain.full_bytes
    packed = sum(each.quantized_bytes for each in plain.layers)
    assert halved.quantized_bytes - packed == pytest.approx(
        (plain.quantized_bytes - packed) / 2, rel=0.05
    )  # and positions
    assert all(each.full_bytes == 2 * other.full_bytes for each, other in zip(plain.layers, halved.layers, strict=True))
    assert halved.dtypes == ("bfloat16", "bfloat16")
    mixed = measure_base_errors(in_bfloat16(full), quantized, [], [])
    assert (mixed.full_bytes, mixed.quantized_bytes) == (halved.full_bytes, plain.quantized_bytes)
    assert [each.full_bytes for each in mixed.layers] == [each.full_bytes for each in plain.layers]
    assert mixed.counted_in.endswith("in bfloat16 without quantization, and in float32 beside quantized weights.")
    folder = DiagnosisFolder(trained / "diagnoses/small")
    both = [in_bfloat16(full).run, in_bfloat16(quantized).run]
    inputs = Measurer(folder.load(), folder, both, "in_scope_accuracy", lambda _: None).inputs()
    assert inputs["base_errors"]["dtypes"] == inputs["sensitivity"]["dtypes"] == ["bfloat16", "bfloat16"]


def test_scores_take_backward_passes_of_as_many_rows_as_training(
    pair: tuple[OpenedRun, OpenedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With larger ones of the evaluation, memory could run out after all runs have trained."""
    full, _ = pair
    examples = copy.copy(full.examples)
    examples.batches = [{**batch, "labels": batch["labels"].clone()} for batch in examples.batches]
    examples.batches[0]["labels"][3] = -1  # a query that is out of scope has no loss
    full = replace(full, examples=examples)
    weights = damaged(full, "bert.encoder.layer.0.attention.self.value")
    rows: list[int] = []

    def watched(opened: OpenedRun, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        rows.append(len(batch["labels"]))
        return summed_loss(opened, batch)

    monkeypatch.setattr("lora_lightning.diagnosis.sensitivity.summed_loss", watched)
    whole = score_modules(full, weights)
    assert full.examples.datamodule.batch_size == 16
    assert rows == [16, 8]
    rows.clear()
    monkeypatch.setattr(full.examples.datamodule, "batch_size", 1)
    parts = score_modules(full, weights)
    assert rows == [1] * 24
    for name, score in whole.items():
        assert parts[name].fisher == pytest.approx(score.fisher, rel=1e-3)
        assert parts[name].taylor == pytest.approx(score.taylor, rel=1e-3, abs=1e-6)


def test_measuring_that_runs_out_of_memory_says_what_helps(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`data.batch_size`, which training would name, belongs to the runs; theirs is done."""
    folder = DiagnosisFolder(trained / "diagnoses/small")
    for error in (torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def fail(_: Measurer, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Measurer, "measure_all", fail)
        with pytest.raises(TrainingError, match=r"is kept\. Free memory, or set measure.rows below"):
            measure_runs(folder.load(), folder, open_study(folder.path), print)


def test_merging_into_the_dequantized_weights_loses_nothing(pair: tuple[OpenedRun, OpenedRun]) -> None:
    found = measure_merges(pair[1])
    assert [each.target for each in found.targets] == ["dequantized", "original", "requantized"]
    ratios = {each.target: each.recovery.ratio.value for each in found.targets}
    assert ratios["dequantized"] == pytest.approx(1, abs=1e-4)
    assert ratios["original"] != pytest.approx(1, abs=1e-4)
    assert found.note == ""


def test_a_merge_that_drifts_is_found(pair: tuple[OpenedRun, OpenedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that adds half of each update."""
    intact = merge_recovery.merged_adapters

    @contextmanager
    def halved(task: Any, target: str, originals: Any) -> Iterator[None]:
        layers = adapted_layers(task).values()
        for layer in layers:
            layer.scaling[ADAPTER] /= 2
        with intact(task, target, originals):  # type: ignore[arg-type]
            yield
        for layer in layers:
            layer.scaling[ADAPTER] *= 2

    assert merge_drift(Evidence(merges=measure_merges(pair[1]))) is None
    monkeypatch.setattr(merge_recovery, "merged_adapters", halved)
    found = measure_merges(pair[1])
    assert found.targets[0].recovery.has_gain
    assert found.targets[0].recovery.ratio.value < 0.9
    drift = merge_drift(Evidence(merges=found))
    assert drift is not None
    assert drift.name == "merge drift"


def test_the_same_model_behaves_alike_and_others_do_not(
    runs: dict[tuple[str, int], FinishedRun], pair: tuple[OpenedRun, OpenedRun]
) -> None:
    first, second = (observe(opened, Measuring()) for opened in pair)
    same = compare_behavior(first, observe(pair[0], Measuring()), PairKind.SEED)
    assert same.predictions is not None
    assert same.predictions.mean_kl.value == same.predictions.rms_change_of_p.value == 0
    assert same.predictions.perplexity_ratio.value == same.predictions.same_top.value == 1
    assert [layer.cka for layer in same.layers] == pytest.approx([1] * 3)
    assert same.flips is not None
    assert same.flips.agreement == 1
    assert same.greedy is None
    found = compare_behavior(first, second, PairKind.PRECISION)
    assert found.predictions is not None
    assert found.predictions.examples == found.predictions.rows == 24
    assert 0 < found.predictions.mean_kl.value < found.predictions.max_kl.value
    assert found.layers[-1].cka < 1
    losses = [-np.average(each.rows["score"], weights=each.rows["weight"]) for each in (first, second)]
    assert found.predictions.perplexity_ratio.value == pytest.approx(math.exp(losses[1] - losses[0]), rel=1e-4)


def opened_with(runs: OpenedRuns, run: FinishedRun, monkeypatch: pytest.MonkeyPatch, *words: str) -> OpenedRun:
    """Opens a run as if it had been trained with other options of data."""
    with monkeypatch.context() as patch:
        patch.setattr(opened_runs, "open_run", partial(opened_runs.open_run, arguments=words))
        return runs.open(run)


def test_models_are_compared_on_the_same_rows_whatever_their_batches(
    runs: dict[tuple[str, int], FinishedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run twice, with evaluation batches of another size."""
    full, opened, measuring = runs["float32", 0], OpenedRuns(10), Measuring(rows=10)
    again = replace(full, trial=replace(full.trial, id="again"))
    first = observe(opened_with(opened, full, monkeypatch, "--data.eval_batch_size=6"), measuring)
    other = opened_with(opened, again, monkeypatch, "--data.eval_batch_size=8")
    own = observe(opened_with(OpenedRuns(9), again, monkeypatch, "--data.eval_batch_size=8"), measuring)
    assert own.rows["index"].tolist() != first.rows["index"].tolist()
    with pytest.raises(DataError, match="were run on different validation examples, so that their predictions cannot"):
        compare_behavior(first, own, PairKind.PRECISION)
    second = observe(other, measuring)
    assert second.rows["index"].tolist() == first.rows["index"].tolist()
    found = compare_behavior(first, second, PairKind.PRECISION)
    assert found.predictions is not None
    assert found.predictions.mean_kl.value == 0
    assert found.layers[-1].cka == pytest.approx(1)
    third = replace(full, trial=replace(full.trial, id="third"))
    with pytest.raises(DataError, match=r"the run .* reads other validation examples \(rows, tokens or labels\) than"):
        opened_with(opened, third, monkeypatch, "--data.max_length=3")


def test_the_rows_are_those_of_the_first_run_even_if_another_is_opened_first(
    runs: dict[tuple[str, int], FinishedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, other = runs["float32", 0], runs["float32", 1]
    sizes = {full.record.folder: 6, other.record.folder: 8}
    known = opened_runs.open_run
    monkeypatch.setattr(
        opened_runs,
        "open_run",
        lambda folder, **words: known(folder, [f"--data.eval_batch_size={sizes[folder]}"], **words),
    )
    found = [OpenedRuns(10, full).open(run).examples for run in (other, full)]
    rows = [[batch["index"].tolist() for batch in each.batches] for each in found]
    assert rows[0] == rows[1]
    assert [len(batch) for batch in rows[0]] == [6, 4]


def test_both_sides_multiply_in_float32(pair: tuple[OpenedRun, OpenedRun]) -> None:
    """Whatever the runs were trained in: products in 16 bits would be taken for what quantizing the weights does."""
    quantized = pair[1]
    layers = [*quantized.quantized_layers().values()]
    exact, merges = observe(quantized, Measuring()), measure_merges(quantized)
    for layer in layers:
        bitsandbytes.set_compute_dtype(layer, torch.bfloat16)
    try:
        found, rounded = observe(quantized, Measuring()), measure_merges(quantized)
        assert {bitsandbytes.compute_dtype(layer) for layer in layers} == {torch.bfloat16}
    finally:
        for layer in layers:
            bitsandbytes.set_compute_dtype(layer, torch.float32)
    assert all(
        torch.equal(one.logits, other.logits) for one, other in zip(found.predictions, exact.predictions, strict=True)
    )
    assert all(torch.equal(one, other) for one, other in zip(found.states, exact.states, strict=True))
    assert rounded == merges


def test_flips_are_of_decisions_with_each_run_s_threshold(pair: tuple[OpenedRun, OpenedRun]) -> None:
    full = pair[0]
    task, former = full.task, full.task.threshold
    first = observe(full, Measuring())
    assert first.decisions is not None
    task.set_threshold(1e-9)
    try:
        second = observe(full, Measuring())
    finally:
        task.set_threshold(former)
    assert second.decisions is not None
    assert set(second.decisions.made.tolist()) == {-1}
    found = compare_behavior(first, second, PairKind.PRECISION)
    assert found.flips is not None
    assert found.flips.examples == first.examples == 24
    assert found.flips.agreement == np.mean(first.decisions.made == -1) < 1
    assert "rejected as out of scope" in first.decided


def test_hidden_states_are_of_rows_of_all_lengths(pair: tuple[OpenedRun, OpenedRun]) -> None:
    full = pair[0]
    lengths = [int(length) for batch in full.examples.batches for length in batch["attention_mask"].sum(dim=1)]
    every, few = hidden_states(full, 24), hidden_states(full, 4)
    assert lengths[0] > lengths[-1]
    for all_rows, some in zip(every, few, strict=True):
        torch.testing.assert_close(some, all_rows[[3, 9, 15, 21]], rtol=1e-4, atol=1e-5)


def test_pairs_that_share_a_start_stand_beside_those_that_do_not(trained: Path) -> None:
    own = DiagnosisFolder(trained / "diagnoses/small")
    behaviors = findings(own.path).behaviors
    assert behaviors is not None
    float32, nf4_runs = ("float32, r = 4, seed ", "NF4, r = 4, seed ")
    assert {(pair.kind, pair.first, pair.second) for pair in behaviors.pairs} == {
        (PairKind.PRECISION, f"{float32}0", f"{nf4_runs}0"),
        (PairKind.PRECISION, f"{float32}1", f"{nf4_runs}1"),
        (PairKind.SEED, f"{float32}0", f"{float32}1"),
        (PairKind.BOTH, f"{float32}0", f"{nf4_runs}5"),
        (PairKind.BOTH, f"{float32}1", f"{nf4_runs}6"),
    }
    diagnosis, study = own.load(), open_study(own.path)
    runs = [run for run in finished_runs(study) if run.seed < 2]
    measurer = Measurer(replace(diagnosis, other_seeds=()), own, runs, "in_scope_accuracy", lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_lightning.diagnosis.measuring.compare_behavior", lambda *words: words)
        patch.setattr(Measurer, "_observe", lambda _, run: Titled(run.title))
        pairs: Any = measurer._behavior().pairs
    found = [(first.title, second.title) for first, second, kind in pairs if kind is PairKind.BOTH]
    assert found == [(f"{float32}0", f"{nf4_runs}1")]  # without further runs, those that are there


class Titled:
    """What was observed of a run, empty."""

    examples, probed, completions, decided = 1, 1, (), ""

    def __init__(self, title: str) -> None:
        self.title = title


def damaged(full: OpenedRun, module: str, size: float = 0.5) -> dict[str, torch.Tensor]:
    """What would be quantized, of which one module is damaged and the others are nearly exact."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: full_weight_of(layer).clone() for name, layer in full.layers.items() if ".layer." in name}
    for name, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator) * weight.std()
        weights[name] = weight + (size if name == module else 1e-3) * noise
    return weights


def test_a_damaged_layer_is_found_first_by_cheap_score_and_by_measurement(pair: tuple[OpenedRun, OpenedRun]) -> None:
    full, _ = pair
    state = {name: tensor.clone() for name, tensor in full.task.state_dict().items()}
    module = "bert.encoder.layer.0.attention.self.value"
    weights = damaged(full, module)
    scores = score_modules(full, weights)
    assert max(scores, key=lambda name: scores[name].fisher) == module
    parts = QuantizedParts(full, weights, "in_scope_accuracy")
    singles = {name: parts.effect(name, Grouping.MODULE, Direction.IN, [name]).divergence for name in weights}
    assert max(singles, key=lambda name: singles[name].value) == module
    for direction in Direction:
        layers = groups_of(weights, Grouping.LAYER)
        effects = {name: parts.effect(name, Grouping.LAYER, direction, own) for name, own in layers.items()}
        assert max(effects, key=lambda name: effects[name].divergence.value) == "layer 0"
    assert next(iter(groups_of(weights, Grouping.KIND))) == "attention.self.query"
    assert all(torch.equal(tensor, state[name]) for name, tensor in full.task.state_dict().items())


def test_the_scores_predict_small_changes_of_loss(pair: tuple[OpenedRun, OpenedRun]) -> None:
    full, quantized = pair
    weights = {name: quantized_weight_of(layer) for name, layer in quantized.quantized_layers().items()}
    halfway = {name: 0.9 * full_weight_of(full.layers[name]) + 0.1 * weight for name, weight in weights.items()}
    scores, parts = score_modules(full, halfway), QuantizedParts(full, halfway, "in_scope_accuracy")
    loss = parts.effect("all", Grouping.ALL, Direction.IN, list(halfway)).loss
    assert sum(score.taylor for score in scores.values()) == pytest.approx(loss.value, rel=0.2)
    assert loss.low < loss.value < loss.high


def test_sensitivity_ends_in_a_list_within_its_budget(pair: tuple[OpenedRun, OpenedRun]) -> None:
    full, quantized = pair
    errors = measure_base_errors(full, quantized, [], [])
    measuring, proof = Measuring(rows=24, singles=3), SkipProof(more_bytes=0.2, random_lists=2, seeds=(0,))
    lines: list[str] = []
    found = measure_sensitivity(full, quantized, "in_scope_accuracy", measuring, errors, proof, lines.append)
    assert [score.fisher for score in found.scores] == sorted((score.fisher for score in found.scores), reverse=True)
    counts = {
        (grouping, direction): sum(each.grouping is grouping and each.direction is direction for each in found.effects)
        for grouping in Grouping
        for direction in Direction
    }
    assert counts[Grouping.LAYER, Direction.IN] == counts[Grouping.LAYER, Direction.OUT] == 2
    assert counts[Grouping.KIND, Direction.IN] == 6
    assert counts[Grouping.MODULE, Direction.IN] == 3
    assert found.joint.modules == 12
    assert found.examples == 24
    assert set(found.additivity) == {Grouping.KIND, Grouping.LAYER}
    layers = [each for each in found.effects if each.grouping is Grouping.LAYER and each.direction is Direction.IN]
    summed = sum(each.loss.value for each in layers) - found.joint.loss.value
    assert found.additivity[Grouping.LAYER].value == pytest.approx(summed, abs=1e-9)
    kinds = [each for each in found.agreements if each.grouping is Grouping.KIND]
    assert all(-1 <= each.correlation <= 1 and each.groups == 6 for each in kinds)
    assert found.skip is not None
    assert 0 < found.skip.share <= 0.2
    assert set(found.skip.modules) <= {score.module for score in found.scores[:3]}
    sizes = {each.module: each.full_bytes - each.quantized_bytes for each in errors.layers}
    assert found.skip.more_bytes == sum(sizes[name] for name in found.skip.modules)
    assert len(found.skip.random) == 2
    assert all(sum(sizes[name] for name in names) <= found.skip.more_bytes for names in found.skip.random)
    assert len(lines) == 3
    none = choose_skips(found.effects, {}, errors, replace(proof, more_bytes=1e-6))
    assert (none.modules, none.random) == ((), ())


def test_the_seeds_of_finished_runs_are_named_and_one_adapter_is_one(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained / "diagnoses/small"
    found = findings(folder)
    assert (found.seeds, found.other_seeds, found.different_options) == ((0, 1), (5, 6), {})
    assert found.measured == ("float32, r = 4, seed 0", "NF4, r = 4, seed 0")
    assert found.sensitivity is not None
    assert found.sensitivity.predictions == found.sensitivity.examples == 24
    assert found.behaviors is not None
    assert (found.behaviors.examples, found.behaviors.completions) == (24, 0)
    assert 0 < found.behaviors.probed <= 24
    known = StudyJournal.statuses

    def two_fail(journal: StudyJournal, trials: Sequence[Trial]) -> dict[str, TrialStatus]:
        failed, lost = TrialStatus("failed", error="x"), {("float32, r = 4", 0), ("NF4, r = 4", 6)}
        ids = {trial.id for trial in trials if (trial.configuration, trial.seed) in lost}
        return {name: failed if name in ids else each for name, each in known(journal, trials).items()}

    monkeypatch.setattr(StudyJournal, "statuses", two_fail)
    found = findings(folder)
    assert (found.seeds, found.other_seeds) == ((1,), (5,))
    assert found.measured == ("float32, r = 4, seed 1", "NF4, r = 4, seed 1")
    assert "Seeds that lack a finished run at r = 4: 0, 6." in found.notes
    assert "compared at r = 4 with the seed 1" in make_page(found).subtitle


def test_options_that_differ_beside_quantization_are_found(runs: dict[tuple[str, int], FinishedRun]) -> None:
    own = DiagnosisFolder(next(iter(runs.values())).record.folder.parent).load()
    other = replace(runs["NF4", 0], record=replace(runs["NF4", 0].record))
    other.record.flat_settings["model.init_args.optimization.learning_rate"] = 0.02
    assert different_options(own, [runs["float32", 0], other]) == {
        "model.init_args.optimization.learning_rate": (0.01, 0.02)
    }
    assert different_options(own, [other]) is None


def test_an_option_that_an_older_release_lacks_counts_as_its_default(copied: Path) -> None:
    """float32 was trained by a release without `lora.use_dora`, and NF4 was retried after an upgrade."""
    for config in copied.glob("float32_*/config.yaml"):
        content = yaml.safe_load(config.read_text())
        assert content["model"]["init_args"]["lora"].pop("use_dora") is False
        config.write_text(yaml.safe_dump(content))
    found = {(run.precision, run.seed): run for run in finished_runs(open_study(copied))}
    own, pair = DiagnosisFolder(copied).load(), [found["float32", 0], found["NF4", 0]]
    assert different_options(own, pair) == {}
    pair[1].record.flat_settings["model.init_args.lora.use_dora"] = True
    assert different_options(own, pair) == {"model.init_args.lora.use_dora": (False, True)}
    config = pair[0].record.folder / "config.yaml"
    config.write_text(config.read_text() + "no_longer_an_option: 1\n")
    assert different_options(own, pair) == {"model.init_args.lora.use_dora": (None, True)}


def test_the_files_of_an_adapter_say_what_its_numbers_are(copied: Path) -> None:
    run = next(iter(finished_runs(open_study(copied))))
    assert task_numbers(run) == TaskNumbers()
    folder = run.record.adapter
    assert folder is not None
    for file, changes, expected in (
        ("labels.json", {"problem_type": "regression"}, TaskNumbers(of_errors=True)),
        ("adapter_config.json", {"task_type": "CAUSAL_LM"}, TaskNumbers(of_tokens=True, of_errors=True)),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
        assert task_numbers(run) == expected


def test_nothing_is_done_twice(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained / "diagnoses/small"
    files = [*folder.glob("measurements/*.json"), *folder.rglob("*.ckpt")]
    times = {file: file.stat().st_mtime_ns for file in files}
    assert len(times) > 8
    assert main(["diagnose", "run", str(trained / "small.yaml"), f"--save_dir={trained / 'diagnoses'}"]) == 0
    assert times == {file: file.stat().st_mtime_ns for file in files}
    printed = capsys.readouterr()
    assert "6 of 6 trials are finished" in printed.out
    assert "comparing" not in printed.err
    assert main(["diagnose", "report", str(folder)]) == 0
    assert "- not_worse: " in capsys.readouterr().out


def test_timings_are_measured_once_and_end_in_the_costs(
    copied: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All runs but one have been timed before."""
    name = "inference_ms_adapter_batch_1"
    for run in copied.glob("*_seed_*"):
        if not run.name.startswith("NF4_r_4_seed_1"):
            (run / TIMINGS).write_text(json.dumps({"seconds_per_step": 0.1, name: 5.0}))
    words = ["diagnose", "run", str(trained / "small.yaml"), f"--save_dir={copied.parent}", "--timings"]
    assert main(words) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("timed: "))
    assert line.startswith("timed:   NF4, r = 4, seed 1: ")
    (run,) = copied.glob("NF4_r_4_seed_1_*")
    times = json.loads((run / TIMINGS).read_text())
    full, quantized = findings(copied).costs.rows
    assert full.costs[name] == Interval(5, 5, 5)
    assert quantized.costs[name].value == pytest.approx((5 + times[name]) / 2)
    assert quantized.costs[name].low < quantized.costs[name].value  # of two seeds
    assert quantized.savings[name].value == pytest.approx(50 - 10 * times[name])


def test_runs_on_another_device_are_named_and_their_times_are_not_compared(copied: Path) -> None:
    assert not any("different devices" in note for note in findings(copied).notes)
    for run in copied.glob("NF4_*_seed_*"):
        written = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(written | {"device": "cuda", "device_name": "NVIDIA H200"}))
    found = findings(copied)
    assert found.costs.devices.keys() >= {"seconds_per_step", "wall_seconds"}
    assert not found.costs.rows[1].savings.keys() & found.costs.devices.keys()
    assert any(note.startswith("Runs were trained on different devices (NVIDIA H200, cpu)") for note in found.notes)
    for run in copied.glob("*_seed_*"):
        times = {"seconds_per_step": 0.1, INFERENCE[0]: 5.0, "device": "cpu", "device_name": None}
        (run / TIMINGS).write_text(json.dumps(times))
    found = findings(copied)
    assert found.costs.devices.keys() == {"wall_seconds"}
    assert [found.costs.rows[1].savings[name].value for name in ("seconds_per_step", INFERENCE[0])] == [0, 0]


def test_a_verdict_that_is_required_and_not_reached_is_status_3(
    copied: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((copied / "diagnosis_settings.json").read_text())
    reached = [each.name for each in findings(copied).verdicts if each.state is State.YES]
    for required, status in ((reached, 0), (["smaller_than_seed_noise"], 3)):
        (copied / "diagnosis_settings.json").write_text(json.dumps(settings | {"require": required}))
        assert main(["diagnose", "report", str(copied)]) == status
    error = capsys.readouterr().err
    assert "the required verdict smaller_than_seed_noise is not reached (not measured)" in error
    assert (copied / "diagnosis.json").is_file()


def test_what_was_measured_on_other_runs_or_settings_does_not_count(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "diagnosis_settings.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"measuring": settings["measuring"] | {"rows": 23}}))
    found = findings(copied)
    assert (found.sensitivity, found.merges, found.behaviors) == (None, None, None)
    assert found.errors is not None
    assert found.similarity is not None
    assert any("sensitivity, merge recovery, model behavior" in note for note in found.notes)
    former = copied / "measurements/base_errors.json"
    former.write_text(json.dumps(json.loads(former.read_text()) | {"schema_version": SCHEMA_VERSION - 1}))
    found = findings(copied)
    assert found.errors is None
    assert any("or by another release, and left out: base errors, sensitivity" in note for note in found.notes)
    former.write_text(json.dumps(json.loads(former.read_text()) | {"schema_version": SCHEMA_VERSION}))
    (run,) = copied.glob("NF4_r_4_seed_0_*")
    (run / "summary.json").write_text((run / "summary.json").read_text() + " ")
    found = findings(copied)
    assert (found.similarity, found.errors) == (None, None)
    path.write_text(json.dumps({name: value for name, value in settings.items() if name != "measuring"}))
    assert main(["diagnose", "report", str(copied)]) == 2
    assert "is damaged or of another release (KeyError)" in capsys.readouterr().err


def change_run(folder: Path, pattern: str, **changes: object) -> None:
    (run,) = folder.glob(pattern)
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("data", "was trained, validated or tested on other rows than"),
        ("base", "was trained from another base model than"),
        ("labels", "was trained on other labels than"),
        ("checkpoint", "has no checkpoint or no exported adapter any more"),
        ("folder", "is gone"),
        ("measurement", "is damaged"),
        ("settings", "is damaged"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_and_nothing_is_lost(
    what: str, message: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = copied.glob("NF4_r_4_seed_0_*")
    record = RunRecord.load(run)
    if what == "data":
        change_run(copied, "NF4_r_4_seed_0_*", data_rows=dict(record.data_fingerprint) | {"train": "0"})
    elif what == "base":
        change_run(copied, "NF4_r_4_seed_0_*", base_model=dict(record.base_model or {}) | {"weights": "0"})
    elif what == "labels":
        path = run / "adapter/labels.json"
        path.write_text(path.read_text().replace("timer", "clock"))
    elif what == "checkpoint":
        shutil.rmtree(run / "checkpoints")
    elif what == "folder":
        shutil.rmtree(run)
    elif what == "measurement":
        (copied / "measurements/base_errors.json").write_text("{")
    else:
        (copied / "diagnosis_settings.json").write_text("{")
    before = {path for path in copied.rglob("*") if path.is_file()}
    assert main(["diagnose", "report", str(copied)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert before == {path for path in copied.rglob("*") if path.is_file()}


def test_a_base_that_is_quantized_is_no_full_precision(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = yaml.safe_load((trained / "small.yaml").read_text())["base"]
    base["model"]["init_args"]["quantization"] = BITS
    path = save_diagnosis(tmp_path, base, ranks=[4])
    assert main(["diagnose", "run", str(path), f"--save_dir={tmp_path / 'diagnoses'}"]) == 2
    assert "the precision 'float32' of the diagnosis must not set model.quantization" in capsys.readouterr().err


def test_another_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "report", str(tmp_path)]) == 2
    assert "is not the folder of a diagnosis" in capsys.readouterr().err


def test_a_diagnosis_that_is_stopped_or_fails_is_resumed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the first run: a report has to wait for the other precision, and the same command resumes."""
    path = save_diagnosis(tmp_path, yaml.safe_load((trained / "small.yaml").read_text())["base"], ranks=[4])
    step = SequenceClassificationTask.training_step

    def stop(task: SequenceClassificationTask, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if task.quantization is not None:
            signal.raise_signal(signal.SIGTERM)
        return step(task, batch, batch_idx)

    words = ["diagnose", "run", str(path), f"--save_dir={tmp_path / 'diagnoses'}"]
    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "training_step", stop)
        assert main(words) == 75
    hint = f"resume with: lora-lightning diagnose run {path} --save_dir={tmp_path / 'diagnoses'}"
    assert hint in capsys.readouterr().err
    folder = tmp_path / "diagnoses/small"
    assert main(["diagnose", "report", str(folder)]) == 2
    assert "no run of the precision 'NF4'" in capsys.readouterr().err

    def fail(task: SequenceClassificationTask, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if task.quantization is not None:
            raise ZeroDivisionError("a bug of ours")
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "training_step", fail)
        assert main(words) == 3
    assert "1 of 2 trials failed, the first one (NF4, r = 4, seed 0) because" in capsys.readouterr().err

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lora_lightning.diagnosis.measuring.measure_base_errors", interrupt)
        assert main([*words, "--retry_failed"]) == 130
    assert hint in capsys.readouterr().err
    assert main(["diagnose", "report", str(folder)]) == 0
    assert "- merge_keeps_gain: not measured" in capsys.readouterr().out
    assert main(words) == 0
    assert {each.stem for each in folder.glob("measurements/*")} == {
        "adapter_similarity",
        "base_errors",
        "merge_recovery",
        "model_behavior",
        "sensitivity",
    }


def nf4(**options: Any) -> dict[str, Any]:
    """Further options of the quantized precision."""
    return {"precisions": {"float32": {}, "NF4": {"model.quantization": BITS, **options}}}


def test_how_rows_are_read_may_differ(trained: Path, tmp_path: Path) -> None:
    base = yaml.safe_load((trained / "small.yaml").read_text())["base"]
    path = save_diagnosis(tmp_path, base, ranks=[4], **nf4(**{"data.eval_batch_size": 8, "data.batch_size": 4}))
    assert main(["diagnose", "run", str(path), f"--save_dir={tmp_path / 'diagnoses'}", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"model.lora": None}, "ranks": [4], "derived": None}, "sets? model.lora"),
        ({"options": {"model.quantization": BITS}}, "options or --set and the axis precision set model.quantization"),
        (
            {"precisions": {"float32": {}, "NF4": {"model.quantization": {"bits": 4, "skip_modules": ["nothing"]}}}},
            "the model has no module 'nothing'",
        ),
        ({"objective": "accuraci"}, "'accuraci' is not reported on a test split"),
        (
            {
                "precisions": {
                    "float32": {},
                    "NF4": {"model.quantization": BITS, "model.lora.target_modules": ["query"]},
                }
            },
            r"may adapt different modules, because model.lora.target_modules is all-linear and \['query'\]",
        ),
        (
            nf4(**{"model.lora.rank_pattern": {"query": 16}}),
            "different ranks, because model.lora.rank_pattern is None and",
        ),
        (
            {"ranks": [2, 4], "options": {"model.lora.rank_pattern": {"query": 4}}},
            r"compares the ranks 2, 4, but model.lora.rank_pattern is \{'query': 4\}",
        ),
        (nf4(**{"model.lora.modules_to_save": ["pooler"]}), "because model.lora.modules_to_save is None and"),
        (nf4(**{"data.max_length": 6}), "same examples and base, because data.max_length is 64 and 6; set it to"),
        (nf4(**{"trainer.limit_test_batches": 1}), "because trainer.limit_test_batches is "),
        (
            {"options": {"trainer.limit_test_batches": 1}} | nf4(**{"data.eval_batch_size": 8}),
            r"data.eval_batch_size is 64 and 8; .* not eval_batch_size where trainer.limit_test_batches is set",
        ),
        (
            {"options": {"model.lora.target_modules": ["query", "word_embeddings"]}},
            "has no linear layer 'word_embeddings'",
        ),
    ],
)
def test_bad_input_is_a_sentence_before_anything_is_written(
    changes: dict[str, object], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = yaml.safe_load((trained / "small.yaml").read_text())["base"]
    path = save_diagnosis(tmp_path, base, **{"ranks": [4], **changes})
    assert main(["diagnose", "run", str(path), f"--save_dir={tmp_path / 'diagnoses'}"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "diagnoses").exists()


@pytest.mark.parametrize(
    "lora",
    [
        None,
        LoraSettings(init_lora_weights="pissa"),
        LoraSettings(adalora=AdaLoraSettings(target_r=2, init_r=3)),
        LoraSettings(target_parameters=["mlp.experts.down_proj"], lora_dropout=0.0),
        LoraSettings(use_dora=True),
        LoraSettings(init_lora_weights="loftq"),
        LoraSettings(init_lora_weights="eva"),
        LoraSettings(init_lora_weights="olora"),
    ],
    ids=["full", "PiSSA", "AdaLoRA", "experts", "DoRA", "LoftQ", "EVA", "OLoRA"],
)
def test_adapters_that_cannot_be_compared_are_refused(lora: LoraSettings | None) -> None:
    starts = [LoraSettings(init_lora_weights=start) for start in (True, "gaussian", "orthogonal")]
    for compared in (*starts, LoraSettings(use_rslora=True)):
        check_adapters(compared, "NF4")
    with pytest.raises(
        ConfigurationError, match="the precision 'NF4' of the diagnosis has no adapters of a fixed rank"
    ):
        check_adapters(lora, "NF4")


def test_a_verdict_that_the_task_cannot_reach_is_refused(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = intents(tiny_backbone("bert"), tmp_path)
    data_dir = str(save_tiny_glue(tmp_path / "glue", "stsb"))
    options = {
        "task_name": "stsb",
        "data_dir": data_dir,
        "allow_partial": True,
        "test_share": 0.5,
        "cache_dir": str(tmp_path / "cache"),
    }
    base["data"] = {"class_path": "GlueDataModule", "init_args": options}
    base["checkpoint"] = {"monitor": "val/pearson", "mode": "max"}
    own: dict[str, Any] = {"ranks": [2, 4], "seeds": [0, 1, 2], "compare": {"other_seeds": [7, 8, 9]}}
    path = save_diagnosis(tmp_path, base, objective="pearson", require=["healthy"], **own)
    assert main(["diagnose", "run", str(path), f"--save_dir={tmp_path / 'diagnoses'}"]) == 2
    assert "require names what cannot be reached: healthy (a regression has no KL" in capsys.readouterr().err
    assert not (tmp_path / "diagnoses").exists()


def test_an_adapter_that_is_continued_is_refused(
    trained: Path,
    runs: dict[tuple[str, int], FinishedRun],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All runs would start from one A and B, so that every similarity is about what these have learnt."""
    base = yaml.safe_load((trained / "small.yaml").read_text())["base"]
    adapter = str(runs["float32", 0].record.adapter)
    path = save_diagnosis(tmp_path, base, ranks=[4], derived=None, options={"model.adapter": adapter})
    assert main(["diagnose", "run", str(path), f"--save_dir={tmp_path / 'diagnoses'}"]) == 2
    assert f"model.adapter of the precision 'float32' is {adapter}, but" in capsys.readouterr().err


SIZES = ("data.init_args.batch_size", "data.init_args.eval_batch_size")


@pytest.mark.parametrize(
    ("limit", "value", "sizes"),
    [
        ("trainer.limit_train_batches", 10, [0]),
        ("trainer.limit_train_batches", 0.5, [0]),
        ("trainer.limit_val_batches", 4, [1]),
        ("trainer.limit_test_batches", 1, [1]),
        ("trainer.overfit_batches", 2, [0, 1]),
    ],
)
def test_batches_that_are_left_out_are_the_same_for_both(limit: str, value: float, sizes: list[int]) -> None:
    """A number of batches of another size is another number of examples."""
    none = {"trainer.limit_train_batches": 1.0, "trainer.limit_val_batches": None, "trainer.overfit_batches": 0.0}
    check_same_examples("a", "b", none, dict.fromkeys(SIZES, 32))
    with pytest.raises(ConfigurationError, match=f"same examples and base, because {limit} is {value} and "):
        check_same_examples("a", "b", {limit: value}, none)
    for number, size in enumerate(SIZES):
        both = {limit: value, size: 8}, {limit: value, size: 32}
        if number in sizes:
            named = size.rpartition(".")[2]
            with pytest.raises(ConfigurationError, match=rf"data.{named} is 8 and 32; .* not {named} where {limit} is"):
                check_same_examples("a", "b", *both)
        else:
            check_same_examples("a", "b", *both)


def test_a_changed_comparison_is_refused_and_the_restored_yaml_goes_on(
    copied: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study that gained the runs of another comparison could not be continued with either YAML."""
    base = yaml.safe_load((trained / "small.yaml").read_text())["base"]
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.suffix != ".lock"}
    other = SETTINGS | {"ranks": [2, 4], "compare": {"rank": 2, "further_seeds": [1], "other_seeds": [5, 6]}}
    for words in (["--dry-run"], []):
        path = save_diagnosis(copied.parent, base, **other)
        assert main(["diagnose", "run", str(path), f"--save_dir={copied.parent}", *words]) == 2
        assert "has a diagnosis in which compare.rank is 4, and not 2; restore the YAML" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}
    folder = DiagnosisFolder(copied)
    own = folder.load()
    with pytest.raises(ConfigurationError, match=r"compare.other_seeds has 6, and not only \[5\]: which seeds the"):
        folder.check(replace(own, seeds=(*own.seeds, 6), other_seeds=(5,)))  # the permutation test is known
    folder.check(replace(own, other_seeds=(5, 6, 7)))
    path = save_diagnosis(copied.parent, base, **SETTINGS)
    assert main(["diagnose", "run", str(path), f"--save_dir={copied.parent}"]) == 0


def test_seeds_that_were_added_after_results_are_named(copied: Path) -> None:
    """With further seeds until a verdict pleases, its error rate is above 5 %."""
    path = copied / "study.json"
    assert not any("Added after tested runs" in note for note in findings(copied).notes)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_after_results": {"seeds": [1]}}))
    assert any(note.startswith("Added after tested runs had finished: seed 1. The") for note in findings(copied).notes)


def test_what_a_list_has_to_reach_is_fixed_once_it_is_trained(trained: Path, tmp_path: Path) -> None:
    """A list that was refuted would be proven by a smaller share of the same runs, or over other seeds."""
    folder = DiagnosisFolder(Path(shutil.copytree(trained / "diagnoses/small", tmp_path / "small")))
    proof = SkipProof(bought_back=0.5, seeds=(0, 1))
    own = replace(folder.load(), proof=proof)
    changes: dict[str, dict[str, Any]] = {
        "skip_modules.bought_back is 0.5, and not 0.3": {"proof": replace(proof, bought_back=0.3)},
        "skip_modules.more_bytes is 0.15, and not 0.3": {"proof": replace(proof, more_bytes=0.3)},
        "skip_modules.random_lists is 3, and not 1": {"proof": replace(proof, random_lists=1)},
        "skip_modules.seeds has 1": {"proof": replace(proof, seeds=(0,))},
        "skip_modules is set, and not left out": {"proof": None},
        "measure.singles is 5, and not 7": {"measuring": replace(own.measuring, singles=7)},
        "measure.rows is 24, and not 9": {"measuring": replace(own.measuring, rows=9)},
    }
    for change in changes.values():
        folder.save(replace(own, **change))  # before any list is trained
    folder.save(own)
    lists = folder.path / "skip_modules/12345678"
    lists.mkdir(parents=True)
    (lists / "study.json").write_text("{}")
    saved = (folder.path / "diagnosis_settings.json").read_text()
    for message, change in changes.items():
        with pytest.raises(ConfigurationError, match=f"for which {message}: what has to be proven is decided before"):
            folder.save(replace(own, **change))
    assert (folder.path / "diagnosis_settings.json").read_text() == saved
    folder.save(replace(own, proof=replace(proof, seeds=(0, 1, 2)), measuring=replace(own.measuring, prompts=9)))


def test_measurements_depend_on_what_they_use_alone(trained: Path, runs: dict[tuple[str, int], FinishedRun]) -> None:
    """Measured again, rounding could choose another list, all of whose runs would train anew."""
    folder = DiagnosisFolder(trained / "diagnoses/small")
    own = folder.load()

    def inputs(metric: str = "in_scope_accuracy", **changes: Any) -> dict[str, Any]:
        return Measurer(replace(own, **changes), folder, [*runs.values()], metric, lambda _: None).inputs()

    def changed(other: dict[str, Any]) -> set[str]:
        return {name for name, each in inputs().items() if each != other[name]}

    assert changed(inputs(proof=SkipProof(bought_back=0.7, seeds=(0, 1)))) == set()
    assert changed(inputs(proof=SkipProof(more_bytes=0.3, seeds=(0, 1)))) == {"sensitivity"}
    assert changed(inputs(proof=SkipProof(random_lists=5, seeds=(0, 1)))) == {"sensitivity"}
    assert changed(inputs("accuracy")) == {"sensitivity"}
    own_measuring = own.measuring
    expected = {
        "rows": {"sensitivity", "merge_recovery", "model_behavior"},
        "singles": {"sensitivity"},
        "prompts": {"model_behavior"},
        "new_tokens": {"model_behavior"},
    }
    for name, names in expected.items():
        assert changed(inputs(measuring=replace(own_measuring, **{name: 9}))) == names
    assert changed(inputs(seeds=own.seeds[::-1], other_seeds=own.other_seeds[::-1])) == set()


def test_modules_stay_measured_on_the_pair_on_which_a_list_was_chosen(
    copied: Path, runs: dict[tuple[str, int], FinishedRun]
) -> None:
    """The run with seed 0 had failed and was run again: another pair would choose other lists, which train anew."""
    folder = DiagnosisFolder(copied)
    own = folder.load()

    def measurer(*seeds: int, singles: int = 5) -> Measurer:
        kept = [run for run in runs.values() if run.seed in seeds]
        changed = replace(own, measuring=replace(own.measuring, singles=singles))
        return Measurer(changed, folder, kept, "in_scope_accuracy", lambda _: None)

    assert [run.seed for run in measurer(0, 1).pair or ()] == [0, 0]
    path = copied / "measurements/sensitivity.json"
    inputs = json.dumps(measurer(1).inputs()["sensitivity"], sort_keys=True)
    identity = hashlib.sha256(inputs.encode()).hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": identity}))
    again = measurer(0, 1)
    assert [run.seed for run in again.pair or ()] == [1, 1]
    assert again.known("sensitivity", Sensitivity) is not None
    assert again.inputs()["base_errors"]["runs"] == again.inputs()["sensitivity"]["runs"]
    assert [run.seed for run in measurer(0, 1, singles=4).pair or ()] == [0, 0]


def test_a_study_s_report_leaves_that_of_the_diagnosis(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
    page = (copied / "report/report.html").read_text()
    assert main(["study", "report", str(copied)]) == 0
    assert (copied / "report/report.html").read_text() == page
    assert (copied / "study_report/report.html").is_file()


def test_a_budget_that_is_spent_is_named_in_the_report_and_where_a_precision_has_no_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"budget": 1e-9}))
    known = StudyJournal.statuses

    def only(*precisions: str) -> Any:
        def statuses(journal: StudyJournal, trials: Sequence[Trial]) -> dict[str, TrialStatus]:
            kept = {trial.id for trial in trials if trial.configuration.startswith(precisions)}
            found = known(journal, trials)
            return {name: each if name in kept else TrialStatus("waiting") for name, each in found.items()}

        return statuses

    spent = "The budget of 1e-09 hours is spent, so that 4 of 6 runs were not started."
    with monkeypatch.context() as patch:
        patch.setattr(StudyJournal, "statuses", only("float32"))
        with pytest.raises(ConfigurationError, match=rf"{re.escape(spent)} Raise budget in the YAML, and run the"):
            findings(copied)

    def one_seed(journal: StudyJournal, trials: Sequence[Trial]) -> dict[str, TrialStatus]:
        kept = {trial.id for trial in trials if trial.seed == 0}
        found = known(journal, trials)
        return {name: each if name in kept else TrialStatus("waiting") for name, each in found.items()}

    monkeypatch.setattr(StudyJournal, "statuses", one_seed)
    assert spent in findings(copied).notes


def test_runs_with_lists_that_the_budget_leaves_out_are_an_error(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, study = findings(trained / "diagnoses/small"), open_study(trained / "diagnoses/small")
    check_budget_for_lists(found, None)
    check_budget_for_lists(found, study)
    monkeypatch.setattr("lora_lightning.diagnosis.findings.budget_note", lambda _: "The budget of 1 hours is spent.")
    with pytest.raises(TrialsFailed, match="what is left of the budget: the budget of 1 hours is spent; raise it in"):
        check_budget_for_lists(found, study)
    missing = replace(found.verdicts[0], sentence=BUDGET_SPENT)
    with pytest.raises(TrialsFailed, match="left of the budget: the budget of the diagnosis is spent, so no list"):
        check_budget_for_lists(replace(found, verdicts=(missing,)), None)


def check_runs_with_lists(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with lists are compared with those of both precisions, and a list whose runs failed is not judged."""
    (own,) = (folder / "skip_modules").glob("*/study.json")
    (run,) = own.parent.glob("random_list_1_seed_0_*")
    record, labels = RunRecord.load(run), run / "adapter/labels.json"
    changes: dict[str, dict[str, Any]] = {
        "given other rows of train": {"data_rows": dict(record.data_fingerprint) | {"train": "0"}},
        "trained from another base model": {"base_model": dict(record.base_model or {}) | {"weights": "0"}},
        "trained on other labels": {},
    }
    for message, change in changes.items():
        kept = {path: path.read_text() for path in (run / "run.json", labels)}
        change_run(own.parent, run.name, **change)
        if not change:
            labels.write_text(kept[labels].replace("timer", "clock"))
        assert main(["diagnose", "report", str(folder)]) == 2
        assert f"the run 'random list 1, seed 0' was {message} than '" in capsys.readouterr().err
        for path, text in kept.items():
            path.write_text(text)
    known = StudyJournal.statuses
    ends = {
        "1 of 2 runs with lists failed, the first one (random list 1, seed 0) because the disk broke.": (
            TrialStatus("failed", error="the disk broke"),
            "1 of 2 trials failed and are left out",
        ),
        "1 of 2 runs with lists have not finished.": (TrialStatus("waiting"), "The report is partial: 1 of 2"),
    }
    for sentence, (status, note) in ends.items():

        def one_differs(journal: StudyJournal, trials: Sequence[Trial], status: TrialStatus = status) -> Any:
            return {name: status if name == run.name else each for name, each in known(journal, trials).items()}

        with monkeypatch.context() as patch:
            patch.setattr(StudyJournal, "statuses", one_differs)
            found = findings(folder)
        (verdict,) = (each for each in found.verdicts if each.name is VerdictName.SKIP_LIST_PROVEN)
        assert (found.skip, verdict.state, verdict.sentence) == (None, State.MISSING, sentence)
        assert any(f"lists of modules to skip: {note}" in each for each in found.notes)


def test_a_list_is_trained_if_there_is_a_loss_to_buy_back(
    copied: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = yaml.safe_load((trained / "small.yaml").read_text())["base"]
    own = {"more_bytes": 0.3, "random_lists": 1, "seeds": [0]}
    monkeypatch.setattr("lora_lightning.diagnosis.diagnosis_file.FEWEST_SEEDS", 1)  # a second one takes as long again
    path = save_diagnosis(copied.parent, base, **SETTINGS, skip_modules=own)
    words = ["diagnose", "run", str(path), f"--save_dir={copied.parent}"]
    assert main(words) == 0
    assert "The loss by quantization is not told from zero" in capsys.readouterr().err
    assert "not proven by training" in (copied / "skip_modules.yaml").read_text()
    assert not (copied / "skip_modules").exists()

    def with_a_loss(*arguments: Any) -> RankThreshold:
        found = find_rank_threshold(*arguments)
        assert found.compared is not None
        lost = replace(found.compared.difference, interval=Interval(-0.1, -0.2, -0.05))
        return replace(found, compared=replace(found.compared, difference=lost, p_value=0.001))

    for module in ("running", "findings"):
        monkeypatch.setattr(f"lora_lightning.diagnosis.{module}.find_rank_threshold", with_a_loss)
    spent = open_study(copied).journal.spent_seconds()
    save_diagnosis(copied.parent, base, **SETTINGS, skip_modules=own, budget=sum(spent) / 3600)
    assert main(words) == 3
    assert "the budget of the diagnosis is spent, so no list is trained; raise it in the" in capsys.readouterr().err
    assert not (copied / "skip_modules").exists()
    save_diagnosis(copied.parent, base, **SETTINGS, skip_modules=own, budget=100)
    assert main(words) == 0
    (study,) = (copied / "skip_modules").glob("*/study.json")
    settings = json.loads(study.read_text())
    assert settings["name"] == f"small-skip_modules-{study.parent.name}"  # other lists have another name in a database
    assert settings["budget"] == pytest.approx(100 - sum(spent) / 3600)
    choice = json.loads((copied / "measurements/sensitivity.json").read_text())["content"]["skip"]
    lists = {"sensitive_modules_seed_0_*": choice["modules"], "random_list_1_seed_0_*": choice["random"][0]}
    for pattern, modules in lists.items():
        (run,) = (copied / "skip_modules").glob(f"*/{pattern}")
        settings = RunRecord.load(run).settings["model"]["init_args"]
        assert settings["quantization"]["skip_modules"] == ["classifier", *modules]
        assert (settings["lora"]["r"], settings["lora"]["lora_alpha"]) == (4, 8)
    skip = findings(copied).skip
    assert skip is not None
    sensitivity = copied / "measurements/sensitivity.json"
    measured = sensitivity.read_text()
    other = json.loads(measured)
    other["content"]["skip"]["random"] = [other["content"]["skip"]["modules"]]
    sensitivity.write_text(json.dumps(other))
    assert findings(copied).skip is None  # no run has trained these lists
    sensitivity.write_text(measured)
    assert skip.modules == tuple(choice["modules"])
    assert not skip.proven  # one seed proves nothing
    assert set(skip.means) == {"float32, r = 4", "NF4, r = 4", "sensitive modules", "random list 1"}
    check_runs_with_lists(copied, capsys, monkeypatch)
    (copied / "qlora.yaml").write_text(yaml.safe_dump(yaml.safe_load(path.read_text())["base"]))
    words = [f"--config={copied / 'qlora.yaml'}", "--model.quantization.bits=4"]
    merged = prepare_command("fit", [*words, f"--config={copied / 'skip_modules.yaml'}"]).model.quantization
    assert merged is not None
    assert merged.skip_modules == ["classifier", *choice["modules"]]
