"""Runs are compressed: what is written is the truncated adapter, for PEFT and for readers that know no patterns."""

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from lora_lightning import RunRecord
from lora_lightning.artefacts import CompressResult, compress, compress_job
from lora_lightning.artefacts.compress_report import verdict_sentences
from lora_lightning.artefacts.finished_run import PreparedRun, open_run
from lora_lightning.backbones.base_model_id import saved_base_name
from lora_lightning.errors import CheckpointError, ConfigurationError, DataError, VerificationError
from lora_lightning.lora.quantized import keep_4bit_weights_in_order
from tests.artefacts.adapters import left_beside
from tests.artefacts.blind_readers import read_blindly
from tests.artefacts.runs import train_tiny_run
from tests.conftest import TinyBackbone
from tests.variants import BUDGET

ANY = 95.0  # a margin in points with which every rank is enough, even on 24 examples
TOKENS = torch.arange(5, 25).view(2, 10)


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A classifier of intents with rsLoRA and patterns, which pattern-blind readers get wrong."""
    patterns = {"rank_pattern": {"query": 5, "layer.1.output.dense": 3}, "alpha_pattern": {"value": 7.0}}
    options = {f"model__lora__{name}": value for name, value in patterns.items()}
    return train_tiny_run(
        "intents",
        tiny_backbone("bert"),
        tmp_path_factory.mktemp("intents"),
        model__lora__r=4,
        model__lora__use_rslora=True,
        **options,
    )


@pytest.fixture(scope="module")
def compressed(run: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> CompressResult:
    """The run at the least rank of those given, as a user gets it."""
    return compress(run.folder, tmp_path_factory.mktemp("out") / "small", margin=ANY, ranks=[2, 4])


def base_of(run: RunRecord, kind: str = "intents") -> Any:
    backbone = run.settings["model"]["init_args"]["backbone"]
    torch.manual_seed(0)
    if kind == "text":
        return AutoModelForCausalLM.from_pretrained(backbone)
    return AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=5)


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    return found


@torch.no_grad()
def truncate_densely(network: nn.Module, k: int) -> None:
    """Truncates the low-rank part of every layer of a PEFT model by NumPy's decomposition of the dense matrix."""
    for module in network.modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            u, s, vh = np.linalg.svd(b.double().numpy() @ a.double().numpy(), full_matrices=False)
            a.zero_()[:k] = torch.from_numpy(vh[:k])
            b.zero_()[:, :k] = torch.from_numpy(u[:, :k] * s[:k])


def dense_updates(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """DW of each layer as PEFT computes it, dense."""
    base = AutoModelForSequenceClassification.from_pretrained(
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"], num_labels=5
    )
    network = PeftModel.from_pretrained(base, str(folder))
    return {
        name: module.get_delta_weight("default").detach().double().numpy()
        for name, module in network.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }


def test_each_update_is_the_best_of_its_rank(run: RunRecord, compressed: CompressResult) -> None:
    assert (compressed.r, compressed.k, compressed.rank) == (5, 2, 8)
    assert run.adapter is not None
    before, after = dense_updates(run.adapter), dense_updates(compressed.output)
    assert before.keys() == after.keys()
    for name, dense in before.items():
        u, s, vh = np.linalg.svd(dense, full_matrices=False)
        np.testing.assert_allclose(after[name], (u[:, :2] * s[:2]) @ vh[:2], atol=1e-6 * s[0] + 1e-9)


def test_readers_without_patterns_compute_what_peft_computes(run: RunRecord, compressed: CompressResult) -> None:
    config = json.loads((compressed.output / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    expected = logits_of(PeftModel.from_pretrained(base_of(run), str(compressed.output)))
    allowed = 1e-5 * max(1.0, float(expected.abs().max()))
    assert run.adapter is not None
    for scale_by in ("config", "tensor"):
        model, wrong = base_of(run), base_of(run)
        read_blindly(model, compressed.output, scale_by=scale_by)
        assert float((logits_of(model) - expected).abs().max()) <= allowed
        read_blindly(wrong, run.adapter, scale_by=scale_by)  # the run's own adapter is mis-scaled
        original = logits_of(PeftModel.from_pretrained(base_of(run), str(run.adapter)))
        assert float((logits_of(wrong) - original).abs().max()) > 10 * allowed


def test_the_base_keeps_the_id_that_the_run_was_given(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    run = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "run", base_model_id="org/tiny-bert")
    assert run.adapter is not None
    result = compress(run.folder, tmp_path / "small", margin=ANY, ranks=[2])
    for name in ("base_model.json", "adapter_config.json"):
        here, there = (json.loads((folder / name).read_text()) for folder in (result.output, run.adapter))
        for key in ("name", "compared", "base_model_name_or_path"):
            assert here.get(key) == there.get(key)
    assert json.loads((result.output / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny-bert"
    assert "base_model: org/tiny-bert" in (result.output / "README.md").read_text()
    assert open_run(run.folder).named_base == saved_base_name(run.adapter)


def test_nothing_lower_is_the_reason_if_nothing_lower_is_proven(run: RunRecord, tmp_path: Path) -> None:
    result = compress(run.folder, tmp_path / "small", margin=1e-6, ranks=[2])
    assert result.k == result.r
    because = "because no lower rank is proven to be enough"
    assert any("not smaller than the run's own" in note and because in note for note in result.notes)
    assert f"no other choice of ranks was compared, {because}." in result.notes


def test_bytes_are_compared_with_the_file_that_the_run_wrote(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    run = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "run", trainer__precision="bf16-true")
    assert run.adapter is not None
    saved = run.adapter / "adapter_model.safetensors"
    assert load_file(saved)["base_model.model.classifier.weight"].dtype is torch.bfloat16
    result = compress(run.folder, tmp_path / "small", margin=ANY, ranks=[2])
    assert result.sizes.full == saved.stat().st_size
    assert any("the run's own is in 16 bits, and the written one in float32" in note for note in result.notes)


def test_the_folder_is_complete(run: RunRecord, compressed: CompressResult) -> None:
    names = {path.name for path in compressed.output.iterdir()}
    assert run.adapter is not None
    assert names >= {path.name for path in run.adapter.iterdir()} | {"compression.json", "compression.png"}
    saved = json.loads((compressed.output / "compression.json").read_text())
    assert saved == json.loads(json.dumps(compressed.as_json()))
    assert saved["k"] == 2
    assert AutoTokenizer.from_pretrained(compressed.output)("w1 w2")["input_ids"]
    card = (compressed.output / "README.md").read_text()
    assert "## Compression" in card
    assert "![quality against rank](compression.png)" in card
    assert "nan" not in card
    labels, of_run = (json.loads((each / "labels.json").read_text()) for each in (compressed.output, run.adapter))
    assert labels["names"] == of_run["names"]
    head = [name for name in load_file(compressed.output / "adapter_model.safetensors") if "lora_" not in name]
    assert len(head) == 4  # of classifier and pooler
    sizes = compressed.sizes
    assert sizes.kept < sizes.full
    assert sizes.written == (compressed.output / "adapter_model.safetensors").stat().st_size
    assert compressed.max_logit_difference <= 1e-6 * max(1.0, compressed.largest_logit)


def test_the_threshold_is_chosen_by_the_written_adapter_and_is_the_one_that_was_tested(
    run: RunRecord, compressed: CompressResult
) -> None:
    assert run.adapter is not None
    written, of_run = (
        json.loads((each / "labels.json").read_text())["out_of_scope_threshold"]
        for each in (compressed.output, run.adapter)
    )
    found = compressed.threshold
    assert found is not None
    assert found.full == of_run == compressed.full.threshold  # chosen in the same way
    assert found.written == written == compressed.chosen.threshold == compressed.test.threshold
    assert written != of_run
    assert set(found.metrics) >= {"in_scope_accuracy_at_threshold", "out_of_scope_f1_at_threshold"}
    assert any(note.startswith("the threshold for queries out of scope was chosen again") for note in compressed.notes)


def test_the_verdict_is_about_this_adapter_and_confirmed_on_test(compressed: CompressResult) -> None:
    first, second = verdict_sentences(compressed)
    assert first.startswith("k = 2 is enough for this adapter: ")
    assert second.startswith("Confirmed on test of Clinc150DataModule")
    assert compressed.confirmed
    rules = [found.rule for found in compressed.validation]
    assert rules == ["full", "uniform", "uniform", "budget", *["energy"] * 2, *["cumulative"] * 2]
    budget = compressed.chosen.parameters
    same_size = [found for found in compressed.rivals if "same size" in found.name or found.rule == "budget"]
    assert len(same_size) == 3
    assert all(found.parameters <= budget for found in same_size)


def test_few_examples_prove_nothing_and_the_adapter_stays_as_it_is(run: RunRecord, tmp_path: Path) -> None:
    result = compress(run.folder, tmp_path / "same", metric="accuracy", check_targets=["peft"])
    assert (result.k, result.r, result.rank) == (5, 5, 8)
    assert (str(result.test.verdict), result.test.value) == ("identical", result.full_test.value)
    assert [str(found.verdict) for found in result.sequence][:2] == ["undecided", "not tested"]
    first, second = verdict_sentences(result)
    assert "No rank below 5 is proven enough for this adapter: k = 4 is undecided" in first
    assert "a proof takes about" in second
    assert any("not smaller than the run's own" in note for note in result.notes)
    assert run.adapter is not None
    before, after = dense_updates(run.adapter), dense_updates(result.output)
    for name, dense in before.items():
        np.testing.assert_allclose(after[name], dense, atol=1e-6 * np.abs(dense).max() + 1e-9)


def test_the_exact_layout_has_one_rank_and_never_more_than_k(run: RunRecord, tmp_path: Path) -> None:
    result = compress(run.folder, tmp_path / "out", margin=ANY, ranks=[4], layout="exact")  # one layer has rank 3
    config = json.loads((result.output / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (4, 4, {}, {})
    tensors = load_file(result.output / "adapter_model.safetensors")
    assert {len(tensor) for name, tensor in tensors.items() if "lora_A" in name} == {4}
    assert result.sizes.kept < result.sizes.written  # by one row and one column of zeros
    assert "Every layer has rank 4, padded with zeros" in (result.output / "README.md").read_text()
    expected = logits_of(PeftModel.from_pretrained(base_of(run), str(result.output)))
    for scale_by in ("config", "tensor"):
        model = base_of(run)
        read_blindly(model, result.output, scale_by=scale_by)
        torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=0)


def test_mixed_ranks_load_in_peft(run: RunRecord, tmp_path: Path) -> None:
    result = compress(run.folder, tmp_path / "mixed", margin=ANY, ranks=[2], layout="mixed")
    config = json.loads((result.output / "adapter_config.json").read_text())
    outcomes = {found.target: found.outcome for found in result.loaders}
    assert result.sizes.kept == result.sizes.written
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(set(config["rank_pattern"].values()) | {config["r"]}) > 1
    assert outcomes == {"peft": "right", "vllm": "wrong", "llama.cpp": "wrong"}
    assert any("right in PEFT only" in note for note in result.notes)
    with pytest.raises(VerificationError, match=r"vllm would silently load something else .* nothing was written"):
        compress(run.folder, tmp_path / "other", margin=ANY, layout="mixed", check_targets=["vllm"])
    assert left_beside(tmp_path / "other") == ["mixed"]


@pytest.mark.parametrize(
    ("name", "options", "r"),
    [
        ("pissa", {"init_lora_weights": "pissa", "r": 2}, 4),
        ("adalora", {"adalora": vars(BUDGET), "r": 2}, 3),
        ("dora", {"use_dora": True, "r": 3}, 3),
    ],
)
def test_variants(name: str, options: dict[str, Any], r: int, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    lora = {f"model__lora__{key}": value for key, value in options.items() if not (name == "adalora" and key == "r")}
    run = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "run", **lora)
    result = compress(run.folder, tmp_path / "out", margin=ANY, ranks=[1])
    assert result.r == r
    assert result.k == 1
    expected = logits_of(PeftModel.from_pretrained(base_of(run), str(result.output)))
    if name == "dora":
        assert any("DoRA" in note for note in result.notes)
        assert {found.target: found.outcome for found in result.loaders}["vllm"] == "refused"
        reference = PeftModel.from_pretrained(base_of(run), str(run.adapter))
        truncate_densely(reference, 1)
        torch.testing.assert_close(expected, logits_of(reference), atol=1e-5, rtol=0)
        return
    for scale_by in ("config", "tensor"):
        model = base_of(run)
        read_blindly(model, result.output, scale_by=scale_by)
        torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_language_models_and_quantized_bases(family: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    more = {"model__quantization__bits": 4} if family == "llama" else {}
    run = train_tiny_run("text", tiny_backbone(family), tmp_path / "run", model__lora__r=3, **more)
    result = compress(run.folder, tmp_path / "out", margin=900.0, ranks=[2])
    assert (result.k, result.metric.name, result.metric.unit) == (2, "perplexity", " %")
    assert result.full.value == pytest.approx(math.log(run.metrics["val"]["perplexity"]), rel=1e-5)
    if family == "llama":
        bits = BitsAndBytesConfig(**json.loads((result.output / "quantization_config.json").read_text()))
        backbone = run.settings["model"]["init_args"]["backbone"]
        reference, written = (
            PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(backbone, quantization_config=bits, device_map="cpu"), str(folder)
            )
            for folder in (run.adapter, result.output)
        )
        truncate_densely(reference, 2)
        keep_4bit_weights_in_order(reference)
        keep_4bit_weights_in_order(written)
        torch.testing.assert_close(logits_of(written), logits_of(reference), atol=1e-4, rtol=0)
        return
    expected = logits_of(PeftModel.from_pretrained(base_of(run, "text"), str(result.output)))
    for scale_by in ("config", "tensor"):
        model = base_of(run, "text")
        read_blindly(model, result.output, scale_by=scale_by)
        torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=0)
    assert {found.target: found.outcome for found in result.loaders} == dict.fromkeys(
        ("peft", "vllm", "llama.cpp"), "right"
    )


@torch.no_grad()
def test_adapters_on_experts(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    experts = {"model__lora__target_modules": ["q_proj"], "model__lora__target_parameters": ["experts.down_proj"]}
    options = {**experts, "model__lora__r": 3, "model__lora__lora_dropout": 0.0, "trainer__limit_train_batches": 4}
    run = train_tiny_run("text", tiny_backbone("olmoe"), tmp_path / "run", **options)
    result = compress(run.folder, tmp_path / "out", margin=900.0, ranks=[2])
    assert (result.k, result.rivals) == (2, ())
    assert {found.target: found.outcome for found in result.loaders}["vllm"] == "wrong"
    updates = []
    for folder in (run.adapter, result.output):
        network = PeftModel.from_pretrained(base_of(run, "text"), str(folder))
        modules = {name: module for name, module in network.named_modules() if hasattr(module, "parameter_name")}
        updates.append({name: module.get_delta_weight("default").double() for name, module in modules.items()})
    assert len(updates[0]) == 2
    for name, update in updates[0].items():  # (experts, out_features, in_features)
        u, s, vh = np.linalg.svd(update.numpy(), full_matrices=False)
        best = (u[..., :2] * s[:, None, :2]) @ vh[:, :2]
        np.testing.assert_allclose(updates[1][name], best, atol=1e-6 * s.max() + 1e-9)
    with pytest.raises(ConfigurationError, match="--layout is mixed, but the adapter is on experts"):
        compress(run.folder, tmp_path / "mixed", margin=900.0, layout="mixed")


def test_questions(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    run = train_tiny_run("questions", tiny_backbone("bert"), tmp_path / "run", model__lora__r=3)
    result = compress(run.folder, tmp_path / "out", metric="exact", margin=ANY, ranks=[1])
    assert result.k == 1
    assert run.adapter is not None
    written, of_run = (
        json.loads((each / "question_answering.json").read_text()) for each in (result.output, run.adapter)
    )
    assert written["max_answer_length"] == of_run["max_answer_length"]
    assert result.threshold is not None
    assert (written["null_threshold"], of_run["null_threshold"]) == (result.threshold.written, result.threshold.full)
    assert result.threshold.metrics["exact"] == (result.full_test.value, result.test.value)
    assert result.is_tested_on_validation  # SQuAD's test split is its validation split by default
    assert not result.confirmed
    assert "Not confirmed" in (result.output / "README.md").read_text()


def test_a_run_that_was_trained_at_the_rank_is_compared(
    run: RunRecord, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "other", model__lora__r=2)
    result = compress(run.folder, tmp_path / "out", margin=ANY, ranks=[2], trained_at_k=[other.folder])
    row = result.validation[-1]
    assert (row.rule, row.name.partition(" (")[0]) == ("trained", "trained at r = 2")
    assert row.value == pytest.approx(other.metrics["val"][result.metric.name])
    changed = train_tiny_run("multi_label_classification", tiny_backbone("bert"), tmp_path / "labels")
    monkeypatch.setattr(PreparedRun, "open", weights_are_loaded)
    with pytest.raises(DataError, match="was validated on other examples"):
        compress(run.folder, tmp_path / "no", margin=ANY, ranks=[2], trained_at_k=[changed.folder])


def weights_are_loaded(*_: Any) -> Any:
    pytest.fail("weights are loaded before the mistake is found")


def test_a_folder_that_is_not_what_was_judged_is_not_written_and_models_are_released_before_another_is_loaded(
    run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = compress_job.load_plain_adapter
    calls: list[Path] = []

    def load(trainer: Any, task: Any, folder: Path) -> Any:
        calls.append(folder)
        assert sum(parameter.numel() for parameter in task.network.parameters()) == 0
        if len(calls) == 2:  # the written one; alpha_pattern gets lost
            config = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 16}))
        return original(trainer, task, folder)

    monkeypatch.setattr(compress_job, "load_plain_adapter", load)
    former = tmp_path / "out" / "small"
    former.mkdir(parents=True)
    (former / "adapter_config.json").write_text("former")
    with pytest.raises(VerificationError, match="the written folder, loaded by PEFT on a fresh base, is not the model"):
        compress(run.folder, former, margin=ANY, ranks=[2], overwrite=True)
    assert (former / "adapter_config.json").read_text() == "former"
    assert left_beside(former) == ["small"]
    assert len(calls) == 2


@pytest.mark.parametrize("step", ["write_adapter", "write_report"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    step: str, run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compress_job, step, fail)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(no space left on device\); nothing was written"):
        compress(run.folder, tmp_path / "out" / "small", margin=ANY, ranks=[2])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "acuracy"}, ConfigurationError, "--metric 'acuracy' is unknown; did you mean 'accuracy'"),
        ({"metric": "calibration_error"}, ConfigurationError, "has no numbers per example"),
        ({"margin": -1.0}, ConfigurationError, "--margin is -1, but it must be above 0"),
        ({"margin": float("nan")}, ConfigurationError, "--margin is nan, but it must be above 0"),
        ({"ranks": "al"}, ConfigurationError, "--ranks is 'al', but it must be whole numbers"),
        ({"metric": "loss"}, ConfigurationError, "loss has no usual margin; give --margin"),
        ({"layout": "portabel"}, ConfigurationError, "--layout is 'portabel'; did you mean 'portable'"),
        ({"check_targets": ["vlm"]}, ConfigurationError, "--check_targets has 'vlm'; did you mean 'vllm'"),
        ({"ranks": [0]}, ConfigurationError, "each rank must be at least 1"),
        ({"ranks": [5]}, ConfigurationError, "--ranks has 5, but the adapter has rank 5; give ranks from 1 to 4"),
        ({"overrides": {"model.lora.r": 3}}, ConfigurationError, "--model.lora.r is not an option here"),
        ({"metric": "test/accuracy"}, ConfigurationError, "--metric 'test/accuracy' is unknown"),
        ({"trained_at_k": ["nowhere"]}, CheckpointError, "nowhere does not exist"),
    ],
)
def test_options_that_are_refused_before_weights_load(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    run: RunRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PreparedRun, "open", weights_are_loaded)
    with pytest.raises(error, match=message.replace("(", r"\(")):
        compress(run.folder, tmp_path / "out" / "small", **options)
    assert not (tmp_path / "out").exists()


def test_a_program_that_would_not_load_the_folder(run: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"llama\.cpp would refuse this adapter: its converter"):
        compress(run.folder, tmp_path / "out" / "small", margin=ANY, check_targets=["llama.cpp"])
    assert not (tmp_path / "out").exists()


def test_runs_that_are_refused(run: RunRecord, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    assert run.adapter is not None
    with pytest.raises(CheckpointError, match="is an adapter, but compress needs its run"):
        compress(run.adapter, tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        compress(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"would replace .* which is being read"):
        compress(run.folder, run.adapter, overwrite=True)
    rival = tmp_path / "rival"
    shutil.copytree(run.folder, rival)
    with pytest.raises(ConfigurationError, match=r"would replace .*rival/adapter, which is being read"):
        compress(run.folder, rival / "adapter", trained_at_k=[rival], overwrite=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds other files than an adapter"):
        compress(run.folder, full, overwrite=True)
    with pytest.raises(ConfigurationError, match="exists; choose another folder"):
        compress(run.folder, full)
    one = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "one", model__lora__r=1)
    with pytest.raises(ConfigurationError, match="has rank 1 in every layer"):
        compress(one.folder, tmp_path / "out")
    labels = train_tiny_run("regression", tiny_backbone("bert"), tmp_path / "labels", model__lora__r=2)
    with pytest.raises(DataError, match="the data has no test split"):
        compress(labels.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
