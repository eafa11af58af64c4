"""LoftQ starts at the best approximation of the quantization error, by NumPy's SVD, and survives being exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from lora_lightning.backbones.export import export_model
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.delta import adapted_layers, adapter_factors, pretrained_weight
from lora_lightning.lora.variants.loftq import truncated_svd_factors
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tasks.test_quantized_tasks import build, outputs, plainly_loaded, train
from tests.tiny_models import HIDDEN

pytest.importorskip("bitsandbytes")

CASES = [
    ("bert", "classification", AutoModelForSequenceClassification),
    ("gpt2", "language", AutoModelForCausalLM),
    ("llama", "question answering", AutoModelForQuestionAnswering),  # named otherwise than in its checkpoint
]


def test_what_a_checkpoint_brings_is_not_computed_again(
    tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_lightning.tasks.base.load_original_weights", lambda *_: pytest.fail("loaded again"))
    task = SequenceClassificationTask(
        str(tiny_backbone("bert")),
        lora=LoraSettings(init_lora_weights="loftq"),
        quantization=QuantizationSettings(compute_dtype="float32"),
        label_space=LabelSpace(["a", "b"]),
    )
    task.resumes = True
    task.configure_model()


def loftq(backbone: Path, kind: str, **more: Any) -> Any:
    lora = LoraSettings(**{"r": 4, "lora_alpha": 10.0, "lora_dropout": 0.0, "init_lora_weights": "loftq", **more})
    return build(backbone, kind, lora=lora)


@pytest.mark.parametrize("rank", [1, 3, 5, 7])
def test_best_factors_are_the_truncated_svd(rank: int) -> None:
    matrix = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    left, right = truncated_svd_factors(matrix, rank)
    u, sigma, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    assert (left.shape, right.shape) == ((5, rank), (rank, 8))
    np.testing.assert_allclose(left @ right, (u[:, :rank] * sigma[:rank]) @ vh[:rank], atol=1e-5)
    np.testing.assert_allclose(left.norm(dim=0), right.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(("family", "kind", "auto_class"), CASES)
def test_every_adapter_starts_at_the_best_approximation_of_its_error(
    tiny_backbone: TinyBackbone, family: str, kind: str, auto_class: Any, use_rslora: bool
) -> None:
    task = loftq(tiny_backbone(family), kind, use_rslora=use_rslora)
    more = {"key_mapping": {r"^model\.": "transformer."}} if kind == "question answering" else {}
    original = auto_class.from_pretrained(tiny_backbone(family), dtype=torch.float32, **more)
    for name, layer in adapted_layers(task).items():
        weight = original.get_submodule(name).weight.detach().double().numpy()
        weight = weight.T if family == "gpt2" else weight
        error = weight - pretrained_weight(layer).double().numpy()
        a, b = (factor.detach().double().numpy() for factor in adapter_factors(layer))  # type: ignore[arg-type]
        left = np.linalg.norm(error - layer.scaling["default"] * b @ a)
        sigma = np.linalg.svd(error, compute_uv=False)
        assert left == pytest.approx(np.linalg.norm(sigma[4:]), rel=1e-3)
        assert left < np.linalg.norm(error)


def test_with_all_ranks_the_model_starts_as_it_was_before_quantization(tiny_backbone: TinyBackbone) -> None:
    original = AutoModelForCausalLM.from_pretrained(tiny_backbone("gpt2"), dtype=torch.float32)
    plain, repaired = (
        outputs(build(tiny_backbone("gpt2"), "language", lora=lora).built_network)
        for lora in (LoraSettings(), LoraSettings(r=HIDDEN, init_lora_weights="loftq"))
    )
    expected = outputs(original)
    torch.testing.assert_close(repaired, expected, rtol=0, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-3


def test_a_skipped_layer_has_no_error_to_start_from(tiny_backbone: TinyBackbone) -> None:
    lora = LoraSettings(init_lora_weights="loftq")
    task = build(tiny_backbone("bert"), lora=lora, quantization=QuantizationSettings(skip_modules=["key"]))
    for name, layer in adapted_layers(task).items():
        assert adapter_factors(layer)[1].any() == ("key" not in name)


@pytest.mark.parametrize(("family", "kind", "auto_class"), CASES)
def test_plain_peft_gives_the_same_logits_on_a_plainly_quantized_base(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, kind: str, auto_class: Any
) -> None:
    task = loftq(tiny_backbone(family), kind)
    train(task)
    export_model(task.built_network, None, tmp_path / "adapter", {})
    torch.manual_seed(1)
    plain = plainly_loaded(tiny_backbone(family), tmp_path / "adapter", kind)
    torch.testing.assert_close(outputs(plain), outputs(task.built_network), rtol=0, atol=1e-5)
