"""Quantized bases of every family and task: what is quantized, what is computed, trained, saved and exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from lora_lightning.backbones.export import QUANTIZATION, export_model
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.delta import adapted_layers, pretrained_weight
from lora_lightning.lora.quantized import keep_4bit_weights_in_order, quantized_bits
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from lora_lightning.tasks.base import AdaptationTask
from tests.conftest import TinyBackbone
from tests.reference import assert_layers_compute_the_formula, move_from_zero
from tests.tiny_models import DECODERS, ENCODERS, FAMILIES

pytest.importorskip("bitsandbytes")

TASKS: dict[str, type[AdaptationTask]] = {
    "classification": SequenceClassificationTask,
    "question answering": QuestionAnsweringTask,
    "language": CausalLanguageModelingTask,
}
AUTO_CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "question answering": AutoModelForQuestionAnswering,
    "language": AutoModelForCausalLM,
}
CASES = [
    *[(family, "classification", bits) for family in ENCODERS for bits in (4, 8)],
    *[(family, "language", bits) for family in DECODERS for bits in (4, 8)],
    *[(family, "question answering", 4) for family in FAMILIES],
]
# What is not quantized of a family's linear layers, by task.
LEFT = {
    ("albert", "classification"): {"albert.pooler", "classifier"},
    ("bert", "classification"): {"bert.pooler.dense", "classifier"},
    ("deberta-v2", "classification"): {"pooler.dense", "classifier"},
    ("distilbert", "classification"): {"pre_classifier", "classifier"},
    ("electra", "classification"): {"classifier.dense", "classifier.out_proj"},
    ("modernbert", "classification"): {"head.dense", "classifier"},
    ("modernbert", "question answering"): {"head.dense", "classifier"},
    ("roberta", "classification"): {"classifier.dense", "classifier.out_proj"},
}
LEFT_OF_TASK = {"question answering": {"qa_outputs"}, "language": {"lm_head"}}
TOLERANCES = {4: 1e-5, 8: 2e-3}  # of training steps, in which 8-bit layers do not round their inputs
IDS = torch.arange(5, 25).view(2, 10)


def build(backbone: Path, kind: str = "classification", bits: int = 4, seed: int = 0, **more: Any) -> AdaptationTask:
    """A task with its model; in float32, so that results do not depend on the CPU."""
    dtype = {"compute_dtype": "float32"} if bits == 4 else {}
    settings: dict[str, Any] = {
        "lora": LoraSettings(r=3, lora_alpha=5, lora_dropout=0.0),
        "quantization": QuantizationSettings(bits=bits, **dtype),  # type: ignore[arg-type]
        "base_dropout": 0.0,
        **more,
    }
    if kind == "classification":
        settings["label_space"] = LabelSpace(names=["no", "yes", "maybe"])
    torch.manual_seed(seed)
    task = TASKS[kind](str(backbone), **settings)
    task.configure_model()
    return task


def run(model: nn.Module) -> list[Tensor]:
    output = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    return [output.logits] if hasattr(output, "logits") else [output.start_logits, output.end_logits]


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([part.flatten() for part in run(model.eval())])


def train(task: AdaptationTask, steps: int = 3) -> None:
    network = task.built_network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        sum(part.square().mean() for part in run(network)).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()


def plainly_loaded(backbone: Path, folder: Path, kind: str, quantized: bool = True) -> nn.Module:
    """As README tells a user without this package."""
    more: dict[str, Any] = {"dtype": torch.float32}
    if quantized:
        content = json.loads((folder / QUANTIZATION).read_text())
        more["quantization_config"] = BitsAndBytesConfig.from_dict(content)
    if kind == "question answering" and AutoConfig.from_pretrained(folder, subfolder="config").model_type in {
        "llama",
        "qwen2",
    }:
        more["key_mapping"] = {r"^model\.": "transformer."}
    config = AutoConfig.from_pretrained(folder, subfolder="config")
    base = AUTO_CLASSES[kind].from_pretrained(backbone, config=config, **more)
    # bitsandbytes' kernel for CPUs with AVX512-BF16 fails on rows of less than 64, as tiny models have.
    keep_4bit_weights_in_order(base)
    return PeftModel.from_pretrained(base, str(folder))


@pytest.mark.parametrize(("family", "kind", "bits"), CASES)
def test_every_family_and_task(tiny_backbone: TinyBackbone, tmp_path: Path, family: str, kind: str, bits: int) -> None:
    task = build(tiny_backbone(family), kind, bits)
    network = task.built_network
    assert isinstance(network, PeftModel)
    # What is quantized: all linear layers but the head and what the checkpoint lacked.
    linear = {
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save.default", ""): layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and "lora_" not in name and ".original_module" not in name
    }
    left = {name for name, layer in linear.items() if quantized_bits(layer) is None}
    assert left == LEFT.get((family, kind), LEFT_OF_TASK.get(kind, {"score"}))
    assert all(quantized_bits(layer) == bits for name, layer in linear.items() if name not in left)
    assert all(p.dtype == torch.float32 for p in network.parameters() if quantized_bits_of(p) is None)
    # B = 0 is the quantized base exactly, and every layer is its own dequantized weight plus the adapter.
    start = outputs(network)
    with network.disable_adapter():
        assert torch.equal(outputs(network), start)
    move_from_zero(network)
    network.train()
    assert_layers_compute_the_formula(network, lambda: run(network), TOLERANCES[bits])
    train(task)
    trained = outputs(network)
    assert (trained - start).abs().max() > 1e-3
    # Saved and loaded again by the task and by plain PEFT.
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    task.on_save_checkpoint(checkpoint)
    assert not [name for name in checkpoint["state_dict"] if "base_layer" in name]
    again = build(tiny_backbone(family), kind, bits, seed=1)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(outputs(again.built_network), trained)
    export_model(network, None, tmp_path / "adapter", {})
    assert "quantization_config" not in json.loads((tmp_path / "adapter/config/config.json").read_text())
    torch.manual_seed(2)  # whatever stayed random would differ
    plain = plainly_loaded(tiny_backbone(family), tmp_path / "adapter", kind)
    torch.testing.assert_close(outputs(plain), trained, rtol=0, atol=1e-5 if bits == 4 else 1e-2)


def quantized_bits_of(parameter: nn.Parameter) -> int | None:
    return {"Params4bit": 4, "Int8Params": 8}.get(type(parameter).__name__)


@pytest.mark.parametrize(("family", "kind"), [("bert", "classification"), ("gpt2", "language")])
def test_the_adapter_loads_onto_the_base_in_full_precision_too(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, kind: str
) -> None:
    """There it moves the base's outputs nearly as on the quantized one, away by the error of quantizing."""
    task = build(tiny_backbone(family), kind)
    before = outputs(task.built_network)
    train(task, steps=10)
    export_model(task.built_network, None, tmp_path / "adapter", {})
    plain = plainly_loaded(tiny_backbone(family), tmp_path / "adapter", kind, quantized=False)
    trained, found = outputs(task.built_network), outputs(plain)
    assert (trained - found).norm() < 0.3 * (trained - before).norm()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("type_", ["nf4", "fp4"])
def test_settings_reach_the_weights(tiny_backbone: TinyBackbone, type_: Any, double: bool) -> None:
    settings = QuantizationSettings(type=type_, double_quantization=double, compute_dtype="bfloat16")
    task = build(tiny_backbone("bert"), quantization=settings)
    layer: Any = next(iter(adapted_layers(task).values())).get_base_layer()
    assert layer.weight.quant_state.quant_type == type_
    assert layer.weight.quant_state.nested is double
    assert layer.compute_dtype == torch.bfloat16


def test_what_trains_in_full_or_is_skipped_is_not_quantized(tiny_backbone: TinyBackbone) -> None:
    lora = LoraSettings(r=2, modules_to_save=["layer.1.output"])
    settings = QuantizationSettings(skip_modules=["key", "layer.0.intermediate"])
    task = build(tiny_backbone("bert"), lora=lora, quantization=settings)
    left = {
        name.removeprefix("base_model.model.bert.encoder.").replace(".base_layer", "")
        for name, layer in task.built_network.named_modules()
        if isinstance(layer, nn.Linear) and "encoder" in name and "lora_" not in name and quantized_bits(layer) is None
    }
    assert left == {
        "layer.0.attention.self.key",
        "layer.1.attention.self.key",
        "layer.0.intermediate.dense",
        "layer.1.output.original_module.dense",
        "layer.1.output.modules_to_save.default.dense",
    }
    names = [name for name, parameter in task.built_network.named_parameters() if parameter.requires_grad]
    assert any("layer.1.output.modules_to_save.default.dense.weight" in name for name in names)
    train(task)


@pytest.mark.parametrize("bits", [4, 8])
def test_pefts_preparation_for_training_has_nothing_left_to_do(tiny_backbone: TinyBackbone, bits: int) -> None:
    """Frozen base, norms and whatever else is not quantized in float32."""
    task = build(tiny_backbone("llama"), "language", bits)
    trains = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trains)
    before = {name: (p.dtype, p.detach().clone()) for name, p in task.named_parameters()}
    prepare_model_for_kbit_training(task.transformers_model, use_gradient_checkpointing=False)
    for name, parameter in task.named_parameters():
        assert parameter.dtype == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("family", "kind"), [("bert", "classification"), ("llama", "language")])
def test_gradient_checkpointing_changes_no_gradient(
    tiny_backbone: TinyBackbone, family: str, kind: str, bits: int
) -> None:
    gradients = []
    for checkpointing in (False, True):
        task = build(tiny_backbone(family), kind, bits, gradient_checkpointing=checkpointing)
        move_from_zero(task)
        task.built_network.train()
        sum(part.square().sum() for part in run(task.built_network)).backward()  # type: ignore[union-attr]
        gradients.append({name: p.grad for name, p in task.named_parameters() if p.requires_grad})
        assert all(gradient is not None and gradient.any() for gradient in gradients[-1].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_moving_nowhere_changes_nothing(tiny_backbone: TinyBackbone, bits: int) -> None:
    task = build(tiny_backbone("bert"), bits=bits)
    before = outputs(task.built_network)
    weights = {name: pretrained_weight(layer) for name, layer in adapted_layers(task).items()}
    task.to("cpu")
    assert torch.equal(outputs(task.built_network), before)
    for name, layer in adapted_layers(task).items():
        assert torch.equal(pretrained_weight(layer), weights[name])


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        ({"bits": 8}, "quantization.bits is 8 here and 4 in the checkpoint"),
        ({"type": "fp4"}, "quantization.type is 'fp4' here and 'nf4' in the checkpoint"),
        ({"double_quantization": True}, "quantization.double_quantization is True here and False"),
        ({"skip_modules": ["key"]}, r"quantization.skip_modules is \['key'\] here and None"),
        (None, "quantization.bits is None here and 4 in the checkpoint"),
        ({"compute_dtype": "bfloat16"}, None),  # follows the device
    ],
)
def test_a_checkpoint_of_another_quantization_is_refused(
    tiny_backbone: TinyBackbone, other: dict[str, Any] | None, refused: str | None
) -> None:
    def made(settings: QuantizationSettings | None) -> AdaptationTask:
        return SequenceClassificationTask(str(tiny_backbone("bert")), quantization=settings)

    saved = {"hyper_parameters": dict(made(QuantizationSettings()).hparams)}
    task = made(None if other is None else QuantizationSettings(**other))
    if refused is None:
        task.on_load_checkpoint(saved)
        return
    with pytest.raises(CheckpointError, match=refused):
        task.on_load_checkpoint(saved)


def test_a_checkpoint_from_before_there_was_quantization_has_none(tiny_backbone: TinyBackbone) -> None:
    old: dict[str, Any] = dict(SequenceClassificationTask(str(tiny_backbone("bert"))).hparams)
    del old["quantization"], old["lora"]["init_lora_weights"]
    SequenceClassificationTask(str(tiny_backbone("bert"))).on_load_checkpoint({"hyper_parameters": old})
    other = SequenceClassificationTask(str(tiny_backbone("bert")), lora=LoraSettings(use_rslora=True))
    with pytest.raises(CheckpointError, match=r"lora.use_rslora is True here and False in the checkpoint"):
        other.on_load_checkpoint({"hyper_parameters": old})
    quantized = SequenceClassificationTask(str(tiny_backbone("bert")), quantization=QuantizationSettings())
    with pytest.raises(CheckpointError, match=r"quantization.bits is 4 here and None in the checkpoint"):
        quantized.on_load_checkpoint({"hyper_parameters": old})


@pytest.mark.parametrize("kind", TASKS)
def test_quantized_weights_cannot_train(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model.quantization is set, but model.lora is null"):
        TASKS[kind]("anywhere", lora=None, quantization=QuantizationSettings())


@pytest.mark.parametrize(("quantization", "found"), [(None, "is null"), (QuantizationSettings(bits=8), "is in 8 bits")])
def test_loftq_needs_4_bits(quantization: QuantizationSettings | None, found: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"init_lora_weights is loftq, but model.quantization {found}"):
        SequenceClassificationTask("anywhere", lora=LoraSettings(init_lora_weights="loftq"), quantization=quantization)
