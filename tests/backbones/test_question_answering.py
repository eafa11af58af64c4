"""Question-answering heads of every family: newly initialized, trained, exported, and right in plain PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, ViTConfig

from lora_lightning.backbones import (
    check_question_answering_settings,
    load_config,
    load_question_answerer,
    load_question_answering_config,
    load_tokenizer,
    position_limit,
    uses_token_types,
)
from lora_lightning.backbones.export import export_model
from lora_lightning.errors import BackboneError, ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.target_modules import PRESETS
from lora_lightning.tasks import QuestionAnsweringTask
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_models import FAMILIES

HEAD = {"modernbert": "classifier"}  # all others: qa_outputs
RENAMED = {"llama", "qwen2"}  # plain transformers leaves all of these random unless told the names (#30381)
POSITION_LIMITS = {"deberta-v2": None, "roberta": 39}  # all others: 40, all of them


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_head_is_new(tiny_backbone: TinyBackbone, family: str) -> None:
    backbone = str(tiny_backbone(family))
    loaded = load_question_answerer(backbone, load_question_answering_config(backbone, 0))
    assert loaded.lacked == [HEAD.get(family, "qa_outputs")]
    output = loaded.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert output.start_logits.shape == output.end_logits.shape == (1, 3)


def test_a_backbone_of_three_classes_gets_two_outputs(tiny_classifier: TinyClassifier, tmp_path: Path) -> None:
    tiny_classifier("bert", labels=3).model.save_pretrained(tmp_path)
    loaded = load_question_answerer(str(tmp_path), load_question_answering_config(str(tmp_path), 0))
    assert loaded.model.qa_outputs.out_features == 2
    assert loaded.lacked == ["qa_outputs"]


def test_a_head_that_is_there_is_kept_and_trains(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_backbone("bert"))
    model.save_pretrained(tmp_path)
    load_tokenizer(str(tiny_backbone("bert"))).save_pretrained(tmp_path)
    task = QuestionAnsweringTask(str(tmp_path), lora=LoraSettings(r=2))
    task.configure_model()
    trained = [name for name in task.saved_names() if "qa_outputs" in name]
    assert [name.rsplit(".", 1)[-1] for name in trained] == ["weight", "bias"]
    assert torch.equal(task.state_dict()[trained[0]], model.qa_outputs.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_settings_pass_the_check_before_loading(tiny_backbone: TinyBackbone, family: str) -> None:
    config = load_question_answering_config(str(tiny_backbone(family)), 0)
    for preset in PRESETS:
        check_question_answering_settings(config, LoraSettings(target_modules=preset))


@pytest.mark.parametrize("targets", [["qurey"], ["qa_outputs"]])
def test_wrong_targets_are_refused(tiny_backbone: TinyBackbone, targets: list[str]) -> None:
    config = load_question_answering_config(str(tiny_backbone("bert")), 0)
    with pytest.raises(ConfigurationError):
        check_question_answering_settings(config, LoraSettings(target_modules=targets))


def test_an_architecture_without_such_a_head_is_refused(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="could not be loaded"):
        check_question_answering_settings(load_question_answering_config(str(tmp_path), 0), LoraSettings())


@pytest.mark.parametrize("family", FAMILIES)
def test_position_limit_is_where_the_model_ends(tiny_backbone: TinyBackbone, family: str) -> None:
    config = load_config(str(tiny_backbone(family)))
    limit = position_limit(config)
    assert limit == POSITION_LIMITS.get(family, 40)
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_backbone(family)).eval()
    model(input_ids=torch.full((1, limit or 100), 7))
    learned = family not in {"deberta-v2", "llama", "modernbert", "qwen2"}  # the others compute a position's code
    if learned:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, (limit or 0) + 1), 7))


def inputs_of(config: Any) -> dict[str, Tensor]:
    inputs = {"input_ids": torch.arange(5, 25).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.int64)}
    inputs["attention_mask"][1, 7:] = 0
    if uses_token_types(config):
        inputs["token_type_ids"] = (torch.arange(10) > 3).long().expand(2, 10)
    return inputs


def logits_of(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output = network.eval()(**inputs)
    padding = inputs["attention_mask"] == 0
    return torch.stack([output.start_logits, output.end_logits]).masked_fill(padding, 0)


def trained_task(backbone: str, lora: LoraSettings | None) -> QuestionAnsweringTask:
    """A task after a few steps."""
    task = QuestionAnsweringTask(backbone, lora=lora)
    torch.manual_seed(0)
    task.configure_model()
    inputs = inputs_of(task.built_network.config)
    before = logits_of(task.built_network, inputs)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=0.02)
    targets = {"start_positions": torch.tensor([2, 0]), "end_positions": torch.tensor([3, 0])}
    for _ in range(3):
        task.train().evaluate(inputs | targets)[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (logits_of(task.built_network, inputs) - before).abs().max() > 1e-3
    return task


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_gives_the_same_logits_in_plain_peft(tiny_backbone: TinyBackbone, tmp_path: Path, family: str) -> None:
    task = trained_task(str(tiny_backbone(family)), LoraSettings(r=2))
    network = task.built_network
    export_model(network, load_tokenizer(str(tiny_backbone(family))), tmp_path / "adapter", task.export_files())
    torch.manual_seed(12345)  # whatever stayed random would differ
    config = AutoConfig.from_pretrained(tmp_path / "adapter", subfolder="config")
    renamed = {r"^model\.": "transformer."} if family in RENAMED else None
    base = AutoModelForQuestionAnswering.from_pretrained(tiny_backbone(family), config=config, key_mapping=renamed)
    inputs = inputs_of(config)
    expected = logits_of(network, inputs)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(plain, inputs), expected, rtol=0, atol=1e-5)
    if "token_type_ids" in inputs:  # they matter, so a wrapper that loses them would show
        lost = logits_of(plain, inputs | {"token_type_ids": torch.zeros(2, 10, dtype=torch.int64)})
        assert (lost - expected).abs().max() > 1e-3
        assert isinstance(AutoPeftModel.from_pretrained(str(tmp_path / "adapter")).get_base_model(), type(base))
    merged = plain.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, inputs), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_fully_fine_tuned_model_gives_the_same_logits_in_plain_transformers(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str
) -> None:
    network = trained_task(str(tiny_backbone(family)), None).built_network
    export_model(network, load_tokenizer(str(tiny_backbone(family))), tmp_path / "model", {})
    plain, info = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    inputs = inputs_of(plain.config)
    torch.testing.assert_close(logits_of(plain, inputs), logits_of(network, inputs), rtol=0, atol=1e-5)
