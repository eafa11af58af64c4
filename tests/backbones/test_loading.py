"""Backbones load complete or not at all: padding, dropout, a new head, and an error for whatever does not fit."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from lora_lightning.backbones import (
    check_adapter_settings,
    load_classification_config,
    load_original_weights,
    load_sequence_classifier,
    load_tokenizer,
    position_limit,
)
from lora_lightning.errors import BackboneError, ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.target_modules import PRESETS
from tests.conftest import TinyBackbone, TinyClassifier
from tests.family_trials.tiny_architectures import tiny_config
from tests.tiny_models import DECODERS, FAMILIES, HIDDEN, VOCABULARY_SIZE

NAMES = ["yes", "no", "maybe"]
# Probabilities that belong to a head, another task or whole layers, and not to the base.
NOT_OF_THE_BASE = {
    "classifier_dropout",
    "classifier_dropout_prob",
    "layerdrop",
    "qa_dropout",
    "seq_classif_dropout",
    "summary_first_dropout",
}


@pytest.fixture
def bert_copy(tiny_backbone: TinyBackbone, tmp_path: Path) -> Path:
    """A tiny BERT that may be damaged."""
    return Path(shutil.copytree(tiny_backbone("bert"), tmp_path / "damaged"))


def load(backbone: str | Path, names: list[str] = NAMES) -> tuple[AutoModelForSequenceClassification, list[str]]:
    loaded = load_sequence_classifier(str(backbone), load_classification_config(str(backbone), names, 0))
    return loaded.model, loaded.lacked


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_pads_on_the_right_with_a_token_the_model_knows(tiny_backbone: TinyBackbone, family: str) -> None:
    backbone = str(tiny_backbone(family))
    tokenizer = load_tokenizer(backbone)
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token == ("<|endoftext|>" if family in DECODERS else "[PAD]")
    assert 0 <= tokenizer.pad_token_id < VOCABULARY_SIZE
    config = load_classification_config(backbone, NAMES, tokenizer.pad_token_id)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert load_sequence_classifier(backbone, config).model.config.pad_token_id == tokenizer.pad_token_id


def test_tiny_decoders_really_come_without_a_padding_token(tiny_backbone: TinyBackbone) -> None:
    for family in DECODERS:
        saved = json.loads((tiny_backbone(family) / "tokenizer_config.json").read_text())
        assert "pad_token" not in saved
        assert json.loads((tiny_backbone(family) / "config.json").read_text()).get("pad_token_id") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logits(tiny_backbone: TinyBackbone, tiny_classifier: TinyClassifier, family: str) -> None:
    tokenizer, model = load_tokenizer(str(tiny_backbone(family))), tiny_classifier(family).model.eval()
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w5 w7", "w9 w3 w4"]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_tokenizer_without_any_token_to_pad_with_is_refused(bert_copy: Path) -> None:
    config = json.loads((bert_copy / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.endswith("_token")}
    (bert_copy / "tokenizer_config.json").write_text(json.dumps(kept))
    with pytest.raises(BackboneError, match="has no padding, end or unknown token"):
        load_tokenizer(str(bert_copy))


@pytest.mark.parametrize(
    ("family", "options", "limit"),
    [
        ("xlnet", {}, None),  # its configuration has -1
        ("t5", {}, None),
        ("funnel", {}, None),
        ("mamba", {}, None),
        ("deberta-v2", {"position_biased_input": False}, None),
        ("led", {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 48}, 48),
        ("roberta", {"max_position_embeddings": 66}, 65),
    ],
)
def test_positions_of_families(family: str, options: dict[str, int], limit: int | None) -> None:
    config = tiny_config(family)
    config.update(options)
    assert position_limit(config) == limit


@pytest.mark.parametrize("family", ["lilt", "luke", "markuplm", "layoutlm", "roc_bert", "bert", "roberta"])
def test_the_limit_is_the_last_row_that_an_architecture_takes_in_the_table_or_not(family: str) -> None:
    config = tiny_config(family)
    limit = position_limit(config)
    assert limit is not None
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 7))


@pytest.mark.parametrize("start", ["missing", None])
def test_a_decoder_that_cannot_start_is_refused(tmp_path: Path, start: str | None) -> None:
    config = tiny_config("t5").to_dict()
    del config["decoder_start_token_id"]
    if start is None:
        config["decoder_start_token_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=r"has no decoder_start_token_id, .* for T5 the padding token's id, 0"):
        load_classification_config(str(tmp_path), ["a", "b"], pad_token_id=0)


def test_padding_token_beyond_the_embedding_is_refused(tiny_backbone: TinyBackbone) -> None:
    backbone = str(tiny_backbone("qwen2"))
    load_classification_config(backbone, NAMES, VOCABULARY_SIZE - 1)
    with pytest.raises(BackboneError, match=f"pads with token {VOCABULARY_SIZE}, but the model embeds only"):
        load_classification_config(backbone, NAMES, VOCABULARY_SIZE)


@pytest.mark.parametrize("family", FAMILIES)
def test_label_names_reach_the_model(tiny_classifier: TinyClassifier, family: str) -> None:
    config = tiny_classifier(family, labels=4).model.config
    assert config.num_labels == 4
    assert config.id2label[3] == "label 3"
    assert config.label2id["label 3"] == 3


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_base_dropout_sets_every_dropout_of_the_base(tiny_classifier: TinyClassifier, family: str, p: float) -> None:
    model = tiny_classifier(family, base_dropout=p).model.train()
    base = model.base_model
    probabilities = {name: module.p for name, module in base.named_modules() if isinstance(module, nn.Dropout)}
    assert set(probabilities.values()) <= {p}, probabilities
    of_base = {
        name: value
        for name, value in model.config.to_dict().items()
        if "drop" in name and name not in NOT_OF_THE_BASE and value is not None
    }
    assert of_base
    assert set(of_base.values()) == {p}, of_base
    tokens = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():  # also what no module shows: dropout inside the attention function
        first, second = base(input_ids=tokens)[0], base(input_ids=tokens)[0]
    assert torch.equal(first, second) == (p == 0)


def test_weights_with_a_hole_are_refused(bert_copy: Path) -> None:
    weights = load_file(bert_copy / "model.safetensors")
    del weights["bert.encoder.layer.0.attention.self.query.weight"]
    save_file(weights, bert_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack bert\.encoder\.layer\.0\.attention\.self\.query\.weight"):
        load(bert_copy)


def test_base_dropout_reaches_the_pooler_of_deberta(tiny_classifier: TinyClassifier) -> None:
    assert tiny_classifier("deberta-v2", base_dropout=0.25).model.pooler.dropout.p == 0.25


def test_base_dropout_null_keeps_what_the_model_came_with(tiny_classifier: TinyClassifier) -> None:
    assert tiny_classifier("bert").model.config.hidden_dropout_prob == 0.1


@pytest.mark.parametrize(
    "ask", [load_tokenizer, lambda name: load_classification_config(name, NAMES, 0)], ids=["tokenizer", "config"]
)
def test_missing_hub_model_is_a_quick_error_with_remedies(ask: Callable[[str], object]) -> None:
    start = time.monotonic()
    with pytest.raises(BackboneError) as error:
        ask("no-such-owner/no-such-model")
    assert time.monotonic() - start < 5
    for part in ("'no-such-owner/no-such-model'", "without network", "package://", "check the spelling"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nonsense"}')


def no_text_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def no_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


def other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))


@pytest.mark.parametrize(
    "damage",
    [
        break_config,
        unknown_type,
        no_text_model,
        no_weights,
        truncated_weights,
        no_header,
        other_sizes,
        other_architecture,
    ],
    ids=lambda damage: damage.__name__,
)
def test_damaged_folder_is_an_error_that_names_it_and_does_not_speak_of_the_hub(
    bert_copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(bert_copy)
    with pytest.raises(BackboneError) as error:
        load(bert_copy)
    assert str(bert_copy) in str(error.value)
    assert "is not a local folder" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_without_a_tokenizer_is_an_error(tiny_backbone: TinyBackbone, tmp_path: Path, family: str) -> None:
    shutil.copy(tiny_backbone(family) / "config.json", tmp_path)
    with pytest.raises(BackboneError, match=r"could not be loaded|has no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "roberta"])
def test_head_for_other_labels_is_newly_initialized(
    tiny_classifier: TinyClassifier, tiny_backbone: TinyBackbone, tmp_path: Path, family: str
) -> None:
    tiny_classifier(family, labels=3).model.save_pretrained(tmp_path / "headed")
    model, lacked = load(tmp_path / "headed", ["a", "b", "c", "d", "e"])
    assert lacked == {"roberta": ["classifier.out_proj"], "llama": ["score"]}.get(family, ["classifier"])
    assert model(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 5)


def test_head_for_the_same_labels_is_kept(tiny_classifier: TinyClassifier, tmp_path: Path) -> None:
    headed = tiny_classifier("bert", labels=3).model
    headed.save_pretrained(tmp_path / "headed")
    model, lacked = load(tmp_path / "headed", ["label 0", "label 1", "label 2"])
    assert lacked == []
    assert torch.equal(model.classifier.weight, headed.classifier.weight)


def test_weights_become_float32(tiny_classifier: TinyClassifier, tmp_path: Path) -> None:
    tiny_classifier("llama").model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    model, _ = load(tmp_path / "half")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_right_settings_pass_the_check_before_loading(tiny_backbone: TinyBackbone, family: str) -> None:
    config = load_classification_config(str(tiny_backbone(family)), NAMES, 0)
    for preset in PRESETS:
        check_adapter_settings(config, LoraSettings(target_modules=preset))


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["qurey"]}, {"modules_to_save": ["poolr"]}, {"target_modules": ["classifier"]}]
)
def test_wrong_settings_are_found_before_any_weights_load(bert_copy: Path, settings: dict[str, list[str]]) -> None:
    no_weights(bert_copy)
    config = load_classification_config(str(bert_copy), NAMES, 0)
    with pytest.raises(ConfigurationError):
        check_adapter_settings(config, LoraSettings(**settings))  # type: ignore[arg-type]


def test_architecture_that_cannot_classify_texts_is_refused_by_the_check(bert_copy: Path) -> None:
    no_text_model(bert_copy)
    with pytest.raises(BackboneError, match="could not be loaded"):
        check_adapter_settings(load_classification_config(str(bert_copy), NAMES, 0), LoraSettings())


@pytest.mark.parametrize("works", [True, False])
def test_transformers_verbosity_is_as_it_was(bert_copy: Path, works: bool) -> None:
    transformers.utils.logging.set_verbosity_info()
    try:
        if works:
            load_tokenizer(str(bert_copy))
        else:
            with pytest.raises(BackboneError):
                load_tokenizer("no-such-owner/no-such-model")
        assert transformers.utils.logging.get_verbosity() == transformers.logging.INFO
    finally:
        transformers.utils.logging.set_verbosity_warning()


@pytest.mark.parametrize(
    ("family", "layer"), [("gpt2", "transformer.h.1.mlp.c_fc"), ("llama", "model.layers.1.mlp.up_proj")]
)
def test_original_weights_are_out_by_in_on_the_cpu(family: str, layer: str, tiny_backbone: TinyBackbone) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone(family))
    with torch.device("meta"):  # as a trainer makes the GPU the default device
        found = load_original_weights(model, str(tiny_backbone(family)), [layer])[layer]
    assert found.device.type == "cpu"
    x = torch.randn(5, HIDDEN)
    module = model.get_submodule(layer)
    bias = 0 if module.bias is None else module.bias
    torch.testing.assert_close(x @ found.T + bias, module(x))
    with pytest.raises(BackboneError, match=r"has no layer model\.nothing; give the model that was quantized"):
        load_original_weights(model, str(tiny_backbone(family)), ["model.nothing"])
