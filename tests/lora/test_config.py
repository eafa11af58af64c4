"""Settings that cannot be are one sentence: what was wrong, what is allowed."""

from typing import Any

import pytest
from transformers import BertConfig, GPT2Config

from lora_lightning.backbones import check_adapter_settings
from lora_lightning.backbones.causal_language_modeling import check_causal_lm_settings
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.combinations import check_lora_and_quantization
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.targets import find_targets
from lora_lightning.lora.variants.adalora import AdaLoraSettings
from lora_lightning.lora.variants.eva import EvaSettings
from lora_lightning.tasks import (
    CausalLanguageModelingTask,
    OptimizationSettings,
    QuestionAnsweringTask,
    SequenceClassificationTask,
)
from lora_lightning.tasks.hyperparameters import hyperparameter_conflicts, with_later_options
from tests.conftest import TinyClassifier

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pisa"}, r"init_lora_weights is 'pisa'.*did you mean 'pissa'"),
        ({"init_lora_weights": "pissa_niter_0"}, "init_lora_weights is 'pissa_niter_0'"),
        ({"init_lora_weights": False}, "false, which starts at a random update"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "needs even ranks, but r is 3"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": {"query": 5}}, "needs even ranks, but r is 5"),
        ({"eva_config": {"rho": 2.0}}, "init_lora_weights is not eva"),
        ({"rank_pattern": {"query": 0}}, "rank_pattern: query is 0"),
        ({"alpha_pattern": {"query": 0.0}}, "alpha_pattern: query is 0.0, but it must be above 0"),
        ({"alpha_pattern": {"query": float("nan")}}, "alpha_pattern: query is nan, but it must be above 0, and finite"),
        ({"alpha_pattern": {"query": float("inf")}}, "alpha_pattern: query is inf"),
        ({"rank_pattern": {"qu(ery": 2}}, r"'qu\(ery' is not a regular expression"),
        ({"rank_pattern": {}}, "rank_pattern is empty"),
        ({"layers_to_transform": []}, "layers_to_transform is empty"),
        ({"trainable_token_indices": [4, 5, 5]}, "trainable_token_indices has 5 2 times; give each token once"),
        ({"layers_pattern": "layer"}, "layers_to_transform is not set"),
        ({"adalora": {}, "r": 4}, "leave r at 8"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LoraSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_r": 12}, "target_r 12 and init_r 12"),
        ({"target_r": 0}, "target_r 0"),
        ({"deltaT": 0}, "deltaT is 0"),
        ({"tinit": -1}, "tinit is -1"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"orth_reg_weight": -0.5}, "orth_reg_weight is -0.5"),
        ({"orth_reg_weight": float("nan")}, "orth_reg_weight is nan, but it must be at least 0, and finite"),
        ({"orth_reg_weight": float("inf")}, "orth_reg_weight is inf"),
    ],
)
def test_wrong_budgets(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AdaLoraSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.5}, "rho is 0.5"),
        ({"rho": float("nan")}, "rho is nan, but it must be at least 1, and finite"),
        ({"rho": float("inf")}, "rho is inf"),
        ({"tau": 1.5}, "tau is 1.5"),
        ({"tau": float("nan")}, "tau is nan"),
    ],
)
def test_wrong_eva(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EvaSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers_to_transform": [2]}, "layers_to_transform has 2, but the layers with adapted modules are 0 to 1"),
        ({"layers_to_transform": [0], "layers_pattern": "layr"}, r"inside 'layr'; did you mean 'layer'"),
        ({"rank_pattern": {"querry": 4}}, r"rank_pattern: 'querry' matches no adapted module; did you mean 'query'"),
        ({"alpha_pattern": {"classifier": 4.0}}, "alpha_pattern: 'classifier' matches no adapted module"),
        (
            {"rank_pattern": {"query": 4, "layer.1.attention.self.query": 6}},
            r"rank_pattern: 'layer.1.attention.self.query' never applies, .* and 'query' comes before it and",
        ),
        ({"alpha_pattern": {"quer[xy]": 4.0, "query": 6.0}}, "alpha_pattern: 'query' never applies"),
        ({"trainable_token_indices": [50]}, "has 50, but the model embeds tokens 0 to 49"),
        ({"trainable_token_indices": [3], "modules_to_save": ["word_embeddings"]}, "leave one of the two out"),
        ({"init_lora_weights": "pissa", "r": 33}, r"r = 33 is above the smaller side of .* \(32\)"),
        ({"init_lora_weights": "eva", "r": 17}, r"r \* rho = 34 directions are more than the 32 inputs"),
    ],
)
def test_settings_that_do_not_fit_the_architecture(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_adapter_settings(BertConfig(**TINY), LoraSettings(**settings))


def test_a_pattern_counts_before_a_wider_one() -> None:
    settings = LoraSettings(rank_pattern={"layer.1.attention.self.query": 6, "query": 4})
    check_adapter_settings(BertConfig(**TINY), settings)


def test_olora_on_transposed_weights_is_refused() -> None:
    config = GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=50)
    with pytest.raises(ConfigurationError, match="olora, which PEFT computes wrongly for the transposed weight"):
        check_causal_lm_settings(config, LoraSettings(init_lora_weights="olora"))


@pytest.mark.parametrize(
    ("layers", "pattern", "numbers"), [([1], None, {1}), ([0, 1], "layer", {0, 1}), (None, None, {0, 1})]
)
def test_only_the_chosen_layers_are_adapted(
    tiny_classifier: TinyClassifier, layers: list[int] | None, pattern: str | None, numbers: set[int]
) -> None:
    settings = LoraSettings(layers_to_transform=layers, layers_pattern=pattern)
    loaded = tiny_classifier("bert")
    names = find_targets(loaded.model, settings, exclude=loaded.lacked).modules
    assert {int(name.split(".layer.")[1].split(".")[0]) for name in names} == numbers
    assert len(names) == 6 * len(numbers)


@pytest.mark.parametrize(
    ("settings", "bits", "refused"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, 4, True),
        ({"init_lora_weights": "olora"}, 8, True),
        ({"init_lora_weights": "orthogonal"}, 4, True),
        ({"use_dora": True}, 8, True),
        ({"use_dora": True}, 4, False),
        ({"init_lora_weights": "eva"}, 4, False),
        ({"adalora": {}}, 8, False),
        ({}, 8, False),
    ],
)
def test_what_a_quantized_base_refuses(settings: dict[str, Any], bits: int, refused: bool) -> None:
    made = LoraSettings(**settings)
    if not refused:
        check_lora_and_quantization(made, QuantizationSettings(bits=bits))
        return
    with pytest.raises(ConfigurationError, match=f"but the base is quantized to {bits} bits"):
        check_lora_and_quantization(made, QuantizationSettings(bits=bits))


@pytest.mark.parametrize("task_class", [SequenceClassificationTask, QuestionAnsweringTask])
def test_head_only_needs_no_adapter_and_takes_no_variant_of_one(task_class: Any) -> None:
    with pytest.raises(ConfigurationError, match="write `lora: null`"):
        task_class("any", freeze_backbone=True)
    for variant in ({"lorafa": True}, {"loraplus_lr_ratio": 16}):
        with pytest.raises(ConfigurationError, match=r"is a variant of LoRA, but model\.lora is null"):
            task_class("any", lora=None, optimization=OptimizationSettings(**variant))


def test_checkpoints_from_before_an_option_had_its_default() -> None:
    old = {
        "backbone": "a",
        "lora": {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "target_modules": "all-linear", "bias": "none"},
        "optimization": {"learning_rate": 1e-3, "weight_decay": 0.01, "schedule": "linear", "warmup_share": 0.06},
    }
    new = dict(SequenceClassificationTask("a").hparams)
    asked = {name: new[name] for name in ("backbone", "lora", "optimization", "freeze_backbone")}
    assert hyperparameter_conflicts(old, asked, structural_only=False) == []
    asked["lora"] = {**asked["lora"], "use_dora": True}
    assert hyperparameter_conflicts(old, asked, structural_only=True) == [
        "lora.use_dora is True here and False in the checkpoint"
    ]
    frozen = {**asked, "lora": None, "freeze_backbone": True}
    assert "freeze_backbone is True here and False in the checkpoint" in hyperparameter_conflicts(
        old, frozen, structural_only=True
    )


@pytest.mark.parametrize("task_class", [SequenceClassificationTask, QuestionAnsweringTask, CausalLanguageModelingTask])
def test_each_option_that_a_checkpoint_lacks_had_its_default(task_class: Any) -> None:
    asked = dict(task_class("a").hparams)
    for name in asked.keys() - {"backbone"}:
        old = with_later_options({key: value for key, value in asked.items() if key != name}, asked, task_class)
        assert hyperparameter_conflicts(old, asked, structural_only=False) == [], name
    old = with_later_options({"backbone": "a"}, asked, task_class)
    assert hyperparameter_conflicts(old, {**asked, "torch_compile": True}, structural_only=False) == [
        "torch_compile is True here and False in the checkpoint"
    ]


def test_settings_survive_a_checkpoint() -> None:
    settings = LoraSettings(adalora=AdaLoraSettings(target_r=2), rank_pattern=None)
    task = SequenceClassificationTask("a", lora=settings)
    again = SequenceClassificationTask("a", lora=dict(task.hparams)["lora"])
    assert again.lora == settings
    assert isinstance(again.lora.adalora, AdaLoraSettings)
