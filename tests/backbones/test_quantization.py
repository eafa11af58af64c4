"""Quantizing while loading: settings that mean nothing, what is left, where it runs and in which dtype."""

import json
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lora_lightning.backbones import (
    check_adapter_settings,
    load_classification_config,
    load_sequence_classifier,
)
from lora_lightning.backbones.loading import build_without_storage, load_model
from lora_lightning.backbones.quantization import Quantization, compute_dtype_on, modules_left
from lora_lightning.compat.transformers import quantization_config
from lora_lightning.errors import BackboneError, ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.quantized import quantized_bits
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_families import causal_model

pytest.importorskip("bitsandbytes")

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
NAMES = ["yes", "no"]
FLOAT32 = Quantization(QuantizationSettings(), LoraSettings(), CPU, torch.float32)


@pytest.mark.parametrize(
    ("name", "value"), [("type", "fp4"), ("double_quantization", True), ("compute_dtype", "bfloat16")]
)
def test_what_only_4_bits_have_is_refused_for_8(name: str, value: object) -> None:
    QuantizationSettings(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError,
        match=rf"quantization.{name} is {value}, but it applies to 4-bit weights only, and bits is 8",
    ):
        QuantizationSettings(bits=8, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_a_cpu_computes_in_what_it_is_fast_at(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert compute_dtype_on(QuantizationSettings(), CPU, "32-true") == expected
    assert compute_dtype_on(QuantizationSettings(compute_dtype="float32"), CPU, "32-true") == torch.float32


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_16_bits(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    assert compute_dtype_on(QuantizationSettings(), GPU, "32-true") == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("bf16-true", torch.bfloat16),
        ("16-true", torch.float16),
    ],
)
def test_the_trainers_precision_comes_first(precision: str, expected: torch.dtype) -> None:
    assert compute_dtype_on(QuantizationSettings(), GPU, precision) == expected


@pytest.mark.parametrize(
    ("settings", "device", "precision", "message"),
    [
        ({}, torch.device("mps"), "32-true", r"does not run on mps \(trainer.accelerator\); set --trainer.accelerator"),
        ({}, CPU, "64-true", r"trainer.precision is 64-true, in which quantized weights do not compute"),
        ({"compute_dtype": "float16"}, CPU, "32-true", r"compute_dtype is float16, but CPUs emulate.* set it to auto"),
        ({}, CPU, "16-mixed", r"trainer.precision is 16-mixed, but CPUs emulate.* set it to bf16-mixed or 32-true"),
        ({"compute_dtype": "float16"}, CPU, "16-true", r"trainer.precision is 16-true, but CPUs emulate"),
        ({"compute_dtype": "bfloat16"}, GPU, "16-mixed", r"compute_dtype is bfloat16, but trainer.precision is 16-mix"),
        ({"compute_dtype": "float16"}, GPU, "bf16-true", r"compute_dtype is float16, but trainer.precision is bf16"),
    ],
)
def test_combinations_that_do_not_exist(
    settings: dict[str, Any], device: torch.device, precision: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compute_dtype_on(QuantizationSettings(**settings), device, precision)


def test_8_bit_weights_have_no_dtype_that_a_cpu_emulates() -> None:
    compute_dtype_on(QuantizationSettings(bits=8), CPU, "16-true")


def trainer(**settings: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **settings)


def test_sharding_strategies_are_refused() -> None:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    sharding = trainer(strategy=strategy, devices=2)
    SequenceClassificationTask("anywhere").check_trainer(sharding)
    task = SequenceClassificationTask("anywhere", quantization=QuantizationSettings())
    with pytest.raises(ConfigurationError, match=r"does not work with trainer.strategy ModelParallelStrategy"):
        task.check_trainer(sharding)
    task.check_trainer(trainer(strategy="ddp", devices=2))
    task.check_trainer(trainer())
    with pytest.raises(ConfigurationError, match=r"trainer.precision is 64-true"):
        task.check_trainer(trainer(precision="64-true"))


def test_weights_are_quantized_on_the_processs_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SequenceClassificationTask("anywhere", quantization=QuantizationSettings())
    alone = task.quantization_on_device()
    assert alone is not None
    assert alone.device == CPU
    task.trainer = trainer(strategy="ddp", devices=2, precision="bf16-mixed")
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(type(task.trainer.strategy), "root_device", torch.device("cuda:1"))  # of the second process
    here = task.quantization_on_device()
    assert here is not None
    assert (here.device, here.compute_dtype) == (torch.device("cuda:1"), torch.bfloat16)
    task.quantization = None
    assert task.quantization_on_device() is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["intermediat"], r"skip_modules: the model has no module 'intermediat'; did you mean.*'intermediate'"),
        (["encoder", "pooler"], r"skip_modules is \['encoder', 'pooler'\], which leaves no layer to quantize"),
    ],
)
def test_a_wrong_module_to_skip_is_found_before_weights_load(
    tiny_backbone: TinyBackbone, wanted: list[str], message: str
) -> None:
    config = load_classification_config(str(tiny_backbone("bert")), NAMES, 0)
    quantization = QuantizationSettings(skip_modules=wanted)
    lora = LoraSettings()
    with pytest.raises(ConfigurationError, match=message):
        check_adapter_settings(config, lora, quantization)


def test_the_head_what_trains_and_what_is_skipped_are_left(tiny_backbone: TinyBackbone) -> None:
    config = load_classification_config(str(tiny_backbone("distilbert")), NAMES, 0)
    model = build_without_storage(AutoModelForSequenceClassification, config)
    skip = QuantizationSettings(skip_modules=["out_lin", "layer.0.ffn"])
    layers = "distilbert.transformer.layer"
    assert modules_left(model, skip, ["distilbert.embeddings"]) == [
        "distilbert.embeddings",
        f"{layers}.0.attention.out_lin",
        f"{layers}.0.ffn",
        f"{layers}.1.attention.out_lin",
        "pre_classifier",
        "classifier",
    ]


def test_loading_says_what_was_lacking_and_how_it_was_quantized(
    tiny_backbone: TinyBackbone, tiny_classifier: TinyClassifier
) -> None:
    backbone = str(tiny_backbone("bert"))
    loaded = load_sequence_classifier(backbone, load_classification_config(backbone, NAMES, 0), FLOAT32)
    plain = tiny_classifier("bert")
    assert loaded.lacked == plain.lacked
    assert quantization_config(plain.model) is None
    found = quantization_config(loaded.model)
    assert found is not None
    assert found.llm_int8_skip_modules == ["bert.pooler", "classifier"]
    assert json.loads(json.dumps(found.to_dict()))["bnb_4bit_compute_dtype"] == "float32"
    assert not hasattr(loaded.model.config, "quantization_config")


def test_incomplete_weights_are_refused_as_without_quantization(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_backbone("bert"), tmp_path / "damaged"))
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.0.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = load_classification_config(str(folder), NAMES, 0)
    with pytest.raises(BackboneError, match=r"lack bert.encoder.layer.0.attention.self.query.weight"):
        load_sequence_classifier(str(folder), config, FLOAT32)


def test_a_head_for_other_labels_is_newly_initialized_and_not_quantized(
    tiny_classifier: TinyClassifier, tmp_path: Path
) -> None:
    tiny_classifier("bert", labels=5).model.save_pretrained(tmp_path)
    loaded = load_sequence_classifier(str(tmp_path), load_classification_config(str(tmp_path), NAMES, 0), FLOAT32)
    assert loaded.lacked == ["classifier"]
    assert type(loaded.model.classifier) is nn.Linear
    assert loaded.model.classifier.weight.shape[0] == len(NAMES)
    assert quantized_bits(loaded.model.bert.pooler.dense) == 4  # was in the checkpoint, so it is a layer like any other


def test_bytes_that_bitsandbytes_cannot_quantize_are_counted(tmp_path: Path) -> None:
    model = causal_model("qwen3_moe")
    folder = tmp_path / "experts"
    model.save_pretrained(folder)
    experts = sum(
        p.numel() for name, p in model.named_parameters() if "experts" in name or name.endswith("gate.weight")
    )
    with pytest.warns(
        UserWarning, match=rf"{4 * experts / 2**20:.1f} MiB of the base's .* MiB stay in float32.*experts"
    ):
        load_model(AutoModelForCausalLM, str(folder), model.config, FLOAT32)


def test_nothing_is_said_if_every_layer_is_quantized(tmp_path: Path) -> None:
    model = causal_model("llama")
    model.save_pretrained(tmp_path / "dense")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*bitsandbytes quantizes linear layers only.*")
        load_model(AutoModelForCausalLM, str(tmp_path / "dense"), model.config, FLOAT32)
