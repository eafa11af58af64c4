"""What cannot be merged is refused in a sentence, before anything is written."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lora_lightning.artefacts import merge, merge_job
from lora_lightning.artefacts.output_folder import new_folder
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError
from tests.artefacts.adapters import left_beside, save_random_adapter
from tests.artefacts.conftest import Merge
from tests.conftest import TinyBackbone
from tests.tiny_models import save_tiny_backbone


@pytest.fixture(scope="module")
def adapter(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "adapter"
    return save_random_adapter(tiny_backbone("llama"), folder, "CAUSAL_LM", target_modules=["q_proj"])


def changed_config(adapter: Path, folder: Path, **values: Any) -> Path:
    shutil.copytree(adapter, folder)
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**content, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"task_type": None}, "has task_type None"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "has task_type SEQ_2_SEQ_LM"),
        ({"base_model_name_or_path": None}, "does not name the base model"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "'/nowhere/at/all' is not a folder"),
        ({"target_parameters": ["experts.down_proj"], "peft_version": "0.18.1"}, "saved by PEFT 0.18.1"),
        ({"target_parameters": ["experts.down_proj"], "peft_version": None}, "saved by PEFT before 0.18"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "has init_lora_weights 'pissa_niter_4'.*path_initial_model",
        ),
        ({"init_lora_weights": "lora_ga"}, "has init_lora_weights 'lora_ga'"),
        ({"init_lora_weights": "corda"}, "has init_lora_weights 'corda'"),
        ({"init_lora_weights": "loftq"}, "has init_lora_weights 'loftq'"),
        ({"init_lora_weights": "of tomorrow"}, "has init_lora_weights 'of tomorrow'"),
        ({"base_model_name_or_path": "org/name", "revision": "v2"}, "names revision 'v2' of org/name"),
        ({"r": 3}, "does not fit its base model"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lacks weights of layers"),
        ({"target_modules": ["layers.0.self_attn.q_proj"]}, "holds 2 weights that have no place in its base model"),
    ],
)
def test_an_adapter_that_cannot_be_merged(
    values: dict[str, Any], message: str, adapter: Path, tmp_path: Path, merge_here: Merge
) -> None:
    with pytest.raises(LoraLightningError, match=message):
        merge_here(changed_config(adapter, tmp_path / "changed", **values))
    assert not (tmp_path / "out").exists()


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{LAYER}.lora_magnitude_vector", (32,)),
        (f"{LAYER}.lora_B.bias", (32,)),
        (f"{LAYER}.lora_embedding_A", (4, 200)),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", (2, 32)),
        ("base_model.model.model.layers.0.self_attn.q_proj.invented", (3,)),
        ("anything", (1,)),
    ],
)
def test_a_weight_that_the_configuration_has_no_place_for_is_refused(
    name: str, shape: tuple[int, ...], adapter: Path, tmp_path: Path, merge_here: Merge
) -> None:
    other = changed_config(adapter, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({**weights, name: torch.ones(shape)}, other / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="have no place in its base model"):
        merge_here(other)
    assert not (tmp_path / "out").exists()


def test_weights_of_the_base_in_the_file_of_the_adapter_are_named(
    adapter: Path, tmp_path: Path, merge_here: Merge, tiny_backbone: TinyBackbone
) -> None:
    other = changed_config(adapter, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    base = load_file(tiny_backbone("llama") / "model.safetensors")
    equal, new = (f"model.layers.{number}.mlp.up_proj.weight" for number in (0, 1))
    more = {f"base_model.model.{equal}": base[equal].clone(), f"base_model.model.{new}": base[new] * 2}
    save_file({**weights, **more}, other / "adapter_model.safetensors")
    assert f"the adapter's file replaces 1 weights of the base model ({new})." in merge_here(other).notes
    assert not any("replaces" in note for note in merge_here(adapter, overwrite=True).notes)


def test_a_base_that_may_have_changed_is_named(adapter: Path, tmp_path: Path, merge_here: Merge) -> None:
    assert any("is still the base model that the adapter was trained on" in note for note in merge_here(adapter).notes)


DAMAGE = {
    "tokenizer_config.json": "{",
    "quantization_config.json": json.dumps({"quant_method": "gptq", "bits": 4}),
    "quantization_config.json ": json.dumps({"load_in_4bit": "perhaps"}),
    "quantization_config.json  ": json.dumps({"bnb_4bit_quant_type": "nf4"}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_of_the_folder_is_refused_in_a_sentence(
    name: str, adapter: Path, tmp_path: Path, merge_here: Merge
) -> None:
    other = changed_config(adapter, tmp_path / "other")
    (other / name.strip()).write_text(DAMAGE[name])
    with pytest.raises(CheckpointError, match=name.strip().partition("_")[0]):
        merge_here(other)


def test_the_card_names_no_folder_in_the_home_directory(
    adapter: Path, tmp_path: Path, merge_here: Merge, tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_backbone("llama"), tmp_path / "mine")
    result = merge_here(changed_config(adapter, tmp_path / "other", base_model_name_or_path="~/mine"))
    assert result.base_model is None
    assert "base_model" not in (result.output / "README.md").read_text()


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_a_base_that_is_saved_quantized_is_refused(
    method: str, adapter: Path, tmp_path: Path, merge_here: Merge, tiny_backbone: TinyBackbone
) -> None:
    base = shutil.copytree(tiny_backbone("llama"), tmp_path / "base")
    if method == "bitsandbytes":
        bits = BitsAndBytesConfig(load_in_4bit=True)
        AutoModelForCausalLM.from_pretrained(base, quantization_config=bits, device_map="cpu").save_pretrained(base)
    else:
        config = json.loads((base / "config.json").read_text())
        quantization = {"quant_method": "gptq", "bits": 4}
        (base / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    other = changed_config(adapter, tmp_path / "other", base_model_name_or_path=str(base))
    with pytest.raises(ConfigurationError, match=rf"are saved quantized \({method}\)"):
        merge_here(other)


def test_code_in_the_folder_of_an_adapter_never_runs(
    adapter: Path, tmp_path: Path, merge_here: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks whether to run it
    other = changed_config(adapter, tmp_path / "other")
    ran = tmp_path / "ran"
    (other / "theirs.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import BertTokenizer\nclass Theirs(BertTokenizer): pass\n"
    )
    content = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    (other / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer in .* cannot be loaded"):
        merge_here(other)
    assert not ran.exists()


def test_a_base_of_another_size_or_of_other_content_is_refused(
    adapter: Path, tmp_path: Path, tiny_backbone: TinyBackbone, merge_here: Merge
) -> None:
    other = changed_config(adapter, tmp_path / "other", base_model_name_or_path=str(tiny_backbone("qwen2")))
    saved = {"weights": "0" * 64, "config": "0" * 64, "tokenizer": "0" * 64}
    (other / "base_model.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match=r"different weights.* Set base_model_name_or_path in its"):
        merge_here(other)
    narrow = save_tiny_backbone("llama", tmp_path / "narrow")
    weights = load_file(adapter / "adapter_model.safetensors")
    smaller = changed_config(adapter, tmp_path / "smaller", base_model_name_or_path=str(narrow))
    cut = {name: tensor[:, :16] if "lora_A" in name else tensor for name, tensor in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in cut.items()}, smaller / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its base model"):
        merge_here(smaller)


def test_damaged_weights_are_refused(adapter: Path, tmp_path: Path, merge_here: Merge) -> None:
    broken = changed_config(adapter, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        merge_here(broken)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()},
        broken / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match="is not finite"):
        merge_here(broken)
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json cannot be read"):
        merge_here(broken)
    for text in ("[" * 100_000, '{"a":' * 100_000):
        (broken / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"adapter_config.json cannot be read"):
            merge_here(broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat"}, "--dtype is 'bfloat'; did you mean 'bfloat16'"),
        ({"target": "dequantised"}, "--target is 'dequantised'; did you mean 'dequantized'"),
        ({"target": "requantized"}, "--target is requantized, but the base is not quantized"),
        ({"base_model_id": " "}, "--base_model_id is ' '"),
        ({"base_model_id": "/nowhere/secret/path"}, "--base_model_id is '/nowhere/secret/path'"),
        ({"base_model_id": "./model"}, "--base_model_id is './model'"),
        ({"overrides": {"model.lora.r": 3}}, "--model.lora.r is not an option here"),
        ({"config": {"model": {}}}, "has no data"),
        ({"config": "nothing.yaml"}, "nothing.yaml"),
        ({"overrides": {"data": "Clinc150Datamodule"}}, "Clinc150Datamodule"),
    ],
)
def test_a_wrong_option(
    options: dict[str, Any], message: str, adapter: Path, tmp_path: Path, merge_here: Merge
) -> None:
    with pytest.raises(LoraLightningError, match=message):
        merge_here(adapter, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_same_name_does_not_forbid_an_id_on_the_hub(
    adapter: Path, tmp_path: Path, merge_here: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert merge_here(adapter, base_model_id="gpt2").base_model == "gpt2"


def test_two_merges_do_not_write_one_folder_at_the_same_time(adapter: Path, tmp_path: Path, merge_here: Merge) -> None:
    output = tmp_path / "out" / "merged"
    with new_folder(output) as draft:
        (draft / "file").write_text("mine")
        with pytest.raises(ConfigurationError, match=r"merged is being written by another process"):
            merge_here(adapter)
    assert (output / "file").read_text() == "mine"
    assert [path.name for path in output.parent.iterdir()] == ["merged"]
    (output / "file").rename(output / "config.json")
    (output.parent / ".merged.lock").touch()  # of a process that was killed
    assert merge_here(adapter, overwrite=True).written.failure is None
    assert [path.name for path in output.parent.iterdir()] == ["merged"]


def test_an_existing_output_is_replaced_only_with_overwrite_and_only_if_it_is_a_model(
    adapter: Path, tmp_path: Path, merge_here: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = merge_here(adapter).output
    before = (output / "model.safetensors").stat().st_ino
    with pytest.raises(ConfigurationError, match="exists; choose another folder, or replace it with --overwrite"):
        merge_here(adapter)
    monkeypatch.setattr(merge_job, "find_merge_failure", lambda *_: "it is broken")
    with pytest.raises(LoraLightningError, match="it is broken"):
        merge_here(adapter, overwrite=True)
    assert (output / "model.safetensors").stat().st_ino == before
    monkeypatch.setattr(merge_job, "find_merge_failure", lambda *_: None)
    merge_here(adapter, overwrite=True)
    assert (output / "model.safetensors").stat().st_ino != before
    assert left_beside(output) == ["merged"]
    (output / "config.json").unlink()
    with pytest.raises(ConfigurationError, match="holds other files than a model"):
        merge_here(adapter, overwrite=True)
    assert (output / "model.safetensors").exists()


def test_a_folder_that_appears_during_the_merge_is_not_replaced(
    adapter: Path, tmp_path: Path, merge_here: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, output = merge_job.write_model, tmp_path / "out" / "merged"

    def write_while_another_does(*arguments: Any) -> None:
        write(*arguments)
        output.mkdir(exist_ok=True)
        (output / "config.json").write_text("theirs")

    monkeypatch.setattr(merge_job, "write_model", write_while_another_does)
    with pytest.raises(ConfigurationError, match="exists; choose another folder"):
        merge_here(adapter)
    assert (output / "config.json").read_text() == "theirs"
    assert left_beside(output) == ["merged"]


def test_the_base_model_is_never_replaced(tmp_path: Path, merge_here: Merge) -> None:
    base = save_tiny_backbone("llama", tmp_path / "out" / "merged")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    with pytest.raises(ConfigurationError, match=r"would replace .*merged, which is being read"):
        merge_here(adapter, overwrite=True)
    inside = save_tiny_backbone("llama", tmp_path / "out" / "merged" / "inside")
    other = changed_config(adapter, tmp_path / "other", base_model_name_or_path=str(inside))
    with pytest.raises(ConfigurationError, match=r"would replace .*inside, which is being read"):
        merge_here(other, overwrite=True)
    assert (base / "model.safetensors").is_file()


def test_the_source_is_never_replaced(adapter: Path, tmp_path: Path) -> None:
    for output in (adapter, adapter.parent):
        with pytest.raises(ConfigurationError, match="would replace"):
            merge(adapter, output, overwrite=True)
    with pytest.raises(CheckpointError, match="does not exist"):
        merge(tmp_path / "nothing", tmp_path / "merged")
    with pytest.raises(CheckpointError, match="is not a run or adapter folder"):
        merge(tmp_path, tmp_path / "merged")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        merge(adapter, tmp_path / "file")
    with pytest.raises(ConfigurationError, match="is not a writable folder"):
        merge(adapter, tmp_path / "file" / "merged")


@pytest.mark.parametrize(
    "error", [OSError("error no file named model.safetensors found"), FileNotFoundError(2, "No such")]
)
def test_an_error_that_is_not_about_the_disk_is_not_called_one(
    error: OSError, adapter: Path, tmp_path: Path, merge_here: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(merge_job, "load_merged", fails)
    with pytest.raises(OSError, match=r"No|no file") as raised:
        merge_here(adapter)
    assert raised.value is error
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(
    adapter: Path, tmp_path: Path, merge_here: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = merge_job.write_model, []

    def fills_the_disk(*arguments: Any) -> None:
        written.append(write(*arguments))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(merge_job, "write_model", fills_the_disk)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(no space left on device\); nothing was written"):
        merge_here(adapter)
    assert written
    assert not (tmp_path / "out").exists()
