"""Every planted fault is caught, and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BitsAndBytesConfig

from lora_lightning.artefacts import merge, merge_job, plain_model
from lora_lightning.errors import VerificationError
from lora_lightning.lora import merged_state
from lora_lightning.lora.merging import merged_weight
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.quantized import dequantized_weight, requantized
from tests.artefacts.adapters import left_beside, save_random_adapter
from tests.artefacts.conftest import Merge
from tests.conftest import TinyBackbone

Plant = Callable[[pytest.MonkeyPatch], None]
GPT2: dict[str, Any] = {"target_modules": ["c_attn", "c_proj"], "alpha_pattern": {"c_proj": 3}}
SKIPPED = ["lm_head"]
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=SKIPPED)
IN_BFLOAT16 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=SKIPPED, bnb_4bit_compute_dtype="bfloat16"
)


def in_merged_weight(change: Callable[[str, Any, Tensor], Tensor]) -> Plant:
    return lambda patch: patch.setattr(merged_state, "merged_weight", change)


def scaled_twice(name: str, layer: Any, weight: Tensor) -> Tensor:
    return weight + 2 * (merged_weight(name, layer, weight) - weight)


def a_little_less(name: str, layer: Any, weight: Tensor) -> Tensor:
    return weight + 0.97 * (merged_weight(name, layer, weight) - weight)


def without_one_layer(name: str, layer: Any, weight: Tensor) -> Tensor:
    return weight if name.endswith("h.1.attn.c_proj") else merged_weight(name, layer, weight)


def transposed_if_square(name: str, layer: Any, weight: Tensor) -> Tensor:
    update = merged_weight(name, layer, weight) - weight
    return weight + (update.T if update.shape[0] == update.shape[1] else update)


def with_the_global_alpha(name: str, layer: Any, weight: Tensor) -> Tensor:
    own = layer.scaling[ADAPTER]
    layer.scaling[ADAPTER] = 8 / 4
    try:
        return merged_weight(name, layer, weight)
    finally:
        layer.scaling[ADAPTER] = own


def rounded_to_4_bits(name: str, layer: Any, weight: Tensor) -> Tensor:
    merged = merged_weight(name, layer, weight)
    return dequantized_weight(requantized(layer.get_base_layer(), merged)).float()


def with_a_little_noise(name: str, layer: Any, weight: Tensor) -> Tensor:
    return merged_weight(name, layer, weight) * (1 + 0.01 * torch.randn(weight.shape))


def split_silently(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plain_model, "tied_weights", lambda _: {})


FAULTS: dict[str, tuple[str, dict[str, Any], Plant]] = {
    "wrong scaling": ("gpt2", GPT2, in_merged_weight(scaled_twice)),
    "3 % of the update lost": ("gpt2", GPT2, in_merged_weight(a_little_less)),
    "one layer unmerged": ("gpt2", GPT2, in_merged_weight(without_one_layer)),
    "transposed Conv1D": ("gpt2", GPT2, in_merged_weight(transposed_if_square)),
    "dropped alpha_pattern": ("gpt2", GPT2, in_merged_weight(with_the_global_alpha)),
    "requantized base": (
        "llama",
        {"target_modules": ["q_proj"], "quantization": NF4},
        in_merged_weight(rounded_to_4_bits),
    ),
    "less than a bfloat16 base rounds": (
        "llama",
        {"target_modules": ["q_proj"], "quantization": IN_BFLOAT16},
        in_merged_weight(with_a_little_noise),
    ),
    "tied weights split": ("gpt2", {"target_modules": ["wte", "c_attn"]}, split_silently),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_and_nothing_is_written(
    fault: str,
    dtype: Any,
    merge_here: Merge,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family, settings, plant = FAULTS[fault]
    adapter = save_random_adapter(tiny_backbone(family), tmp_path / "adapter", "CAUSAL_LM", **settings)
    plant(monkeypatch)
    message = (
        r"merging into the (base|dequantized) weights in float32 changes the model: .*; keep the adapter beside its"
    )
    with pytest.raises(VerificationError, match=message):
        merge_here(adapter, dtype=dtype)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("quantized", "chosen", "broken", "advice"),
    [
        (False, {"dtype": "bfloat16"}, 2, "; --dtype float32 passes"),
        (True, {"target": "requantized"}, 3, "; --target dequantized --dtype float32 passes"),
    ],
)
def test_a_fault_in_the_chosen_folder_alone_names_one_that_passes(
    quantized: bool,
    chosen: dict[str, Any],
    broken: int,
    advice: str,
    merge_here: Merge,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"target_modules": ["q_proj"], **({"quantization": NF4} if quantized else {})}
    adapter = save_random_adapter(tiny_backbone("llama"), tmp_path / "adapter", "CAUSAL_LM", **settings)
    load, loaded = merge_job.load_merged, []

    def load_with_noise(*arguments: Any) -> Any:
        model = load(*arguments)
        loaded.append(model)
        if len(arguments) == 3 and len(loaded) >= broken:  # the fourth argument quantizes
            model.lm_head.weight.data.add_(torch.randn_like(model.lm_head.weight))
        return model

    monkeypatch.setattr(merge_job, "load_merged", load_with_noise)
    with pytest.raises(VerificationError, match=f"{advice}[.]$"):
        merge_here(adapter, **chosen)
    assert not (tmp_path / "out").exists()


def test_a_small_effect_does_not_hide_a_fault(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_random_adapter(tiny_backbone("llama"), tmp_path / "adapter", "CAUSAL_LM", target_modules=["v_proj"])
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 0.002 for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")
    assert merge_here(adapter).written.adapter_effect.max_logit_difference < 1e-4
    in_merged_weight(scaled_twice)(monkeypatch)
    with pytest.raises(VerificationError, match="200 % of the adapter's effect on the logits is there"):
        merge_here(adapter, overwrite=True)
    assert left_beside(tmp_path / "out" / "merged") == ["merged"]


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["classifier", "pooler"]}])
def test_an_adapter_that_changes_nothing_is_refused(
    settings: dict[str, Any], merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    family, task = ("bert", "SEQ_CLS") if settings else ("llama", "CAUSAL_LM")
    layers = ["query"] if settings else ["q_proj"]
    adapter = save_random_adapter(
        tiny_backbone(family), tmp_path / "adapter", task, zero=True, target_modules=layers, **settings
    )
    with pytest.raises(VerificationError, match="the adapter changes nothing"):
        merge_here(adapter)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "lost", "message"),
    [
        ("bert", "pooler", r"no weights for bert.pooler.dense.weight"),
        ("bert", "classifier", r"no head and no labels"),
        ("roberta", "dense", r"no weights for classifier.dense.weight"),
    ],
)
def test_a_missing_head_is_refused(
    family: str, lost: str, message: str, merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    modules = ["classifier", "pooler"] if family == "bert" else ["classifier"]
    adapter = save_random_adapter(
        tiny_backbone(family), tmp_path / "adapter", "SEQ_CLS", target_modules=["query"], modules_to_save=modules
    )
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if f"{lost}." not in name}
    assert len(kept) < len(weights)
    save_file(kept, adapter / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match=message):
        merge_here(adapter)
    assert not (tmp_path / "out").exists()


def test_the_fresh_process_catches_what_is_written_wrongly(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_random_adapter(tiny_backbone("llama"), tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    run = merge_job.run_in_fresh_process

    def after_damage(folder: Path, *rest: Any) -> Any:
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.self_attn.q_proj.weight"] += 0.1 * torch.randn(32, 32)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return run(folder, *rest)

    monkeypatch.setattr(merge_job, "run_in_fresh_process", after_damage)
    with pytest.raises(VerificationError, match="in a fresh process with transformers alone"):
        merge(adapter, tmp_path / "out" / "merged")
    assert not (tmp_path / "out").exists()


def test_the_fresh_process_reads_the_label_names(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}
    adapter = save_random_adapter(tiny_backbone("bert"), tmp_path / "adapter", "SEQ_CLS", **modules)
    run = merge_job.run_in_fresh_process

    def after_damage(folder: Path, *rest: Any) -> Any:
        config = json.loads((folder / "config.json").read_text())
        names = config["id2label"]
        config["id2label"] = names | {"0": names["1"], "1": names["0"]}
        (folder / "config.json").write_text(json.dumps(config))
        return run(folder, *rest)

    (adapter / "config").mkdir()
    saved = {"model_type": "bert", "id2label": {"0": "no", "1": "yes", "2": "perhaps"}}
    (adapter / "config" / "config.json").write_text(json.dumps(saved))
    monkeypatch.setattr(merge_job, "run_in_fresh_process", after_damage)
    with pytest.raises(VerificationError, match="has the labels yes, no, perhaps, but the adapter has no, yes, perhap"):
        merge(adapter, tmp_path / "out" / "merged")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_needs_peft_does_not_load_in_the_fresh_process(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_random_adapter(tiny_backbone("llama"), tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    AutoTokenizer.from_pretrained(tiny_backbone("llama")).save_pretrained(adapter)
    run = merge_job.run_in_fresh_process
    monkeypatch.setattr(merge_job, "run_in_fresh_process", lambda _, *rest: run(adapter, *rest))
    with pytest.raises(VerificationError, match=r"transformers alone cannot load .* Unrecognized model"):
        merge(adapter, tmp_path / "out" / "merged")
    assert not (tmp_path / "out").exists()
