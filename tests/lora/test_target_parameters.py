"""Adapters on parameters that hold all experts of a layer: right in every number, or refused in a sentence."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.mixtures import PAGE, build, row
from lora_lightning.backbones.quantization import check_quantization
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.combinations import check_combinations, check_sharding
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.delta import adapted_layers, adapter_deltas, adapter_factors, pretrained_weight
from lora_lightning.lora.families import FAMILIES
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.merging import merged_adapters, merged_weight, without_adapters
from lora_lightning.lora.target_modules import resolve_target_modules
from lora_lightning.lora.target_parameters import parameters_to_suggest
from lora_lightning.lora.truncation import truncated_adapters
from lora_lightning.tasks import OptimizationSettings
from tests.family_trials.tiny_architectures import tiny_config
from tests.tiny_families import causal_model

# GPT-OSS keeps its experts as (experts, in_features, out_features), the others as (experts, out_features, in_features).
MIXTURES = ("qwen3_moe", "gpt_oss")
TOKENS = torch.arange(2, 20).view(2, 9)
R, EXPERTS = 3, 4


def settings(model: nn.Module, **changes: Any) -> LoraSettings:
    """Adapters on everything that a mixture of experts has."""
    names = parameters_to_suggest(model, ["lm_head"])
    return LoraSettings(**{"r": R, "lora_dropout": 0.0, "target_parameters": names, **changes})


def adapted(model: PreTrainedModel, **changes: Any) -> PeftModel:
    """The model with adapters that have learnt something."""
    network = attach_lora(model, settings(model, **changes), [], "CAUSAL_LM", ["lm_head"]).eval()
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.2)
    return network


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(TOKENS).logits  # type: ignore[no-any-return]


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Relative to max(1, largest |logit|)."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("family", MIXTURES)
def test_every_expert_has_an_update_of_its_own(family: str) -> None:
    """Against PEFT's layout, written out in NumPy: A by experts, B by ranks."""
    network = adapted(causal_model(family))
    name, layer = next((name, layer) for name, layer in adapted_layers(network).items() if name.endswith("down_proj"))
    deltas = [delta for delta in adapter_deltas(network) if delta.module == name]
    assert [delta.name for delta in deltas] == [f"{name}[{expert}]" for expert in range(EXPERTS)]
    a, b = (factor.detach().double().numpy() for factor in adapter_factors(layer))
    for expert, delta in enumerate(deltas):
        own = 16.0 / R * b[:, expert::EXPERTS] @ a[expert * R : (expert + 1) * R]
        np.testing.assert_allclose(delta.dense().numpy(), own, atol=1e-6)
        assert delta.r == R
    weight = pretrained_weight(layer)
    parameters = dict(network.get_base_model().named_parameters())
    stored = parameters[f"{name.rpartition('.')[0]}.base_layer.base_layer.down_proj"]
    assert torch.equal(weight, stored.mT if family == "gpt_oss" else stored)
    dense = torch.stack([delta.dense() for delta in deltas])
    torch.testing.assert_close(merged_weight(name, layer, weight), weight + dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_merged_truncated_and_without_adapters(family: str) -> None:
    model = causal_model(family)
    pretrained = logits(model)
    network = adapted(model)
    trained = logits(network)
    assert largest_difference(trained, pretrained) > 0.01
    with merged_adapters(network, "base"):
        assert largest_difference(logits(network), trained) <= 1e-5
    assert torch.equal(logits(network), trained)
    with without_adapters(network):
        assert torch.equal(logits(network), pretrained)
    with truncated_adapters(network, 1):
        ranks = [int(torch.linalg.matrix_rank(delta.dense(), rtol=1e-4)) for delta in adapter_deltas(network)]
    assert set(ranks) == {1}
    assert torch.equal(logits(network), trained)


@pytest.mark.parametrize("family", MIXTURES)
def test_plain_peft_computes_the_same_from_the_exported_folder(family: str, tmp_path: Path) -> None:
    causal_model(family).save_pretrained(tmp_path / "base")
    network = adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32))
    network.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert largest_difference(logits(plain), logits(network)) <= 1e-5
    merged = plain.merge_and_unload()
    assert largest_difference(logits(merged), logits(network)) <= 1e-5
    for name, layer in adapted_layers(network).items():
        if name.endswith("gate_up_proj"):
            own = merged_weight(name, layer, pretrained_weight(layer))
            found = merged.get_parameter(name)
            torch.testing.assert_close(found.mT if family == "gpt_oss" else found, own, atol=1e-6, rtol=0)


def test_parameters_alone_and_modules_left_out() -> None:
    network = adapted(causal_model("qwen3_moe"), target_modules=[])
    assert {name.rpartition(".")[2] for name in adapted_layers(network)} == {"gate_up_proj", "down_proj"}
    network = adapted(causal_model("qwen3_moe"), exclude_modules=["layers.0.mlp.experts", "k_proj"])
    names = set(adapted_layers(network))
    assert "model.layers.1.mlp.experts.down_proj" in names
    assert "model.layers.1.self_attn.q_proj" in names
    assert not [name for name in names if "layers.0.mlp.experts" in name or name.endswith("k_proj")]


def test_layers_and_patterns_hold_for_parameters_too() -> None:
    network = adapted(causal_model("qwen3_moe"), layers_to_transform=[1], rank_pattern={"experts.down_proj": 5})
    assert all(name.startswith("model.layers.1.") for name in adapted_layers(network))
    ranks = {delta.module.rpartition(".")[2]: delta.r for delta in adapter_deltas(network)}
    assert ranks["down_proj"] == 5
    assert ranks["gate_up_proj"] == R


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_dropout": 0.05}, r"^model\.lora\.lora_dropout is 0\.05, but with target_parameters it must be 0"),
        ({"use_dora": True}, r"target_parameters and model\.lora\.use_dora cannot be combined"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights is pissa, but with target_parameters it must be true or"),
        ({"init_lora_weights": "orthogonal", "r": 2}, "init_lora_weights is orthogonal"),
        ({"adalora": {"init_r": 4, "target_r": 2}}, r"model\.lora\.adalora"),
        ({"target_parameters": []}, r"model\.lora\.target_parameters is empty"),
        ({"exclude_modules": []}, r"model\.lora\.exclude_modules is empty"),
    ],
    ids=str,
)
def test_what_peft_cannot_do_with_parameters_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        LoraSettings(**{"lora_dropout": 0.0, "target_parameters": ["experts.down_proj"], **changes})


def test_lora_fa_and_sharding_are_refused() -> None:
    lora = LoraSettings(lora_dropout=0.0, target_parameters=["experts.down_proj"])
    with pytest.raises(
        ConfigurationError, match=r"target_parameters and model\.optimization\.lorafa cannot be combined"
    ):
        check_combinations(lora, OptimizationSettings(lorafa=True))
    with pytest.raises(ConfigurationError, match="target_parameters does not work with a strategy that shards"):
        check_sharding(lora, OptimizationSettings())


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("qwen3_moe", {"target_parameters": ["experts.dwon_proj"]}, "'experts.dwon_proj' .* did you mean"),
        (
            "qwen3_moe",
            {"target_parameters": ["q_proj.weight"]},
            "weight of a linear layer; name the layer in .*'q_proj'",
        ),
        (
            "llama",
            {"target_parameters": ["experts.down_proj"]},
            "all weights of this model .* are those of linear layers",
        ),
        ("mamba", {"target_parameters": ["out_proj.weight"]}, "weight of a linear layer"),
        (
            "qwen3_moe",
            {"exclude_modules": ["q_porj"]},
            "no module that would get an adapter is named 'q_porj'; did you",
        ),
        ("qwen3_moe", {"exclude_modules": ["experts"], "target_modules": []}, "leaves no module to adapt; shorten it"),
        ("qwen3_moe", {"r": 5000}, "r is 5000, but no layer to adapt has a side longer than"),
    ],
    ids=str,
)
def test_a_name_that_does_not_fit_the_model_is_refused(family: str, changes: dict[str, Any], said: str) -> None:
    model = causal_model(family)
    lora = LoraSettings(**{"lora_dropout": 0.0, "target_parameters": ["experts.down_proj"], **changes})
    with pytest.raises(ConfigurationError, match=said):
        attach_lora(model, lora, [], "CAUSAL_LM", ["lm_head"])


def test_layers_that_peft_would_take_for_experts_are_named_as_parameters() -> None:
    """The dense layer's and the shared expert's `gate_proj` are no routed experts."""
    model = of_family("deepseek_v3")
    with pytest.raises(
        ConfigurationError, match=r"former name of .* experts; name its weight in model\.lora\.target_par"
    ):
        resolve_target_modules(model, ["gate_proj"], ["lm_head"])
    assert not [name for name in resolve_target_modules(model, "all-linear", ["lm_head"]) if "gate_proj" in name]
    lora = settings(model)
    assert "mlp.shared_experts.gate_proj.weight" in (lora.target_parameters or [])
    network = adapted(model)
    trained = logits(network)
    with merged_adapters(network, "base"):
        assert largest_difference(logits(network), trained) <= 1e-5


def test_the_warning_of_weights_without_adapter_names_the_remedy_and_is_silent_after_it() -> None:
    model = causal_model("qwen3_moe")
    names = ", ".join(parameters_to_suggest(model, ["lm_head"]))
    with pytest.warns(
        UserWarning, match=rf"\d\d % of the weights .* set target_parameters: \[{names}\] and lora_dropout: 0"
    ):
        attach_lora(model, LoraSettings(r=2), [], "CAUSAL_LM", ["lm_head"])
    model = causal_model("qwen3_moe")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(experts|target_parameters).*")  # the router's weights stay frozen
        attach_lora(model, settings(model), [], "CAUSAL_LM", ["lm_head"])


def of_family(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32).eval()
    return model


def test_a_parameter_and_layers_inside_its_module_keep_their_names_and_merge() -> None:
    """PEFT wraps the mixer that holds A_log, and in_proj is inside it."""
    model = of_family("mamba")
    pretrained = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    network = adapted(model, target_parameters=["mixer.A_log"])
    names = set(adapted_layers(network))
    assert {"backbone.layers.0.mixer.A_log", "backbone.layers.0.mixer.in_proj"} <= names <= pretrained
    trained = logits(network)
    with merged_adapters(network, "base"):
        assert largest_difference(logits(network), trained) <= 1e-5


@pytest.mark.parametrize(
    ("family", "names", "said"),
    [
        ("recurrent_gemma", ["rg_lru.input_gate_weight"], "sets attributes of .*rg_lru from outside"),
        ("xlnet", ["transformer.mask_emb", "rel_attn.q"], "and one of a module inside it; leave one of the two out"),
    ],
)
def test_a_module_that_peft_cannot_wrap_is_refused(family: str, names: list[str], said: str) -> None:
    lora = LoraSettings(lora_dropout=0.0, target_parameters=names)
    with pytest.raises(ConfigurationError, match=said):
        attach_lora(of_family(family), lora, [], "CAUSAL_LM", ["lm_head"])


def test_a_single_transposed_expert_is_refused() -> None:
    config = tiny_config("gpt_oss")
    config.num_local_experts, config.num_experts_per_tok = 1, 1
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(ConfigurationError, match=r"holds a single expert .* its update transposed; leave it out"):
        attach_lora(model, settings(model), [], "CAUSAL_LM", ["lm_head"])


@pytest.mark.parametrize("family", ["recurrent_gemma", "xlnet", "rwkv", "llama", "mamba"])
def test_what_is_no_expert_is_not_called_one(family: str) -> None:
    model = causal_model("rwkv") if family == "rwkv" else of_family(family)
    assert parameters_to_suggest(model, ["lm_head", "lm_loss", "head"]) == []


def test_what_the_user_excludes_is_no_news(recwarn: pytest.WarningsRecorder) -> None:
    model = causal_model("qwen3_moe")
    attach_lora(model, settings(model, exclude_modules=["mlp.experts"]), [], "CAUSAL_LM", ["lm_head"])
    assert not [warning for warning in recwarn if "mlp.experts" in str(warning.message)]


def test_all_parameters_that_quantization_would_pack_are_named() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("deepseek_v3"))
    names = [f"model.layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
    quantization = QuantizationSettings()
    with pytest.raises(ConfigurationError, match=r"packs; add gate_proj, up_proj, down_proj to model\.quant"):
        check_quantization(model, quantization, [], names)
    skipping = QuantizationSettings(skip_modules=["gate_proj", "up_proj", "down_proj"])
    check_quantization(model, skipping, [], names)


def test_the_page_of_mixtures_has_a_row_for_every_family_with_experts() -> None:
    found = set()
    for family in FAMILIES:
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(tiny_config(family))
        except ValueError:  # no language model
            continue
        if parameters_to_suggest(model, ["lm_head"]):
            found.add(family)
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert {line.split()[1] for line in lines if line.startswith("| ") and " B | " in line} == found


def test_the_page_of_mixtures_has_the_shares_of_today() -> None:
    """One family of it, for a page takes minutes."""
    model = build("olmoe")
    assert model is not None
    assert f"{row('olmoe', model, parameters_to_suggest(model, ['lm_head']))}\n" in PAGE.read_text(encoding="utf-8")
