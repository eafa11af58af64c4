"""Causal language models load whole or not at all; encoders never, GGUF files too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lora_lightning.backbones import load_tokenizer, position_limit, resolve_backbone
from lora_lightning.backbones.causal_language_modeling import (
    check_causal_lm_settings,
    load_causal_lm,
    load_causal_lm_config,
    output_head_name,
)
from lora_lightning.backbones.export import export_model
from lora_lightning.backbones.quantization import Quantization
from lora_lightning.errors import BackboneError, ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.quantized import keep_4bit_weights_in_order, quantized_bits
from lora_lightning.lora.target_modules import PRESETS
from tests.conftest import TinyBackbone
from tests.family_trials.tiny_architectures import tiny_config
from tests.tiny_gguf import TOKENS, save_tiny_gguf
from tests.tiny_models import DECODERS, ENCODERS, POSITIONS

TIED = ("gpt2", "opt")


@pytest.mark.parametrize("family", DECODERS)
def test_loading_gives_the_saved_weights(tiny_backbone: TinyBackbone, family: str) -> None:
    folder = str(tiny_backbone(family))
    ours = load_causal_lm(folder, load_causal_lm_config(folder)).state_dict()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_refused_by_name(tiny_backbone: TinyBackbone, family: str) -> None:
    folder = str(tiny_backbone(family))
    with pytest.raises(BackboneError, match="is an encoder") as error:
        load_causal_lm_config(folder)
    assert folder in str(error.value)


@pytest.mark.parametrize("family", ["bart", "mbart", "bigbird_pegasus", "led"])
def test_an_encoder_decoder_is_refused_by_name(tmp_path: Path, family: str) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=rf"is an encoder-decoder \({family}\), which cannot predict"):
        load_causal_lm_config(str(tmp_path))


@pytest.mark.parametrize("family", DECODERS)
def test_the_position_limit_is_the_models(tiny_backbone: TinyBackbone, family: str) -> None:
    assert position_limit(load_causal_lm_config(str(tiny_backbone(family)))) == POSITIONS


def test_relative_positions_have_no_limit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    assert position_limit(load_causal_lm_config(str(tmp_path))) is None


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", DECODERS)
def test_the_head_gets_no_adapter_and_stays_tied(tiny_backbone: TinyBackbone, family: str, preset: str) -> None:
    folder = str(tiny_backbone(family))
    config = load_causal_lm_config(folder)
    settings = LoraSettings(target_modules=preset)
    check_causal_lm_settings(config, settings)
    model = load_causal_lm(folder, config)
    head = output_head_name(model)
    network = attach_lora(model, settings, [], "CAUSAL_LM", [head])
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any(head in name or "embed" in name or "wte" in name for name in trained)
    embedding = model.get_input_embeddings()
    assert (model.get_output_embeddings().weight is embedding.weight) == (family in TIED)
    if family == "gpt2":
        assert any("attn.c_attn" in name for name in trained)


@pytest.mark.parametrize("name", ["lm_head", "wte"])
def test_a_copy_of_tied_embeddings_cannot_be_trained(tiny_backbone: TinyBackbone, name: str) -> None:
    config = load_causal_lm_config(str(tiny_backbone("gpt2")))
    with pytest.raises(ConfigurationError, match=rf"modules_to_save: [\w.]*{name} shares its weights with"):
        check_causal_lm_settings(config, LoraSettings(modules_to_save=[name]))


def test_an_untied_head_may_be_trained(tiny_backbone: TinyBackbone) -> None:
    check_causal_lm_settings(
        load_causal_lm_config(str(tiny_backbone("llama"))), LoraSettings(modules_to_save=["lm_head"])
    )


@pytest.mark.parametrize("settings", [{"target_modules": ["c_atn"]}, {"target_modules": ["lm_head"]}])
def test_a_wrong_target_is_found_before_weights_load(
    tiny_backbone: TinyBackbone, tmp_path: Path, settings: dict[str, list[str]]
) -> None:
    shutil.copy(tiny_backbone("gpt2") / "config.json", tmp_path)
    with pytest.raises(ConfigurationError, match="no linear layer"):
        check_causal_lm_settings(load_causal_lm_config(str(tmp_path)), LoraSettings(**settings))  # type: ignore[arg-type]


def test_weights_without_a_head_are_no_language_model(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    folder = str(tiny_backbone("llama"))
    load_causal_lm(folder, load_causal_lm_config(folder)).model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="lack lm_head"):
        load_causal_lm(str(tmp_path), load_causal_lm_config(str(tmp_path)))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_base_dropout_reaches_the_model(tiny_backbone: TinyBackbone, p: float) -> None:
    config = load_causal_lm_config(str(tiny_backbone("gpt2")), base_dropout=p)
    assert {config.attn_pdrop, config.embd_pdrop, config.resid_pdrop} == {p}


@pytest.fixture
def gguf_folder(tmp_path: Path) -> tuple[Path, LlamaForCausalLM]:
    """A tiny Llama as a GGUF file in float32, and the same model."""
    return tmp_path, save_tiny_gguf(tmp_path)


def test_a_gguf_file_loads_as_the_model_it_holds(gguf_folder: tuple[Path, LlamaForCausalLM]) -> None:
    folder, expected = gguf_folder
    config = load_causal_lm_config(str(folder))
    assert position_limit(config) == 40
    check_causal_lm_settings(config, LoraSettings())
    model = load_causal_lm(str(folder), config).eval()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-5)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.eos_token == TOKENS[1]


def test_a_gguf_file_loads_without_a_word(
    gguf_folder: tuple[Path, LlamaForCausalLM], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(gguf_folder[0])
    load_causal_lm(folder, load_causal_lm_config(folder))
    assert capfd.readouterr().err == ""


def test_a_model_from_a_gguf_file_saves_as_any_other(
    gguf_folder: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    folder, expected = gguf_folder
    load_causal_lm(str(folder), load_causal_lm_config(str(folder))).save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    tokens = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-5)
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())


def test_an_adapter_on_a_gguf_file_names_its_folder(gguf_folder: tuple[Path, LlamaForCausalLM]) -> None:
    folder = str(gguf_folder[0])
    model = load_causal_lm(folder, load_causal_lm_config(folder))
    network = attach_lora(model, LoraSettings(), [], "CAUSAL_LM", [output_head_name(model)])
    assert network.peft_config["default"].base_model_name_or_path == folder
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    export_model(network, None, gguf_folder[0] / "adapter", {})
    readme = (gguf_folder[0] / "adapter" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(folder, gguf_file='tiny.gguf')" in readme
    plain = AutoModelForCausalLM.from_pretrained(gguf_folder[0] / "adapter", gguf_file="tiny.gguf").eval()
    tokens = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens).logits, network.eval()(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_gguf_file_is_quantized_as_its_weights_in_float32_would_be(
    gguf_folder: tuple[Path, LlamaForCausalLM], tmp_path: Path, bits: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    settings = QuantizationSettings(bits=bits)
    quantization = Quantization(settings, LoraSettings(), torch.device("cpu"), torch.float32)
    gguf_folder[1].save_pretrained(tmp_path / "saved")
    capfd.readouterr()
    models = [
        load_causal_lm(str(folder), load_causal_lm_config(str(folder)), quantization).eval()
        for folder in (gguf_folder[0], tmp_path / "saved")
    ]
    assert capfd.readouterr().err == ""
    for model in models:
        keep_4bit_weights_in_order(model)
        assert quantized_bits(model.model.layers[1].mlp.down_proj) == bits
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert not hasattr(model.config, "quantization_config")
    tokens = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(models[0](tokens).logits, models[1](tokens).logits, rtol=0, atol=1e-5)
    assert models[0].generation_config.eos_token_id == 1


def test_several_gguf_files_are_a_question(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(BackboneError, match=r"2 GGUF files \(a.gguf, b.gguf\)"):
        resolve_backbone(str(tmp_path))


@pytest.mark.parametrize("load", [load_causal_lm_config, load_tokenizer])
def test_a_gguf_file_without_its_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], object]
) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BackboneError, match="pip install gguf"):
        load(str(tmp_path))


def test_a_torn_gguf_file_is_an_error_that_names_it(gguf_folder: tuple[Path, LlamaForCausalLM]) -> None:
    path = gguf_folder[0] / "tiny.gguf"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BackboneError, match=str(gguf_folder[0])):
        load_causal_lm_config(str(gguf_folder[0]))
