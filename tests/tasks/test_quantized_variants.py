"""Variants on quantized bases train, reload and are exported with the same logits, or are refused by name."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_lightning.backbones.export import export_model
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import QuantizationSettings
from lora_lightning.lora.delta import adapted_layers, pretrained_weight
from lora_lightning.lora.merging import without_adapters
from lora_lightning.lora.quantized import keep_biases_as_they_are, quantized_bits
from lora_lightning.lora.variants.adalora import ranks_in_use
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from lora_lightning.tasks.base import AdaptationTask
from tests.conftest import TinyBackbone
from tests.tasks.test_quantized_tasks import plainly_loaded
from tests.tiny_data import save_tiny_clinc150
from tests.variants import logits_of, perturb_trainable_parameters, settings_of, train_classifier

pytest.importorskip("bitsandbytes")

# Results in float32 do not depend on the CPU.
BASES = {4: QuantizationSettings(compute_dtype="float32"), 8: QuantizationSettings(bits=8)}
TRAIN: dict[int, list[tuple[str, ...]]] = {
    4: [
        *[(name,) for name in ("rslora", "dora", "gaussian", "eva", "loftq", "rank_pattern", "alpha_pattern")],
        *[(name,) for name in ("layers_to_transform", "bias", "embeddings", "tokens", "adalora", "loraplus", "lorafa")],
        *[("dora", "rslora"), ("dora", "loraplus"), ("dora", "lorafa"), ("dora", "eva"), ("rslora", "lorafa")],
        *[("loftq", "lorafa"), ("loftq", "rslora"), ("loftq", "rank_pattern"), ("adalora", "tokens")],
    ],
    8: [("rslora",), ("eva",), ("adalora",), ("loraplus",), ("lorafa",), ("tokens",)],
}
REFUSED = {
    "model.lora.init_lora_weights is orthogonal": (("orthogonal",), (4, 8)),
    "model.lora.init_lora_weights is pissa": (("pissa",), (4, 8)),
    "model.lora.init_lora_weights is pissa_niter_4": (("pissa_niter_4",), (4, 8)),
    "model.lora.init_lora_weights is olora": (("olora",), (4, 8)),
    "model.lora.use_dora is true": (("dora",), (8,)),
    "model.lora.init_lora_weights is loftq": (("loftq",), (8,)),
}


@pytest.fixture(scope="module")
def trained(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("variants")
    return partial(train_classifier, tiny_backbone("bert"), save_tiny_clinc150(folder / "data"), folder)


@pytest.mark.parametrize(
    ("bits", "names"),
    [(bits, names) for bits, cases in TRAIN.items() for names in cases],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_variant_trains_reloads_and_is_exported(
    trained: Any, tiny_backbone: TinyBackbone, tmp_path: Path, bits: int, names: tuple[str, ...]
) -> None:
    settings = {**settings_of(*names), "quantization": BASES[bits]}
    if "eva" in names:
        settings["lora"].target_modules = "all-linear"  # so that EVA's ranks differ
    task, trainer = trained(settings)
    layers = adapted_layers(task)
    assert {quantized_bits(layer.get_base_layer()) for layer in layers.values()} == {bits}
    weights = {name: pretrained_weight(layer) for name, layer in layers.items()}
    if "adalora" in names:
        assert sum(ranks_in_use(task).values()) == len(layers)  # target_r is 1
    else:
        assert all(layer.lora_B["default"].weight.detach().any() for layer in layers.values())
    perturb_trainable_parameters(task)
    expected = logits_of(task.built_network)
    with without_adapters(task.built_network):
        assert (logits_of(task.built_network) - expected).abs().max() > 1e-3  # or the rest would prove nothing
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(12345)  # whatever is not saved would be drawn differently
    again = SequenceClassificationTask.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu", weights_only=True)
    assert torch.equal(logits_of(again.built_network), expected)
    for name, layer in adapted_layers(again).items():
        assert torch.equal(pretrained_weight(layer), weights[name]), name
    export_model(task.built_network, None, tmp_path / "adapter", {})
    torch.manual_seed(54321)
    plain = plainly_loaded(tiny_backbone("bert"), tmp_path / "adapter", "classification")
    assert plain.peft_config["default"].peft_type == "LORA"  # type: ignore[union-attr,index]
    # Plain PEFT rounds the inputs of 8-bit layers after other operations.
    torch.testing.assert_close(logits_of(plain), expected, rtol=0, atol=1e-5 if bits == 4 else 1e-2)


@pytest.mark.parametrize("names", [("bias",), ("adalora",), ("eva",), ("dora", "eva"), ("dora",)], ids="+".join)
def test_computing_in_16_bits_leaves_what_is_kept_in_float32(
    trained: Any, tiny_backbone: TinyBackbone, names: tuple[str, ...]
) -> None:
    """Biases and adapters are float32, and train, or stay bit for bit what they were, whatever the products are in."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        settings = {**settings_of(*names), "quantization": QuantizationSettings(compute_dtype=dtype)}
        if "eva" in names:
            settings["lora"].target_modules = "all-linear"  # so that EVA's ranks differ
        task, _ = trained(settings)
        found[dtype] = {name: value for name, value in task.named_parameters() if value.requires_grad}
        assert {value.dtype for value in task.parameters() if value.is_floating_point()} == {torch.float32}
    assert found["bfloat16"].keys() == found["float32"].keys()
    assert not [name for name in found["bfloat16"] if "ranknum" in name]
    original = load_file(tiny_backbone("bert") / "model.safetensors")
    biases = {name: value.detach() for name, value in task.named_parameters() if name.endswith("base_layer.bias")}
    assert len(biases) > 0
    moved = {name for name, value in biases.items() if not torch.equal(value, original[_original(name)])}
    assert moved == (set(biases) if "bias" in names else set())


def _original(name: str) -> str:
    return name.removeprefix("network.base_model.model.").replace(".base_layer.", ".")


def test_a_quantized_layer_with_a_bias_computes_as_bitsandbytes_does() -> None:
    bnb = pytest.importorskip("bitsandbytes").nn
    torch.manual_seed(0)
    weight, bias, x = torch.randn(16, 64), torch.randn(16), torch.randn(3, 64)
    outputs = []
    for keeps in (True, False):
        layer = bnb.Linear4bit(64, 16, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.load_state_dict({"weight": weight, "bias": bias})
        layer = layer.to("cpu")
        if keeps:
            keep_biases_as_they_are(layer)
        outputs.append(layer(x))
        assert torch.equal(layer.bias.detach().float(), bias) is keeps
    assert torch.equal(*outputs)
    outputs[0].sum().backward()


@pytest.mark.parametrize("task_class", [SequenceClassificationTask, QuestionAnsweringTask, CausalLanguageModelingTask])
@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_stand_on_the_base_is_refused_before_a_backbone_is_looked_for(
    task_class: type[AdaptationTask], named: str
) -> None:
    names, refused = REFUSED[named]
    for bits in refused:
        with pytest.raises(ConfigurationError, match=rf"^{named}, but .*{bits} bits"):
            task_class("no such folder", **settings_of(*names), quantization=BASES[bits])


def test_loftq_and_dora_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"model.lora.init_lora_weights loftq and model.lora.use_dora cannot"):
        settings_of("loftq", "dora")
