"""What trains after adapters are attached, and that an adapted layer computes y = W0 x + (alpha / r) B A x."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from lora_lightning.backbones import LoadedBackbone
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.injection import (
    attach_lora,
    modules_trained_in_full,
    newly_initialized_modules,
    trainable_parameter_names,
)
from lora_lightning.lora.variants.adalora import AdaLoraSettings
from tests.conftest import TinyClassifier
from tests.reference import assert_layers_compute_the_formula, move_from_zero
from tests.tiny_models import FAMILIES, HIDDEN

LACKED = {
    "albert": ["albert.pooler", "classifier"],
    "bert": ["bert.pooler", "classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "electra": ["classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
    "modernbert": ["classifier"],
    "opt": ["score"],
    "qwen2": ["score"],
    "roberta": ["classifier"],
}


def attach(loaded: LoadedBackbone, **settings: object) -> PeftModel:
    return attach_lora(loaded.model, LoraSettings(**settings), loaded.lacked, "SEQ_CLS")  # type: ignore[arg-type]


def logits_of(model: nn.Module) -> torch.Tensor:
    batch = {"input_ids": torch.arange(5, 25).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.int64)}
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_without_pretrained_weights_are_named(tiny_classifier: TinyClassifier, family: str) -> None:
    assert tiny_classifier(family).lacked == LACKED[family]


def test_only_modules_that_lack_every_parameter_are_named() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "b": nn.Linear(2, 2), "c": nn.ReLU()})
    assert newly_initialized_modules(model, ["a.0.weight", "a.0.bias", "a.1.weight", "b.weight", "b.bias"]) == [
        "a.0",
        "b",
    ]
    assert newly_initialized_modules(model, ["a.0.weight", "a.0.bias", "a.1.weight", "a.1.bias"]) == ["a"]
    assert newly_initialized_modules(model, []) == []


@pytest.mark.parametrize("target_modules", ["attention-qv", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_lacked_modules_train_and_nothing_else(
    tiny_classifier: TinyClassifier, family: str, target_modules: str
) -> None:
    model = attach(tiny_classifier(family), target_modules=target_modules, r=2)
    trained = trainable_parameter_names(model)
    whole = [name for name in trained if "lora_" not in name]
    lacked = {name for name, _ in model.named_parameters() if ".modules_to_save." in name}
    assert any("lora_A" in name for name in trained)
    assert set(whole) == lacked
    assert {name.removeprefix("base_model.model.").split(".modules_to_save")[0] for name in whole} == set(
        LACKED[family]
    )
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters()} - set(trained)
    assert not [name for name in frozen if "lora_" in name]
    assert all(parameter.dtype == torch.float32 for _, parameter in model.named_parameters())


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "distilbert", "llama", "roberta"])
def test_head_found_in_the_checkpoint_trains_whole_and_gets_no_adapter(
    tiny_classifier: TinyClassifier, family: str
) -> None:
    loaded = tiny_classifier(family)
    model = attach_lora(loaded.model, LoraSettings(r=2), [], "SEQ_CLS")  # as if nothing had been lacking
    head = "score" if family == "llama" else "classifier"
    names = [name for name in trainable_parameter_names(model) if f"model.{head}." in name]
    assert names
    assert not [name for name in names if "lora_" in name]


@pytest.mark.parametrize(
    ("family", "wanted"), [("electra", "embeddings_project"), ("bert", "pooler"), ("gpt2", "wte"), ("llama", "norm")]
)
def test_modules_to_save_train_in_full(tiny_classifier: TinyClassifier, family: str, wanted: str) -> None:
    model = attach(tiny_classifier(family), modules_to_save=[wanted], r=2)
    named = [name for name in trainable_parameter_names(model) if f".{wanted}." in name]
    assert named
    assert all(".modules_to_save.default." in name for name in named)


def test_module_inside_another_trained_module_is_named_once(tiny_classifier: TinyClassifier) -> None:
    loaded = tiny_classifier("roberta")
    settings = LoraSettings(modules_to_save=["out_proj", "layer.1"])
    assert modules_trained_in_full(loaded.model, settings, loaded.lacked) == ["classifier", "roberta.encoder.layer.1"]


def test_unknown_module_to_save_is_an_error_that_suggests_the_nearest(tiny_classifier: TinyClassifier) -> None:
    with pytest.raises(ConfigurationError, match=r"modules_to_save.*'poolr'; did you mean.*'pooler'"):
        attach(tiny_classifier("bert"), modules_to_save=["poolr"])


def test_saving_everything_leaves_no_target(tiny_classifier: TinyClassifier) -> None:
    with pytest.raises(ConfigurationError, match="the model has no linear layer; shorten"):
        attach(tiny_classifier("bert"), modules_to_save=["bert"])


@pytest.mark.parametrize(("r", "warned"), [(HIDDEN, 0), (HIDDEN + 1, 1)])
def test_rank_above_a_layers_smaller_side_warns_once(tiny_classifier: TinyClassifier, r: int, warned: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach(tiny_classifier("bert"), r=r)
    assert len([w for w in caught if f"model.lora.r is {r}, above the smaller side" in str(w.message)]) == warned


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r": 10**9}, "model.lora.r is 1000000000"),
        ({"rank_pattern": {"query": 10**9}}, "model.lora.rank_pattern.query is 1000000000"),
        ({"adalora": AdaLoraSettings(init_r=10**9)}, "model.lora.adalora.init_r is 1000000000"),
    ],
)
def test_rank_above_every_layers_larger_side_is_refused(
    tiny_classifier: TinyClassifier, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{named}, but no layer to adapt has a side longer than"):
        attach(tiny_classifier("bert"), **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_starts_as_the_base_exactly(tiny_classifier: TinyClassifier, family: str) -> None:
    loaded = tiny_classifier(family)
    before = logits_of(loaded.model)
    model = attach(loaded, r=4)
    assert torch.equal(logits_of(model), before)
    assert not torch.equal(before[0], before[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_family_computes_the_formula(tiny_classifier: TinyClassifier, family: str) -> None:
    model = attach(tiny_classifier(family), r=3, lora_alpha=5.0).eval()
    move_from_zero(model)
    assert assert_layers_compute_the_formula(model, lambda: logits_of(model), 1e-5) >= 8


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    ("family", "layer"),
    [("bert", "attention.self.query"), ("bert", "intermediate.dense"), ("gpt2", "attn.c_attn"), ("gpt2", "mlp.c_proj")],
)
def test_adapted_layer_computes_the_formula_in_numpy(
    tiny_classifier: TinyClassifier, family: str, layer: str, use_rslora: bool
) -> None:
    r, alpha = 3, 5.0
    model = attach(tiny_classifier(family), r=r, lora_alpha=alpha, use_rslora=use_rslora).double().eval()
    adapted = next(module for name, module in model.named_modules() if name.endswith(layer))
    assert isinstance(adapted, LoraLayer)
    generator = np.random.default_rng(0)
    base = adapted.get_base_layer()
    weight = base.weight.detach().numpy()
    weight = weight if family == "gpt2" else weight.T  # Conv1D keeps (in, out)
    a = generator.normal(size=(r, weight.shape[0]))
    b = generator.normal(size=(weight.shape[1], r))
    adapted.lora_A["default"].weight.data = torch.from_numpy(a)
    adapted.lora_B["default"].weight.data = torch.from_numpy(b)
    x = generator.normal(size=(2, 5, weight.shape[0]))
    scaling = alpha / np.sqrt(r) if use_rslora else alpha / r
    expected = x @ weight + base.bias.detach().numpy() + scaling * (x @ a.T @ b.T)
    with torch.no_grad():
        y = adapted(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("bias", "expected"),
    [("none", set()), ("lora_only", {"query", "value"}), ("all", {"query", "key", "value", "dense", "LayerNorm"})],
)
def test_bias_setting_decides_which_biases_train(
    tiny_classifier: TinyClassifier, bias: str, expected: set[str]
) -> None:
    model = attach(tiny_classifier("bert"), bias=bias, target_modules="attention-qv")
    names = [
        name for name in trainable_parameter_names(model) if name.endswith(".bias") and ".modules_to_save." not in name
    ]
    assert {name.removesuffix(".bias").removesuffix(".base_layer").rsplit(".", 1)[-1] for name in names} == expected


@pytest.mark.parametrize(
    ("config", "lacked"),
    [(RobertaConfig(), ["classifier"]), (GPT2Config(), ["score"])],
    ids=["roberta-base", "gpt2-small"],
)
def test_known_parameter_counts_of_real_sizes(config: PretrainedConfig, lacked: list[str]) -> None:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        adapted = attach_lora(model, LoraSettings(r=8, target_modules="attention-qv"), lacked, "SEQ_CLS")
    sizes = {name: parameter.numel() for name, parameter in adapted.named_parameters()}
    assert sum(size for name, size in sizes.items() if "lora_" in name) == 294_912
    if config.model_type == "gpt2":  # 294,912 of 124,734,720 trains, beside the head
        assert sum(size for name, size in sizes.items() if "score" not in name) == 124_734_720
