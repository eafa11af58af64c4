"""Presets and names resolve to exactly the layers they promise, on every architecture."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, DebertaV2Config, DebertaV2ForSequenceClassification

from lora_lightning.backbones.quantization import modules_left
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import QuantizationSettings
from lora_lightning.lora.target_modules import (
    PRESETS,
    linear_layers,
    resolve_target_modules,
    weights_outside_linear_layers,
)
from lora_lightning.lora.uncalled_layers import is_multiplied_directly
from tests.conftest import TinyClassifier
from tests.family_trials.tiny_architectures import tiny_config
from tests.tiny_families import causal_model
from tests.tiny_models import FAMILIES

# Written out by hand from transformers' source, layer by layer, not from the table under test: family ->
# (query and value, other attention layers, MLP, other linear layers of the pretrained model).
BERT = ("attention.self.query attention.self.value", "attention.self.key attention.output.dense")
BERT_MLP = "intermediate.dense output.dense"
LLAMA = ("self_attn.q_proj self_attn.v_proj", "self_attn.k_proj self_attn.o_proj")
LLAMA_MLP = "mlp.gate_proj mlp.up_proj mlp.down_proj"
LAYERS = {
    "albert": (
        "albert.encoder.albert_layer_groups.0.albert_layers.{}",
        1,
        ("attention.query attention.value", "attention.key attention.dense", "ffn ffn_output"),
        ["albert.encoder.embedding_hidden_mapping_in"],
    ),
    "bert": ("bert.encoder.layer.{}", 2, (*BERT, BERT_MLP), []),
    "deberta-v2": (
        "deberta.encoder.layer.{}",
        2,
        (
            "attention.self.query_proj attention.self.value_proj",
            "attention.self.key_proj attention.output.dense",
            BERT_MLP,
        ),
        [],
    ),
    "distilbert": (
        "distilbert.transformer.layer.{}",
        2,
        ("attention.q_lin attention.v_lin", "attention.k_lin attention.out_lin", "ffn.lin1 ffn.lin2"),
        [],
    ),
    "electra": ("electra.encoder.layer.{}", 2, (*BERT, BERT_MLP), ["electra.embeddings_project"]),
    "gpt2": ("transformer.h.{}", 2, ("attn.c_attn", "attn.c_proj", "mlp.c_fc mlp.c_proj"), []),
    "llama": ("model.layers.{}", 2, (*LLAMA, LLAMA_MLP), []),
    "modernbert": ("model.layers.{}", 2, ("attn.Wqkv", "attn.Wo", "mlp.Wi mlp.Wo"), ["head.dense"]),
    "opt": (
        "model.decoder.layers.{}",
        2,
        ("self_attn.q_proj self_attn.v_proj", "self_attn.k_proj self_attn.out_proj", "fc1 fc2"),
        [],
    ),
    "qwen2": ("model.layers.{}", 2, (*LLAMA, LLAMA_MLP), []),
    "roberta": ("roberta.encoder.layer.{}", 2, (*BERT, BERT_MLP), []),
}
HEADS = ("classifier", "score", "pooler", "pre_classifier")


def expected_names(family: str, preset: str) -> set[str]:
    prefix, layers, groups, others = LAYERS[family]
    taken = {"attention-qv": 1, "attention": 2, "attention-mlp": 3, "all-linear": 3}[preset]
    suffixes = " ".join(groups[:taken]).split()
    names = {f"{prefix.format(layer)}.{suffix}" for layer in range(layers) for suffix in suffixes}
    return names | set(others if preset == "all-linear" else [])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_preset_names_exactly_the_layers_it_promises(tiny_classifier: TinyClassifier, family: str, preset: str) -> None:
    loaded = tiny_classifier(family)
    names = resolve_target_modules(loaded.model, preset, exclude=loaded.lacked)
    assert set(names) == expected_names(family, preset)
    assert len(names) == len(set(names))
    assert not [name for name in names if set(name.split(".")) & set(HEADS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_leaves_out_no_linear_layer_of_the_base(tiny_classifier: TinyClassifier, family: str) -> None:
    loaded = tiny_classifier(family)
    base = loaded.model.base_model_prefix
    every = {name for name, module in loaded.model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    in_base = {name for name in every if name.startswith(f"{base}.") and "pooler" not in name}
    assert in_base
    assert in_base <= set(resolve_target_modules(loaded.model, "all-linear", exclude=loaded.lacked))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["value", "query"], ["0.attention.self.query", "0.attention.self.value"]),
        (["attention.output.dense"], ["0.attention.output.dense"]),
        (["layer.*.output.dense"], ["0.output.dense"]),
        (["bert.encoder.layer.1.attention.self.key"], ["1.attention.self.key"]),
    ],
)
def test_list_of_names_is_taken_as_peft_takes_it(
    tiny_classifier: TinyClassifier, names: list[str], found: list[str]
) -> None:
    loaded = tiny_classifier("bert")
    resolved = resolve_target_modules(loaded.model, names, exclude=loaded.lacked)
    in_second = [f"1{name[1:]}" for name in found if name.startswith("0")]
    assert resolved == [f"bert.encoder.layer.{name}" for name in found + in_second]


@pytest.mark.parametrize(
    ("asked", "named"),
    [("qurey", "'query'"), (["value", "qurey"], "'query'"), ("attention_qv", "'attention-qv'")],
)
def test_unknown_name_is_an_error_that_suggests_the_nearest(
    tiny_classifier: TinyClassifier, asked: str | list[str], named: str
) -> None:
    loaded = tiny_classifier("bert")
    with pytest.raises(ConfigurationError, match=r"model\.lora\.target_modules.*did you mean.*") as error:
        resolve_target_modules(loaded.model, asked, exclude=loaded.lacked)
    assert named in str(error.value)


@pytest.mark.parametrize("name", ["classifier", "pooler"])
def test_head_is_no_target(tiny_classifier: TinyClassifier, name: str) -> None:
    loaded = tiny_classifier("bert")
    with pytest.raises(ConfigurationError, match=f"no linear layer '{name}'"):
        resolve_target_modules(loaded.model, [name], exclude=loaded.lacked)


def test_suffix_matches_whole_name_parts_only() -> None:
    model = nn.ModuleDict(
        {
            "output": nn.ModuleDict({"dense": nn.Linear(2, 2), "my_dense": nn.Linear(2, 2)}),
            "my_output": nn.ModuleDict({"dense": nn.Linear(2, 2)}),
            "outputs": nn.ModuleDict({"dense": nn.Linear(2, 2)}),
            "output-dense": nn.Linear(2, 2),
        }
    )
    assert resolve_target_modules(model, ["output.dense"], exclude=[]) == ["output.dense"]
    assert resolve_target_modules(model, ["dense"], exclude=[]) == ["output.dense", "my_output.dense", "outputs.dense"]


def test_exclusion_covers_everything_inside_and_no_namesake() -> None:
    model = nn.ModuleDict(
        {
            "head": nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))),
            "head_of_attention": nn.Linear(2, 2),
        }
    )
    assert list(linear_layers(model, ["head"])) == ["head_of_attention"]


def test_nothing_left_to_adapt_is_an_error() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2)})
    with pytest.raises(ConfigurationError, match=r"apart from body, .* no linear layer;.*lora: null"):
        resolve_target_modules(model, "all-linear", exclude=["body"])


def test_deberta_with_its_own_position_projections_keeps_them_under_all_linear() -> None:
    config = DebertaV2Config(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
    )
    with torch.device("meta"):
        model = DebertaV2ForSequenceClassification(config)
    names = resolve_target_modules(model, "all-linear", exclude=["pooler", "classifier"])
    assert {name.rsplit(".", 1)[-1] for name in names} >= {"pos_key_proj", "pos_query_proj"}


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_layers_that_mamba_never_calls_get_no_adapter(family: str) -> None:
    model = causal_model(family)
    names = resolve_target_modules(model, "all-linear", exclude=["lm_head"])
    assert {name.rsplit(".", 1)[-1] for name in names} >= {"in_proj"}
    assert not [name for name in names if name.endswith("out_proj")]
    get_peft_model(model, LoraConfig(target_modules=names))  # PEFT agrees with every one of them
    with pytest.raises(
        ConfigurationError, match=r"0\.mixer\.out_proj, but the model .* leave out_proj out, or use all-lin"
    ):
        resolve_target_modules(causal_model(family), ["in_proj", "out_proj"], exclude=["lm_head"])


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba"])
def test_layers_whose_weights_the_model_reads_directly_get_no_adapter(family: str) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32).requires_grad_(False)
    read = {name for name in linear_layers(model) if is_multiplied_directly(model, name)}
    assert read
    assert all(name.endswith("dt_proj") for name in read)
    called = []
    for name in read:
        model.get_submodule(name).register_forward_hook(lambda *_: called.append(1))
    model(torch.arange(5, 17)[None])
    assert not called  # an adapter of theirs would compute nothing
    assert not read & set(resolve_target_modules(model, "all-linear", exclude=["lm_head"]))
    with pytest.raises(ConfigurationError, match="without calling it: an adapter would have no effect"):
        resolve_target_modules(model, ["dt_proj"], exclude=["lm_head"])
    assert read <= set(modules_left(model, QuantizationSettings(bits=4), []))


@pytest.mark.parametrize("family", ["llama4_text", "phimoe"])
def test_a_router_that_returns_several_tensors_is_no_linear_layer(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(family))
    routers = [name for name, module in model.named_modules() if name.endswith(".router")]
    assert routers
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in routers)
    assert not {*routers} & linear_layers(model).keys()
    assert {f"{name}.weight" for name in routers} <= weights_outside_linear_layers(model).keys()


class Doubled(nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().forward(features)] * 2, dim=-1)


class Softened(nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features).clone()


def test_a_subclass_is_linear_if_its_output_has_the_shape() -> None:
    model = nn.ModuleDict({"plain": nn.Linear(2, 3), "doubled": Doubled(2, 3), "same": Softened(2, 3)})
    assert list(linear_layers(model)) == ["plain", "same"]
