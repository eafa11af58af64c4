"""Counts are those of pencil and paper."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lora_lightning.analysis.parameter_counts import ParameterCounts, count_by_kind
from lora_lightning.callbacks import ParameterEfficiency
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.injection import attach_lora
from tests.callbacks.test_merge_equivalence import SETTINGS, fit
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_models import HIDDEN, LAYERS, MLP, POSITIONS, VOCABULARY_SIZE
from tests.tiny_quantized import quantized_causal_lm


def total(model: nn.Module) -> ParameterCounts:
    return sum(count_by_kind(model).values(), start=ParameterCounts())


def test_gpt2_small_has_the_published_numbers() -> None:
    with torch.device("meta"):
        model = get_peft_model(
            GPT2LMHeadModel(GPT2Config()), LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True)
        )
    counts = total(model)
    assert (counts.trained, counts.total, counts.pretrained) == (294_912, 124_734_720, 124_439_808)
    assert counts.trained_bytes == 4 * 294_912
    assert count_by_kind(model)["attn.c_attn"].trained == 294_912


def test_kinds_put_adapters_and_copies_with_their_module(tiny_classifier: TinyClassifier) -> None:
    loaded = tiny_classifier("bert")
    before = sum(parameter.numel() for parameter in loaded.model.parameters())
    settings = LoraSettings(r=2, target_modules="attention-qv", modules_to_save=["pooler"])
    model = attach_lora(loaded.model, settings, loaded.lacked, "SEQ_CLS")
    kinds = count_by_kind(model)
    square, adapter, head = HIDDEN * HIDDEN + HIDDEN, 2 * 2 * HIDDEN, 3 * HIDDEN + 3
    query = ParameterCounts(LAYERS * adapter, LAYERS * (square + adapter), LAYERS * square, 4 * LAYERS * adapter)
    assert kinds["attention.self.query"] == query
    assert kinds["attention.self.key"] == ParameterCounts(0, LAYERS * square, LAYERS * square, 0)
    assert kinds["classifier"] == ParameterCounts(head, 2 * head, head, 4 * head)
    assert kinds["bert.pooler.dense"].trained == square
    assert kinds["bert.embeddings.word_embeddings"].total == VOCABULARY_SIZE * HIDDEN
    assert kinds["bert.embeddings.position_embeddings"].total == POSITIONS * HIDDEN
    assert kinds["intermediate.dense"].total == LAYERS * (HIDDEN * MLP + MLP)
    assert total(model).pretrained == before


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["query"], use_dora=True),
        LoraConfig(r=2, target_modules=["query", "word_embeddings"]),
        LoraConfig(r=2, target_modules=["query"], lora_bias=True),
        AdaLoraConfig(init_r=2, target_modules=["query"], total_step=10),
        LoraConfig(r=2, target_modules=["query"], trainable_token_indices=[5, 12]),
    ],
)
def test_every_variant_is_counted_where_it_is(config: LoraConfig, tiny_classifier: TinyClassifier) -> None:
    model = tiny_classifier("bert").model
    names = set(count_by_kind(model))
    before = sum(parameter.numel() for parameter in model.parameters())
    wrapped = get_peft_model(model, config)
    assert set(count_by_kind(wrapped)) == names
    counts = total(wrapped)
    assert counts.pretrained == before
    assert (counts.trained, counts.total) == wrapped.get_nb_trainable_parameters()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_has_as_many_parameters_as_before(bits: int, tiny_backbone: TinyBackbone) -> None:
    pytest.importorskip("bitsandbytes")
    plain = quantized_causal_lm(tiny_backbone("llama"), bits, llm_int8_skip_modules=["model", "lm_head"])
    assert total(quantized_causal_lm(tiny_backbone("llama"), bits)).pretrained == total(plain).total


def test_the_table_and_the_loggers_have_it_once(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = fit("intents", tiny_backbone("bert"), tmp_path, ParameterEfficiency(), max_epochs=2)
    rows = pq.read_table(tmp_path / "run/version_0/adapter_metrics/parameter_efficiency.parquet").to_pylist()
    found = {(row["module"], row["metric"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    assert found["all", "trained_parameters"] == trained
    assert found["all", "trained_bytes"] == 4 * trained
    assert found["all", "reduction"] == pytest.approx(total(task).pretrained / trained)
    assert 0 < found["attention.self.query", "trained_share"] < 1
    assert "efficiency/reduction" in (tmp_path / "run/version_0/metrics.csv").read_text()


def test_full_fine_tuning_reduces_nothing(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "lora", None)
    fit("intents", tiny_backbone("bert"), tmp_path, ParameterEfficiency())
    rows = pq.read_table(tmp_path / "run/version_0/adapter_metrics/parameter_efficiency.parquet").to_pylist()
    found = {row["metric"]: row["value"] for row in rows if row["module"] == "all"}
    assert found["reduction"] == found["trained_share"] == 1
