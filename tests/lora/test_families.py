"""Every family of the table: its presets reach exactly the attention and the MLP of transformers' own architecture."""

import re
import warnings

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.families import NOT_APPLICABLE, PAGE, PASSED, REFUSED, page, read_results
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.families import FAMILIES
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.target_modules import PRESETS, layers_not_adapted, linear_layers, resolve_target_modules
from tests.family_trials.tiny_architectures import tiny_config
from tests.tiny_families import causal_model

UNTRAINABLE = {"ibert"}  # its linear layers are quantized to integers; every cell is refused
# Linear layers that are neither attention nor MLP, by the end of their names, beside heads: `all-linear` has them.
OTHERS = {
    "albert": {"embedding_hidden_mapping_in"},
    "bamba": {"in_proj", "out_proj"},  # of its Mamba layers
    "big_bird": {"pooler"},
    "convbert": {"conv_kernel_layer", "conv_out_layer"},
    "falcon_h1": {"in_proj", "out_proj"},
    "granitemoehybrid": {"in_proj", "out_proj"},
    "jamba": {"in_proj", "x_proj", "dt_proj", "out_proj"},
    "lfm2": {"in_proj"},  # of its convolutions, whose output projection has the same name as that of the attention
    "llama4_text": {"router"},
    "phimoe": {"router"},
    "qwen2_moe": {"shared_expert_gate"},
    "qwen3_5_moe_text": {"shared_expert_gate"},
    "qwen3_next": {"shared_expert_gate"},
    "recurrent_gemma": {"linear_x", "linear_y", "linear_out"},
    "rembert": {"embedding_hidden_mapping_in"},
    "xmod": {"dense1", "dense2"},  # adapters of its languages
}


def architecture(family: str) -> nn.Module:
    """The family with few layers, one of each kind, without storage."""
    config = tiny_config(family)
    with torch.device("meta"):
        for auto_class in (AutoModelForSequenceClassification, AutoModelForCausalLM, AutoModel):
            if type(config) in auto_class._model_mapping:
                return auto_class.from_config(config)  # type: ignore[no-any-return]
    pytest.fail(f"transformers has no model of {family}")


def endings(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("family", [name for name, found in FAMILIES.items() if found.query_value])
def test_presets_reach_all_of_attention_and_mlp(family: str) -> None:
    model = architecture(family)
    parts = {preset: resolve_target_modules(model, preset, exclude=[]) for preset in PRESETS[:-1]}
    known = FAMILIES[family]
    assert set(parts["attention-qv"]) <= set(parts["attention"]) <= set(parts["attention-mlp"])
    assert (len(parts["attention"]) > len(parts["attention-qv"])) is bool(known.attention_rest)
    body = [name for name in linear_layers(model) if re.search(r"\.\d+\.", name)]
    left = set(body) - set(parts["attention-mlp"])
    refused = layers_not_adapted(model, left)
    expected = (OTHERS.get(family, set()) & endings(body)) - endings(list(refused))
    assert endings(sorted(left - set(refused))) == expected, left


def test_an_unknown_architecture_is_refused_with_the_names_of_its_layers() -> None:
    model = causal_model("rwkv")
    with pytest.raises(ConfigurationError, match=r"'rwkv', whose linear layers end in .*key, .*value; use"):
        resolve_target_modules(model, "attention", exclude=["head"])


@pytest.mark.parametrize(
    ("family", "part"), [("qwen3_moe", "mlp.experts"), ("gpt_oss", "experts"), ("mamba", "x_proj")]
)
def test_weights_that_a_preset_cannot_reach_are_counted(family: str, part: str) -> None:
    with pytest.warns(UserWarning, match=r"all-linear, but \d+ % of the weights outside") as caught:
        attach_lora(causal_model(family), LoraSettings(r=2), [], "CAUSAL_LM", ["lm_head"])
    (said,) = [str(warning.message) for warning in caught if "get no adapter" in str(warning.message)]
    assert part in said


def test_the_share_is_that_of_the_weights() -> None:
    model = causal_model("qwen3_moe")
    experts = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    gates = sum(p.numel() for name, p in model.named_parameters() if name.endswith("mlp.gate.weight"))
    linear = sum(layer.weight.numel() for layer in linear_layers(model, ["lm_head"]).values())  # type: ignore[union-attr]
    share = (experts + gates) / (experts + gates + linear)
    with pytest.warns(UserWarning, match=f"{100 * share:.0f} % of the weights"):
        attach_lora(model, LoraSettings(r=2), [], "CAUSAL_LM", ["lm_head"])


@pytest.mark.parametrize("family", ["llama", "bloom, alibi", "gpt_neo, local attention"])
def test_nothing_is_said_where_nothing_is_left_out(family: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*get no adapter.*")
        attach_lora(causal_model(family), LoraSettings(r=2), [], "CAUSAL_LM", ["lm_head"])


def test_the_page_of_families_is_written_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read_results()), "run python benchmarks/families.py"
    count = sum(bool(family.query_value) for family in FAMILIES.values())
    assert f"[{count} families](docs/families.md)" in (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")


def test_no_cell_of_the_families_that_were_tried_is_a_fault() -> None:
    results = read_results()
    assert results.keys() == FAMILIES.keys()
    cells = {(name, *where): text for name, found in results.items() for where, text in _cells(found)}
    wanted = (PASSED, REFUSED, NOT_APPLICABLE)
    assert not {where: text for where, text in cells.items() if not text.startswith(wanted)}
    passed = {name for (name, _, setting), text in cells.items() if text == PASSED and setting == "all-linear"}
    assert passed == results.keys() - UNTRAINABLE


def _cells(found: dict[str, dict[str, str]]) -> list[tuple[tuple[str, str], str]]:
    return [((task, setting), text) for task, cells in found.items() for setting, text in cells.items()]
