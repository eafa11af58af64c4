"""A variant's hooks are called at their moments of a run, and what it refuses is refused, without changes elsewhere."""
# ruff: noqa: ARG002  # a hook has the arguments that it has

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from lora_lightning.backbones.export import export_model
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora import variants
from lora_lightning.lora.combinations import check_combinations, check_lora_and_quantization, check_sharding
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.delta import adapted_layers, pretrained_weight
from lora_lightning.lora.merging import merged_weight
from lora_lightning.lora.variants.variant import Initialization, TrainingFacts, Variant
from lora_lightning.tasks import OptimizationSettings, SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150
from tests.variants import train_classifier

ROOT = Path(__file__).parents[3]
SECTIONS = {"model.lora": LoraSettings, "model.optimization": OptimizationSettings}


class Halving(Initialization):
    """Computes as plain LoRA, says that it exports and merges half of an update, and notes which hook was called."""

    initializations = ("halving",)
    excludes: ClassVar[Mapping[str, str]] = {"model.lora.use_dora": "they are not made for each other; choose one"}
    refused_bits = (8,)
    why_not_quantized = "8 bits cannot be halved"
    why_not_sharded = "shards cannot be halved"
    state_key = "halving"
    called: ClassVar[list[str]] = []
    restored: ClassVar[dict[str, Any]] = {}

    def peft_arguments(self) -> dict[str, Any]:
        return {"init_lora_weights": True}

    def check_schedule(self, total_steps: Callable[[], float]) -> None:
        self.called.append(f"check_schedule {total_steps():.0f}")

    def check_layer(self, module: str, layer: nn.Module, rank: int) -> None:
        self.called.append(f"check_layer {rank}")
        assert isinstance(layer, nn.Linear), module

    def after_attaching(self, network: PeftModel) -> None:
        self.called.append("after_attaching")
        for layer in adapted_layers(network).values():
            layer.register_buffer("halving_factor", torch.tensor(0.5))  # type: ignore[attr-defined]

    def start_from_base(
        self, network: PeftModel, original_weights: Callable[[Collection[str]], Mapping[str, Tensor]]
    ) -> None:
        self.called.append("start_from_base")
        originals = original_weights(adapted_layers(network))
        for name, layer in adapted_layers(network).items():
            torch.testing.assert_close(originals[name], pretrained_weight(layer))

    def before_training(self, network: PeftModel, training: TrainingFacts) -> None:
        batch = next(iter(training.batches()))
        with training.isolated():
            training.evaluate(batch)
        self.called.append(f"before_training {'resumed' if training.resumes else 'new'}")

    def freeze_parameters(self, network: PeftModel) -> None:
        self.called.append("freeze_parameters")

    def before_step(self, network: nn.Module) -> Mapping[str, Tensor]:
        assert any(parameter.grad is not None for parameter in network.parameters())
        self.called.append("before_step")
        return {"train/halves": torch.tensor(2.0)}

    def after_step(self, network: PeftModel, step: int) -> None:
        self.called.append(f"after_step {step}")

    def is_settled(self, network: PeftModel, step: int) -> bool:
        return step > 2

    def saved_buffers(self, network: nn.Module) -> list[str]:
        return [name for name, _ in network.named_buffers() if name.endswith("halving_factor")]

    def state(self, network: PeftModel) -> dict[str, Any]:
        return {"kept": 7}

    def load_state(self, network: PeftModel, state: Mapping[str, Any]) -> None:
        self.restored.update(state)

    def adopt_shapes(self, network: PeftModel, state: Mapping[str, Tensor]) -> None:
        assert set(self.saved_buffers(network)) < state.keys()
        self.called.append("adopt_shapes")

    def before_loading(self, network: PeftModel, state: Mapping[str, Tensor]) -> None:
        self.called.append("before_loading")

    @classmethod
    def has_made(cls, layer: LoraLayer) -> bool:
        return hasattr(layer, "halving_factor")

    @classmethod
    def needs_conversion(cls, network: PeftModel) -> bool:
        return any(cls.has_made(layer) for layer in adapted_layers(network).values())

    @classmethod
    def exported_factors(cls, module: str, layer: LoraLayer) -> tuple[Tensor, Tensor, float]:
        a, b, scaling = super().exported_factors(module, layer)
        return a, b / 2, scaling

    @classmethod
    def merged_weight(cls, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
        return (weight + super().merged_weight(module, layer, weight)) / 2


@pytest.fixture
def _halving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "VARIANTS", (*variants.VARIANTS, Halving))
    Halving.called.clear()
    Halving.restored.clear()


@pytest.mark.usefixtures("_halving")
def test_a_new_variant_is_a_class_and_its_line(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    data, backbone = save_tiny_clinc150(tmp_path / "data"), tiny_backbone("bert")
    settings = {"lora": LoraSettings(r=2, init_lora_weights="halving", target_modules=["query"])}
    task, trainer = train_classifier(backbone, data, tmp_path, settings, steps=2)
    layers = adapted_layers(task)
    before = ["check_schedule 2", "check_layer 2", "after_attaching", "start_from_base"]
    starts = ["before_training new", "freeze_parameters"]
    steps = ["before_step", "after_step 1", "before_step", "after_step 2"]
    assert [name for name, _ in groupby(Halving.called)] == [*before, *starts, *steps]
    assert float(trainer.callback_metrics["train/halves"]) == 2
    assert not task.may_be_best

    trainer.save_checkpoint(tmp_path / "a.ckpt")
    Halving.called.clear()
    again = SequenceClassificationTask.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu", weights_only=True)
    assert Halving.called[-3:] == ["adopt_shapes", "freeze_parameters", "before_loading"]
    assert Halving.restored == {"kept": 7}
    assert again.resumes

    export_model(task.built_network, None, tmp_path / "adapter", {})
    base = task.build_network().unload()  # type: ignore[operator]
    exported = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    for name, layer in layers.items():
        weight = pretrained_weight(layer)
        half = merged_weight(name, layer, weight) - weight
        delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert delta.abs().max() > 0
        torch.testing.assert_close(half, delta.detach() / 2)
        plain = adapted_layers(exported)[name]
        torch.testing.assert_close(plain.get_delta_weight("default").detach(), delta.detach() / 2)


@pytest.mark.usefixtures("_halving")
def test_what_a_new_variant_refuses_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"halving and model\.lora\.use_dora cannot be combined"):
        LoraSettings(init_lora_weights="halving", use_dora=True)
    lora = LoraSettings(init_lora_weights="halving")
    check_lora_and_quantization(lora, QuantizationSettings(bits=4))
    with pytest.raises(ConfigurationError, match=r"is halving, but .* 8 bits: 8 bits cannot be halved"):
        check_lora_and_quantization(lora, QuantizationSettings(bits=8))
    with pytest.raises(ConfigurationError, match=r"halving does not work with a strategy that shards"):
        check_sharding(lora, OptimizationSettings())
    with pytest.raises(ConfigurationError, match=r"did you mean 'halving'"):
        LoraSettings(init_lora_weights="halvin")


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_a_variant_names_options_that_exist_and_reasons(variant: type[Variant]) -> None:
    for option in (variant.option, *variant.excludes):
        section, _, name = option.rpartition(".")
        assert name in {field.name for field in fields(SECTIONS[section])}
    for why in (*variant.excludes.values(), variant.why_not_quantized, variant.why_not_sharded):
        assert not why.endswith(".")
    assert bool(variant.refused_bits) is bool(variant.why_not_quantized)
    if issubclass(variant, Initialization):
        assert variant.initializations
        assert all(variant.is_chosen_by(name) for name in variant.initializations)


def test_every_module_of_a_variant_is_registered() -> None:
    folder = Path(variants.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "variant"}
    assert {variant.__module__.rpartition(".")[2] for variant in variants.VARIANTS} == modules


def test_every_variant_has_a_config() -> None:
    found: set[type[Variant]] = set()
    for path in (ROOT / "configs/variants").glob("*.yaml"):
        arguments = yaml.safe_load(path.read_text())["model"]["init_args"]
        if (lora := arguments.get("lora")) is not None:
            optimization = OptimizationSettings(**arguments.get("optimization", {}))
            found |= {type(variant) for variant in variants.chosen_variants(LoraSettings(**lora), optimization)}
    assert set(variants.VARIANTS) - found <= {variants.Orthogonal}  # differs from the default in numbers only


def test_the_optimizers_variants_need_an_adapter() -> None:
    for settings in ({"lorafa": True}, {"loraplus_lr_ratio": 2.0}):
        with pytest.raises(ConfigurationError, match=r"^model\.optimization\.\w+ is a variant of LoRA, but"):
            check_combinations(None, OptimizationSettings(**settings))


def test_tasks_name_no_variant() -> None:
    text = (ROOT / "lora_lightning/tasks/base.py").read_text()
    assert not re.search("adalora|eva(?!l)|loftq|lora-?fa|pissa|olora|dora", text, re.IGNORECASE)
    assert len(text.splitlines()) < 300
