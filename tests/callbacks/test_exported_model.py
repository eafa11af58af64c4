"""The folder that a run exports passes the check for every variant, task and family, and a changed one does not."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging

from lora_lightning.callbacks import MergeEquivalence
from lora_lightning.errors import BackboneError, VerificationError
from lora_lightning.lora.config import AdaLoraSettings, LoraSettings
from lora_lightning.tasks import AdaptationTask, SequenceClassificationTask
from lora_lightning.training import checkpointing
from tests.callbacks.test_merge_equivalence import SETTINGS
from tests.conftest import TinyBackbone
from tests.training.test_checkpointing import train

VARIANTS: dict[str, LoraSettings] = {
    "LoRA": LoraSettings(r=4),
    "rsLoRA": LoraSettings(r=4, use_rslora=True),
    "DoRA": LoraSettings(r=4, use_dora=True),
    "PiSSA": LoraSettings(r=4, init_lora_weights="pissa"),
    "OLoRA": LoraSettings(r=4, init_lora_weights="olora"),
    "EVA": LoraSettings(r=4, init_lora_weights="eva"),
    "AdaLoRA": LoraSettings(adalora=AdaLoraSettings(target_r=1, init_r=4, tinit=1, tfinal=1)),
    "biases": LoraSettings(r=4, bias="all"),
    "tokens": LoraSettings(r=4, trainable_token_indices=[7, 9]),
    "patterns": LoraSettings(r=4, rank_pattern={"query": 2}, alpha_pattern={"layer.1.attention.self.value": 3}),
}


def metrics_of(run: Path) -> set[str]:
    rows = pq.read_table(run / "adapter_metrics" / "merge_equivalence.parquet").to_pylist()
    assert {row["state"] for row in rows} == {"exported"}
    return {row["metric"] for row in rows}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variants_export_passes(
    variant: str, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "lora", VARIANTS[variant])
    gate = MergeEquivalence()
    _, run = train("labels", tiny_backbone("bert"), tmp_path, gate)
    assert gate.verdict is not None
    assert gate.verdict.failure is None
    assert "exported/max_logit_difference" in metrics_of(run)


@pytest.mark.parametrize(
    ("kind", "family"),
    [("text", "gpt2"), ("text", "llama"), ("questions", "llama"), ("numbers", "deberta-v2"), ("intents", "modernbert")],
)
def test_every_task_and_family_passes(kind: str, family: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    gate = MergeEquivalence()
    _, run = train(kind, tiny_backbone(family), tmp_path, gate, EMAWeightAveraging(decay=0.5))
    assert gate.verdict is not None
    assert gate.verdict.failure is None
    assert "exported/max_logit_difference" in metrics_of(run)


def test_a_folder_that_is_written_wrongly_fails_the_run(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = checkpointing.export_model

    def with_double_alpha(network: Any, tokenizer: Any, folder: Path, *more: Any) -> None:
        export(network, tokenizer, folder, *more)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))

    monkeypatch.setattr(checkpointing, "export_model", with_double_alpha)
    with pytest.raises(VerificationError, match=r"not what the best checkpoint holds: \S+ holds 200 % of its update"):
        train("labels", tiny_backbone("bert"), tmp_path, MergeEquivalence())


def test_a_folder_that_does_not_load_fails_the_run(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = checkpointing.export_model

    def cut_off(network: Any, tokenizer: Any, folder: Path, *more: Any) -> None:
        export(network, tokenizer, folder, *more)
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])

    monkeypatch.setattr(checkpointing, "export_model", cut_off)
    with pytest.raises(VerificationError, match="plain PEFT cannot load it"):
        train("labels", tiny_backbone("bert"), tmp_path, MergeEquivalence())


def test_a_base_that_vanished_is_a_sentence(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: AdaptationTask) -> None:
        msg = "the backbone 'tiny' cannot be found."
        raise BackboneError(msg)

    monkeypatch.setattr(SequenceClassificationTask, "load_plain_base", fail)
    train("labels", tiny_backbone("bert"), tmp_path, MergeEquivalence())
    assert "adapter was not opened: the backbone 'tiny' cannot be found." in capsys.readouterr().out


def test_another_base_under_the_same_name_is_noticed(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SequenceClassificationTask.load_plain_base

    def changed(task: AdaptationTask) -> Any:
        model = load(task)  # type: ignore[arg-type]
        model.get_input_embeddings().weight.data[3] += 1
        return model

    monkeypatch.setattr(SequenceClassificationTask, "load_plain_base", changed)
    with pytest.raises(VerificationError, match=r"word_embeddings\.weight differs from the checkpoint's"):
        train("labels", tiny_backbone("bert"), tmp_path, MergeEquivalence())
