"""A run of each kind of task is merged from its best checkpoint, on its own validation data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoTokenizer, pipeline

from lora_lightning import RunRecord, evaluate, predict
from lora_lightning.artefacts import MergeResult, merge
from lora_lightning.cli.merge import print_merge
from lora_lightning.errors import BackboneError, CheckpointError, ConfigurationError, VerificationError
from tests.artefacts.conftest import Merge
from tests.artefacts.runs import train_tiny_run
from tests.conftest import TinyBackbone
from tests.tiny_models import save_tiny_backbone


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A classifier of intents."""
    return train_tiny_run("intents", tiny_backbone("bert"), tmp_path_factory.mktemp("intents"))


@pytest.fixture(scope="module")
def merged(run: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run, merged with everything that a user gets."""
    return merge(run.folder, tmp_path_factory.mktemp("merged") / "model", base_model_id="org/tiny-bert")


def test_a_classifier_is_the_same_without_peft(run: RunRecord, merged: MergeResult) -> None:
    assert (merged.target, merged.dtype, merged.recommended) == ("base", "float32", "base")
    assert [(found.target, found.dtype) for found in merged.measurements] == [("base", "float32"), ("base", "bfloat16")]
    assert merged.measured_on == "val of Clinc150DataModule, 24 rows"
    assert merged.written.difference.max_logit_difference < 1e-5
    assert merged.written.difference.flipped_share == 0
    recovery = merged.written.recovery
    assert recovery is not None
    assert recovery.judged
    assert recovery.ratio.low > 0.999
    assert merged.fresh_process.largest_logit > 0
    assert merged.fresh_process.max_logit_difference < 1e-5
    assert merged.fresh_process.max_difference_after_saving_again == pytest.approx(0, abs=1e-6)
    metrics = {each.name: each for each in merged.written.metrics}
    validated = evaluate(run, "val")
    for name in ("accuracy", "loss", "in_scope_accuracy", "out_of_scope_auroc"):
        assert metrics[name].adapter.value == pytest.approx(validated[f"val/{name}"], abs=1e-6)
        assert metrics[name].merged.value == pytest.approx(validated[f"val/{name}"], abs=1e-6)
        assert metrics[name].change.low - 1e-6 <= 0 <= metrics[name].change.high + 1e-6
    assert metrics["loss"].merged.low < metrics["loss"].merged.value < metrics["loss"].merged.high
    bfloat16 = merged.measurements[1]
    assert 1e-5 < bfloat16.difference.max_logit_difference < 0.1
    assert bfloat16.size < 0.6 * merged.written.size


def test_it_has_labels_a_tokenizer_and_works_in_a_pipeline(run: RunRecord, merged: MergeResult) -> None:
    texts = ["w10 w101", "w12 w103 v"]
    classify = pipeline("text-classification", model=str(merged.output))
    for answer, row in zip(classify(texts), predict(run, texts), strict=True):
        assert answer["label"] in row.values()
        assert any(isinstance(value, float) and abs(value - answer["score"]) < 1e-4 for value in row.values())
    names = json.loads((merged.output / "labels.json").read_text())["names"]
    assert names == ["balance", "timer", "transfer", "weather", "oos"]


def test_the_model_card_has_metadata_that_the_hub_reads(merged: MergeResult) -> None:
    card = ModelCard.load(merged.output / "README.md")
    assert card.data.base_model == "org/tiny-bert"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.datasets == ["clinc/clinc_oos"]
    results = {each.metric_type: each for each in card.data.eval_results or []}
    metric = next(each for each in merged.written.metrics if each.name == "accuracy")
    assert results["accuracy"].metric_value == pytest.approx(metric.merged.value)
    assert results["accuracy"].metric_args["low"] == pytest.approx(metric.merged.low)
    assert results["accuracy"].dataset_split == "val"
    assert str(Path.cwd().parent) not in card.text
    everything = "".join(path.read_text() for path in merged.output.glob("*.json")) + str(card)
    assert "tiny-bert" in everything
    assert str(merged.source) not in everything


def test_a_bare_adapter_with_data_is_compared_like_its_run(
    run: RunRecord, merged: MergeResult, merge_here: Merge, tmp_path: Path
) -> None:
    assert run.adapter is not None
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"data": run.settings["data"], "trainer": {"max_epochs": 3}}))
    result = merge_here(run.adapter, config=data, dtype="float16", overrides={"data.eval_batch_size": 7})
    assert (result.target, result.dtype) == ("base", "float16")
    exact = result.measurements[0]
    expected, found = ({each.name: each for each in one.metrics} for one in (merged.written, exact))
    assert found.keys() == expected.keys()
    assert found["loss"].merged.value == pytest.approx(expected["loss"].merged.value, abs=1e-5)
    recoveries = exact.recovery, merged.written.recovery
    assert recoveries[0] is not None
    assert recoveries[1] is not None
    assert recoveries[0].gain.value == pytest.approx(recoveries[1].gain.value, abs=1e-5)


def test_labels_of_other_data_are_refused(run: RunRecord, merge_here: Merge, tmp_path: Path) -> None:
    assert run.adapter is not None
    other = tmp_path / "adapter"
    shutil.copytree(run.adapter, other)
    labels = json.loads((other / "labels.json").read_text())
    (other / "labels.json").write_text(json.dumps({**labels, "names": labels["names"][::-1]}))
    with pytest.raises(CheckpointError, match=r"labels of the checkpoint .* differ from those of the data"):
        merge_here(other, config={"data": run.settings["data"]})


@pytest.mark.parametrize(("kind", "family"), [("questions", "bert"), ("text", "gpt2")])
def test_other_tasks(kind: str, family: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    run = train_tiny_run(kind, tiny_backbone(family), tmp_path / "run")
    result = merge(run.folder, tmp_path / "merged")
    assert result.written.difference.max_logit_difference < 1e-5 * max(1, result.written.difference.largest_logit)
    assert result.written.recovery is not None
    names = {each.name for each in result.written.metrics}
    assert names >= ({"f1", "exact", "loss"} if kind == "questions" else {"perplexity", "loss"})
    auto_class: Any = AutoModelForQuestionAnswering if kind == "questions" else AutoModelForCausalLM
    model = auto_class.from_pretrained(result.output)
    tokens = AutoTokenizer.from_pretrained(result.output)("w1 w2 w3", return_tensors="pt")
    assert torch.isfinite(next(iter(model(**tokens).values()))).all()
    if kind == "text":
        assert model.lm_head.weight is model.transformer.wte.weight
        assert (result.output / "generation_config.json").is_file()
    else:
        assert (result.output / "question_answering.json").is_file()


def test_a_bare_question_answerer_without_a_task_type(
    tiny_backbone: TinyBackbone, merge_here: Merge, tmp_path: Path
) -> None:
    run = train_tiny_run("questions", tiny_backbone("bert"), tmp_path / "run", trainer__max_epochs=1)
    assert run.adapter is not None
    assert json.loads((run.adapter / "adapter_config.json").read_text())["task_type"] is None
    result = merge_here(run.adapter)
    assert (result.output / "question_answering.json").is_file()
    config = json.loads((result.output / "config.json").read_text())
    assert config["architectures"] == ["BertForQuestionAnswering"]
    plain = AutoModelForQuestionAnswering.from_pretrained(result.output)
    saved = load_file(run.adapter / "adapter_model.safetensors")
    assert torch.equal(plain.qa_outputs.weight, saved["base_model.model.qa_outputs.weight"])
    shutil.copytree(run.adapter, tmp_path / "other")
    (tmp_path / "other" / "question_answering.json").unlink()
    with pytest.raises(ConfigurationError, match="has task_type None"):
        merge_here(tmp_path / "other", overwrite=True)


def test_runs_that_cannot_be_merged(run: RunRecord, merge_here: Merge, tmp_path: Path) -> None:
    without = tmp_path / "without"
    shutil.copytree(run.folder, without, ignore=shutil.ignore_patterns("*.ckpt"))
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        merge_here(without)
    assert not (tmp_path / "out").exists()


def test_a_run_without_adapters_needs_no_merge(merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    full = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "full", model__lora=None)
    with pytest.raises(CheckpointError, match=r"has no adapter \(model.lora: null\); .*adapter is a complete"):
        merge_here(full.folder)
    assert full.adapter is not None
    shutil.rmtree(full.adapter)  # as before the first export
    with pytest.raises(CheckpointError, match=r"it trains the whole model, which is exported once the run has"):
        merge_here(full.folder)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_base_has_moved(merge_here: Merge, tmp_path: Path) -> None:
    base = save_tiny_backbone("bert", tmp_path / "base")
    run = train_tiny_run("intents", base, tmp_path / "run", model__lora__r=2)
    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(BackboneError, match=r"If the base model has moved, give its folder with --model.backbone"):
        merge_here(run.folder)
    result = merge_here(run.folder, overrides={"model.backbone": str(moved)})
    assert result.written.failure is None
    other = save_tiny_backbone("roberta", tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"Give the folder of the model .* with --model.backbone"):
        merge_here(run.folder, overrides={"model.backbone": str(other)}, overwrite=True)


def test_a_run_on_a_base_that_has_changed_is_refused(merge_here: Merge, tmp_path: Path) -> None:
    base = save_tiny_backbone("bert", tmp_path / "base")
    run = train_tiny_run("intents", base, tmp_path / "run", model__lora__r=2)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight.mul_(1.1)
    model.save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"was trained on another base model: .* with --model.backbone[.]$"):
        merge_here(run.folder)


def test_the_card_names_the_base_by_the_id_that_the_run_was_given(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    run = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "run", base_model_id="org/tiny-bert")
    assert merge_here(run.folder).base_model == "org/tiny-bert"
    assert merge_here(run.folder, base_model_id="org/other", overwrite=True).base_model == "org/other"


def test_an_untrained_run_changes_nothing(merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    run = train_tiny_run("intents", tiny_backbone("bert"), tmp_path / "run", model__optimization__learning_rate=1e-12)
    with pytest.raises(VerificationError, match="the adapter changes nothing"):
        merge_here(run.folder)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_several_labels_and_numbers(kind: str, tiny_backbone: TinyBackbone, merge_here: Merge, tmp_path: Path) -> None:
    run = train_tiny_run(kind, tiny_backbone("bert"), tmp_path / "run", trainer__max_epochs=4)
    result = merge_here(run.folder)
    assert result.written.difference.max_logit_difference < 1e-5
    assert bool(result.written.difference.decisions) is (kind != "regression")
    print_merge(result)
    card = (result.output / "README.md").read_text()
    assert "nan" not in card
    assert "decisions flip" in card or kind == "regression"
    assert json.loads((result.output / "config.json").read_text())["problem_type"] == kind


def test_how_a_run_was_trained_does_not_decide_how_it_is_merged(
    run: RunRecord, merged: MergeResult, merge_here: Merge, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run.folder, moved)
    settings = yaml.safe_load((moved / "config.yaml").read_text())
    elsewhere = {"accelerator": "tpu", "devices": 8, "strategy": "ddp", "precision": "bf16-mixed", "num_nodes": 2}
    settings["trainer"] |= elsewhere | {"limit_val_batches": 0, "callbacks": ["RankUtilizationMonitor"]}
    (moved / "config.yaml").write_text(yaml.safe_dump(settings))
    assert merge_here(moved).written.metrics == merged.written.metrics


def test_a_tokenizer_that_the_data_is_not_read_with_is_named(run: RunRecord, merge_here: Merge, tmp_path: Path) -> None:
    assert run.adapter is not None
    other = tmp_path / "adapter"
    shutil.copytree(run.adapter, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(other)
    data = {"data": run.settings["data"]}
    assert any("the adapter has another one" in note for note in merge_here(other, config=data).notes)
    assert not any("another one" in note for note in merge_here(run.adapter, config=data, overwrite=True).notes)
