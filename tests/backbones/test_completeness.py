"""Only a head and a pooler may be new, and only those of another task may be left over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForPreTraining,
    ElectraForPreTraining,
    PreTrainedModel,
)

from lora_lightning.backbones import load_classification_config, load_sequence_classifier
from lora_lightning.backbones.causal_language_modeling import load_causal_lm, load_causal_lm_config
from lora_lightning.backbones.completeness import check_complete, check_gguf_layers
from lora_lightning.backbones.quantization import Quantization
from lora_lightning.backbones.question_answering import load_question_answerer, load_question_answering_config
from lora_lightning.errors import BackboneError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from tests.conftest import TinyBackbone
from tests.tiny_families import causal_config, causal_model
from tests.tiny_models import DECODERS, FAMILIES, LAYERS

NAMES = ["a", "b", "c"]
State = dict[str, Tensor]
LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer")


@pytest.fixture
def copy_of(tiny_backbone: TinyBackbone, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny backbone that may be changed."""
    return lambda family: Path(shutil.copytree(tiny_backbone(family), tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[State], State]) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(file)).items()}, file, {"format": "pt"})


def set_layers(folder: Path, count: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    key = next(key for key in LAYER_COUNTS if key in config)
    kinds = {"layer_types": config["layer_types"][:1] * count} if config.get("layer_types") else {}
    (folder / "config.json").write_text(json.dumps(config | {key: count} | kinds))


def classify(folder: Path, **settings: object) -> list[str]:
    config = load_classification_config(str(folder), NAMES, 0)
    return load_sequence_classifier(str(folder), config, **settings).lacked  # type: ignore[arg-type]


def last_layer(name: str) -> bool:
    return f".{LAYERS - 1}." in name


EMBEDDINGS = tuple(
    f"{name}.weight" for name in ("word_embeddings", "embed_tokens", "wte", "tok_embeddings", "lm_head", "decoder")
)
DAMAGES: dict[str, Callable[[str], bool]] = {
    "last layer": last_layer,
    "its attention": lambda name: last_layer(name) and "att" in name,
    "token embeddings": lambda name: name.endswith(EMBEDDINGS),
    "norms": lambda name: any(part in name.lower() for part in ("norm", ".ln_")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_part_of_the_base_is_refused(copy_of: Callable[[str], Path], family: str, damage: str) -> None:
    if family == "albert" and damage in {"last layer", "its attention"}:
        pytest.skip("all its layers share their weights")
    folder = copy_of(family)
    rewrite(folder, lambda state: {name: value for name, value in state.items() if not DAMAGES[damage](name)})
    with pytest.raises(BackboneError, match=r"the weights of '.*' lack [\w.]+.* start from random|do not fit"):
        classify(folder)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
def test_layers_beyond_those_of_the_config_are_refused(copy_of: Callable[[str], Path], family: str) -> None:
    folder = copy_of(family)
    set_layers(folder, LAYERS - 1)
    with pytest.raises(BackboneError, match=rf"also hold [\w.]+\.{LAYERS - 1}, which the model has no place for"):
        classify(folder)
    set_layers(folder, LAYERS + 2)
    with pytest.raises(BackboneError, match=rf"lack [\w.]+\.{LAYERS}, [\w.]+\.{LAYERS + 1}, which the model would"):
        classify(folder)


@pytest.mark.parametrize("bare", [True, False], ids=["without prefix", "with prefix"])
def test_a_surplus_layer_is_found_under_either_name(tiny_backbone: TinyBackbone, tmp_path: Path, bare: bool) -> None:
    shutil.copytree(tiny_backbone("bert"), tmp_path / "copy")
    if bare:
        AutoModel.from_pretrained(tiny_backbone("bert")).save_pretrained(tmp_path / "copy")
    assert classify(tmp_path / "copy") == (["classifier"] if bare else ["bert.pooler", "classifier"])
    set_layers(tmp_path / "copy", 1)
    with pytest.raises(BackboneError, match=r"also hold bert\.encoder\.layer\.1, which"):
        classify(tmp_path / "copy")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("query.", "query.base_layer."),
        ("query.weight", "query.lora_A.default.weight"),
        ("LayerNorm.", "LayerNorm.modules_to_save.default."),
        ("word_embeddings.", "word_embeddings.token_adapter.base_layer."),
    ],
)
def test_a_model_saved_with_its_adapter_is_refused_with_the_remedy(
    copy_of: Callable[[str], Path], old: str, new: str
) -> None:
    folder = copy_of("bert")
    rewrite(folder, lambda state: {name.replace(old, new): value for name, value in state.items()})
    with pytest.raises(BackboneError, match=r"were saved with an adapter .* merge_and_unload\(\)"):
        classify(folder)


def test_an_adapter_beside_intact_weights_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llama")
    rewrite(folder, lambda s: {**s, "model.layers.0.self_attn.q_proj.lora_B.x.weight": torch.ones(1)})
    with pytest.raises(BackboneError, match=r"hold model\.layers\.0\.self_attn\.q_proj\.lora_B\.x\.weight: they were"):
        load_causal_lm(str(folder), load_causal_lm_config(str(folder)))


def test_biases_that_the_config_denies_are_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llama")
    rewrite(folder, lambda s: {**s, "model.layers.1.self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(BackboneError, match=r"also hold model\.layers\.1\.self_attn\.q_proj\.bias"):
        load_causal_lm(str(folder), load_causal_lm_config(str(folder)))


def test_a_bias_of_the_head_that_the_model_has_no_place_for_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("llama")  # whose lm_head has no bias; Phi's has
    rewrite(folder, lambda state: {**state, "lm_head.bias": torch.ones(200), "lm_head.weight": torch.ones(200, 32)})
    with pytest.raises(BackboneError, match=r"also hold lm_head\.bias, which the model has no place for"):
        load_causal_lm(str(folder), load_causal_lm_config(str(folder)))
    assert classify(folder) == ["score"]  # where the head is one of another task


CONSTANTS = {
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.cos_cached"],
    "bert": ["bert.embeddings.position_ids", "cls.seq_relationship.weight"],
    "roberta": ["roberta.embeddings.token_type_ids", "roberta.pooler.dense.weight"],
    "opt": ["model.decoder.version"],
    "deberta-v2": ["deberta.embeddings.position_embeddings.weight", "lm_predictions.lm_head.dense.weight"],
    "distilbert": ["distilbert.embeddings.position_ids", "qa_outputs.weight"],
    "electra": ["discriminator_predictions.dense.weight"],
}


@pytest.mark.parametrize("family", CONSTANTS)
def test_constants_and_other_heads_may_be_left_over(copy_of: Callable[[str], Path], family: str) -> None:
    folder = copy_of(family)
    intact = classify(folder)
    rewrite(folder, lambda state: {**state, **{name: torch.ones(2, 2) for name in CONSTANTS[family]}})
    assert classify(folder) == intact


OTHER_TASKS = [
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoModelForSequenceClassification,
]


@pytest.mark.parametrize("saved_as", OTHER_TASKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_task_loads_for_classification(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, saved_as: type
) -> None:
    try:
        model: PreTrainedModel = saved_as.from_pretrained(  # type: ignore[attr-defined]
            tiny_backbone(family), num_labels=5, key_mapping={"^model": "transformer"} if family in RENAMES else None
        )
    except ValueError:
        pytest.skip("the family has no such head")
    model.save_pretrained(tmp_path)
    base = model.base_model_prefix
    if saved_as is AutoModelForQuestionAnswering and family in RENAMES:
        pytest.skip("that class alone calls its base otherwise")
    assert not [name for name in classify(tmp_path) if name.startswith(f"{base}.") and "pooler" not in name]


RENAMES = ("llama", "qwen2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_loads_for_question_answering(tiny_backbone: TinyBackbone, family: str) -> None:
    folder = str(tiny_backbone(family))
    try:
        config = load_question_answering_config(folder, 0)
        lacked = load_question_answerer(folder, config).lacked
    except BackboneError as error:
        assert "Unrecognized configuration class" in str(error)  # noqa: PT017
        return
    assert set(lacked) <= {"qa_outputs", "classifier", "head"}


def test_models_with_two_pretraining_heads_load(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    for family, kind in (("bert", BertForPreTraining), ("electra", ElectraForPreTraining)):
        kind(AutoConfig.from_pretrained(tiny_backbone(family))).save_pretrained(tmp_path / family)
        assert "classifier" in classify(tmp_path / family)


@pytest.mark.parametrize("family", DECODERS)
def test_an_output_layer_may_only_be_missing_if_it_is_tied(copy_of: Callable[[str], Path], family: str) -> None:
    folder = copy_of(family)
    rewrite(folder, lambda state: {name: value for name, value in state.items() if name != "lm_head.weight"})
    config = load_causal_lm_config(str(folder))
    if config.tie_word_embeddings:
        load_causal_lm(str(folder), config)
    else:
        with pytest.raises(BackboneError, match="lack lm_head, so it is no language model yet"):
            load_causal_lm(str(folder), config)


@pytest.mark.parametrize("family", ["qwen3_moe", "bloom, alibi", "lfm2, short convolution", "jamba", "mamba2"])
def test_families_of_all_kinds_load_intact_and_no_module_may_be_missing(tmp_path: Path, family: str) -> None:
    causal_model(family).save_pretrained(tmp_path)
    load_causal_lm(str(tmp_path), load_causal_lm_config(str(tmp_path)))
    intact = load_file(tmp_path / "model.safetensors")
    for module in sorted({name.rpartition(".")[0] for name in intact})[::5]:
        save_file({n: v for n, v in intact.items() if n.rpartition(".")[0] != module}, tmp_path / "model.safetensors")
        with pytest.raises(BackboneError):
            load_causal_lm(str(tmp_path), load_causal_lm_config(str(tmp_path)))


def with_layer(model: PreTrainedModel, number: int) -> State:
    first = {name: value for name, value in model.state_dict().items() if "layers.0." in name}
    return {**model.state_dict(), **{name.replace("layers.0.", f"layers.{number}."): v for name, v in first.items()}}


@pytest.mark.parametrize(("predicted", "number", "is_right"), [(0, 2, False), (1, 2, True), (1, 3, False)])
def test_layers_that_predict_more_tokens_are_not_surplus(predicted: int, number: int, is_right: bool) -> None:
    config = causal_config("llama", num_nextn_predict_layers=predicted)
    model = AutoModelForCausalLM.from_config(config)
    unexpected = with_layer(model, number).keys() - model.state_dict().keys()
    info = {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": sorted(unexpected)}
    if is_right:
        assert check_complete(model, info, "x", list) == []
        return
    with pytest.raises(BackboneError, match=rf"also hold model\.layers\.{number}, which"):
        check_complete(model, info, "x", list)


def test_a_part_that_another_head_uses_is_not_surplus(tiny_backbone: TinyBackbone) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert"))
    info = {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": ["bert.decoder.layer.0.weight"]}
    assert check_complete(model, info, "x", lambda: ["decoder.layer.0.weight"]) == []
    with pytest.raises(BackboneError, match=r"also hold bert\.decoder, which"):
        check_complete(model, info, "x", lambda: ["decoder.layer.1.weight"])


@pytest.mark.parametrize("kind", ["quantized", "without values", "shards", "pickled"])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_way_to_load_checks(copy_of: Callable[[str], Path], kind: str, layers: int) -> None:
    folder, settings = copy_of("bert"), {}
    if kind == "quantized":
        bits = QuantizationSettings(bits=4)
        settings = {"quantization": Quantization(bits, LoraSettings(), torch.device("cpu"), torch.float32)}
    elif kind == "without values":
        settings = {"values": False}  # type: ignore[dict-item]
    elif kind == "shards":
        AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink()
    else:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    set_layers(folder, layers)
    with pytest.raises(BackboneError, match=rf"bert\.encoder\.layer\.{layers - 1 if layers == 3 else 1}, which"):
        classify(folder, **settings)


def test_large_weights_are_checked_before_they_load(
    copy_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_lightning.backbones.loading.LONG_TO_READ", 0)
    folder = copy_of("bert")
    assert classify(folder) == ["bert.pooler", "classifier"]
    loaded: list[object] = []
    original = AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda *args, **more: loaded.append(more.get("device_map")) or original(*args, **more),
    )
    set_layers(folder, 1)
    with pytest.raises(BackboneError, match="also hold"):
        classify(folder)
    assert loaded == ["meta"]


@pytest.mark.parametrize(
    ("names", "is_right"), [(["blk.2.attn_q"], False), (["blk.2.attn_q", "blk.2.nextn.eh_proj"], True)]
)
def test_a_gguf_file_with_more_layers_than_announced_is_refused(
    tmp_path: Path, names: list[str], is_right: bool
) -> None:
    path = tmp_path / "a.gguf"
    writer = GGUFWriter(str(path), "llama")
    for name in ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight", *(f"{n}.weight" for n in names)]:
        writer.add_tensor(name, torch.ones(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(GGUFReader(str(path)).tensors) == 3 + len(names)
    model = AutoModelForCausalLM.from_config(causal_config("llama"))
    if is_right:
        check_gguf_layers(model, path, "x")
        return
    with pytest.raises(BackboneError, match=r"also hold blk\.2, but the file's own header announces 2 layers"):
        check_gguf_layers(model, path, "x")
