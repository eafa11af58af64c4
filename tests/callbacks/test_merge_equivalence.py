"""The merge gate passes on every family and task, catches every planted fault, and leaves training as it was."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from lora_lightning.callbacks import MergeEquivalence
from lora_lightning.datamodules import (
    Clinc150DataModule,
    InstructionDataModule,
    PlainTextDataModule,
    SquadV2DataModule,
    TextClassificationDataModule,
)
from lora_lightning.errors import BackboneError, ConfigurationError, VerificationError
from lora_lightning.lora import merging
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import is_transposed
from lora_lightning.lora.quantized import dequantized_weight, requantized
from lora_lightning.tasks import (
    AdaptationTask,
    CausalLanguageModelingTask,
    OptimizationSettings,
    QuestionAnsweringTask,
    SequenceClassificationTask,
)
from tests.conftest import TinyBackbone
from tests.tiny_data import (
    save_tiny_clinc150,
    save_tiny_instructions,
    save_tiny_squad,
    save_tiny_table,
    save_tiny_wikitext,
)
from tests.tiny_models import FAMILIES
from tests.tiny_quantized import quantized_causal_lm

SETTINGS: dict[str, Any] = {
    "lora": LoraSettings(r=4),
    "optimization": OptimizationSettings(learning_rate=1e-2, warmup_share=0),
}


def intents(backbone: str, folder: Path) -> tuple[AdaptationTask, Any]:
    data = Clinc150DataModule(str(save_tiny_clinc150(folder)), backbone=backbone, batch_size=8, cache_dir=str(folder))
    return SequenceClassificationTask(backbone, **SETTINGS), data


def table(label: str, problem_type: str, **columns: Any) -> Callable[[str, Path], tuple[AdaptationTask, Any]]:
    def make(backbone: str, folder: Path) -> tuple[AdaptationTask, Any]:
        data = TextClassificationDataModule(
            train_file=str(save_tiny_table(folder / "train.csv", label=label)),
            problem_type=problem_type,  # type: ignore[arg-type]
            backbone=backbone,
            batch_size=8,
            cache_dir=str(folder),
            **columns,
        )
        return SequenceClassificationTask(backbone, **SETTINGS), data

    return make


def questions(backbone: str, folder: Path) -> tuple[AdaptationTask, Any]:
    data = SquadV2DataModule(
        str(save_tiny_squad(folder)), backbone=backbone, max_length=32, doc_stride=8, cache_dir=str(folder)
    )
    return QuestionAnsweringTask(backbone, **SETTINGS), data


def plain_text(backbone: str, folder: Path) -> tuple[AdaptationTask, Any]:
    data = PlainTextDataModule(
        str(save_tiny_wikitext(folder)), backbone=backbone, context_length=30, batch_size=4, cache_dir=str(folder)
    )
    return CausalLanguageModelingTask(backbone, **SETTINGS), data


def packed_instructions(backbone: str, folder: Path) -> tuple[AdaptationTask, Any]:
    data = InstructionDataModule(
        str(save_tiny_instructions(folder)),
        backbone=backbone,
        context_length=40,
        batch_size=2,
        validation_share=0.3,
        cache_dir=str(folder),
    )
    return CausalLanguageModelingTask(backbone, **SETTINGS), data


TASKS: dict[str, tuple[str, Callable[[str, Path], tuple[AdaptationTask, Any]]]] = {
    "intents": ("bert", intents),
    "labels": ("bert", table("word", "single_label_classification")),
    "several labels": ("bert", table("set", "multi_label_classification", label_separator=",")),
    "numbers": ("bert", table("number", "regression")),
    "questions": ("bert", questions),
    "questions, decoder": ("llama", questions),
    "text": ("gpt2", plain_text),
    "instructions": ("opt", packed_instructions),
}


def trainer_of(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    options = {"max_epochs": 1, "limit_train_batches": 4, "logger": CSVLogger(folder, name="run"), **options}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def fit(kind: str, backbone: Path, folder: Path, *callbacks: Any, **options: Any) -> AdaptationTask:
    seed_everything(0, verbose=False)
    task, data = TASKS[kind][1](str(backbone), folder / "data")
    trainer_of(folder, *callbacks, **options).fit(task, data)
    return task


def numbers(folder: Path) -> dict[str, float]:
    (path,) = folder.glob("run/version_*/adapter_metrics/merge_equivalence.parquet")
    rows = pq.read_table(path).to_pylist()
    return {row["metric"]: row["value"] for row in rows if row["module"] == "all"}


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_says_the_same_merged(
    kind: str, tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = MergeEquivalence()
    fit(kind, tiny_backbone(TASKS[kind][0]), tmp_path, gate)
    assert gate.verdict is not None
    assert gate.verdict.failure is None
    found = numbers(tmp_path)
    assert 0 <= found["base/max_logit_difference"] < 1e-4
    assert found["base/mean_logit_difference"] <= found["base/max_logit_difference"]
    assert found["adapter/max_logit_difference"] > 5e-4  # above the tolerance, or nothing would be proven
    assert abs(found["base/change_of_loss"]) < 1e-4
    assert found["adapted/seconds_per_batch"] > 0
    assert found["base/seconds_per_batch"] > 0
    if kind == "numbers":
        assert math.isnan(found["base/kl_divergence"])
    else:
        assert abs(found["base/kl_divergence"]) < 1e-8
        assert found["base/flipped_share"] == 0
        assert found["adapter/kl_divergence"] > 1e-8
    assert "merge check (the last step): merge into the base weights: logits move by up to" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    gate = MergeEquivalence(batches=2)
    fit("intents", tiny_backbone(family), tmp_path, gate, logger=False)
    assert gate.verdict is not None
    assert gate.verdict.failure is None


def test_a_state_costs_one_pass_a_batch(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = SequenceClassificationTask.forward

    def counted(task: SequenceClassificationTask, batch: dict[str, Tensor]) -> Tensor:
        passes.append(batch["input_ids"].shape[1])
        return forward(task, batch)

    class Counting(MergeEquivalence):
        def measure(self, trainer: Trainer, pl_module: Any) -> Any:
            passes.clear()
            found = super().measure(trainer, pl_module)
            lengths.extend(passes)
            return found

    lengths: list[int] = []
    monkeypatch.setattr(SequenceClassificationTask, "forward", counted)
    task, data = intents(str(tiny_backbone("bert")), tmp_path / "data")
    data.eval_batch_size = 4
    trainer_of(tmp_path, Counting(batches=3), logger=False).fit(task, data)
    warm_up, *batches = lengths[:4]
    assert warm_up == min(batches)
    assert lengths == 6 * [warm_up, *batches]  # adapted, base, three intact merges, merged


Merge = Callable[[str, LoraLayer, Tensor], Tensor]


def wrong_scaling(merge: Merge, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    return weight + 1.5 * (merge(module, layer, weight) - weight)


def one_layer_forgotten(merge: Merge, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    return weight.clone() if "1." in module and "mlp.c_fc" in module else merge(module, layer, weight)


def transposed(merge: Merge, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    merged = merge(module, layer, weight)
    square = merged.shape[0] == merged.shape[1]  # the only ones that would go unnoticed
    return merged.T if is_transposed(layer) and square else merged


def nothing_merged(merge: Merge, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    return weight.clone()


def not_a_number(merge: Merge, module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    return merge(module, layer, weight) * torch.nan


@pytest.mark.parametrize(
    ("fault", "wording"),
    [
        (wrong_scaling, "merging into the base weights changes the model: logits move by up to"),
        (one_layer_forgotten, "merging into the base weights changes the model: logits move by up to"),
        (transposed, "merging into the base weights changes the model: logits move by up to"),
        (nothing_merged, "merging into the base weights loses the adapter"),
        (not_a_number, "merging into the base weights changes the model: logits move by up to nan"),
    ],
)
@pytest.mark.parametrize("kind", ["intents", "text"])
def test_every_planted_fault_is_caught(
    kind: str,
    fault: Callable[..., Tensor],
    wording: str,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge = merging.merged_weight
    monkeypatch.setattr(merging, "merged_weight", lambda *arguments: fault(merge, *arguments))
    with pytest.raises(VerificationError, match=wording):
        fit(kind, tiny_backbone("gpt2"), tmp_path, MergeEquivalence())


def test_an_adapter_that_changes_nothing_is_caught(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "optimization", OptimizationSettings(learning_rate=1e-30, warmup_share=0))
    with pytest.raises(VerificationError, match=r"the adapter changes nothing: .*check that it was trained"):
        fit("text", tiny_backbone("gpt2"), tmp_path, MergeEquivalence())


class Quantized(CausalLanguageModelingTask):
    """Trains adapters on a quantized base."""

    bits = 4

    def build_network(self) -> Any:
        model = quantized_causal_lm(Path(self.backbone), self.bits)
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])).train()


def fit_quantized(backbone: Path, folder: Path, gate: MergeEquivalence, bits: int = 4) -> Quantized:
    seed_everything(0, verbose=False)
    task = Quantized(str(backbone), **SETTINGS)
    task.bits = bits
    trainer_of(folder, gate).fit(task, plain_text(str(backbone), folder / "data")[1])
    return task


@pytest.mark.parametrize("bits", [4, 8])
def test_every_target_of_a_quantized_base_is_compared_and_one_recommended(
    bits: int, tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = tiny_backbone("llama")
    fit_quantized(backbone, tmp_path, MergeEquivalence(original_backbone=str(backbone)), bits)
    found = numbers(tmp_path)
    targets = ("dequantized", "original", "requantized")
    if bits == 4:
        assert min(targets, key=lambda target: found[f"{target}/mean_logit_difference"]) == "dequantized"
        assert "merge into the dequantized weights: logits move by up to" in capsys.readouterr().out
    assert {f"{target}/flipped_share" for target in targets} <= found.keys()
    (path,) = tmp_path.glob("run/version_0/adapter_metrics/*.parquet")
    rows = [row for row in pq.read_table(path).to_pylist() if row["module"] != "all"]
    assert {row["metric"] for row in rows} == {"quantization_error", "requantization_error"}
    assert len(rows) == 2 * 3 * 2  # layers, modules, metrics
    assert all(row["value"] > 0 and row["layer"] in {0, 1} for row in rows)


def test_a_base_that_is_quantized_again_in_secret_is_caught(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    merge = merging.merged_weight

    def again(module: str, layer: LoraLayer, weight: Tensor) -> Tensor:
        return dequantized_weight(requantized(layer.get_base_layer(), merge(module, layer, weight))).float()

    monkeypatch.setattr(merging, "merged_weight", again)
    with pytest.raises(VerificationError, match="merging into the dequantized weights changes the model"):
        fit_quantized(tiny_backbone("llama"), tmp_path, MergeEquivalence())


def test_a_failure_may_only_warn_and_training_ends_either_way(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = fit("text", tiny_backbone("gpt2"), tmp_path, MergeEquivalence(tolerance=1e-12, on_failure="warn"))
    assert task.trainer.global_step == 4
    assert (
        "merge check (the last step) FAILED: merging into the base weights changes the model" in capsys.readouterr().out
    )
    gate = MergeEquivalence(tolerance=1e-12, at_validation=True)
    with pytest.raises(VerificationError, match="is allowed; keep the adapter beside its base"):
        fit("text", tiny_backbone("gpt2"), tmp_path / "raise", gate, max_epochs=3)
    (path,) = (tmp_path / "raise").glob("run/version_0/adapter_metrics/*.parquet")
    assert set(pq.read_table(path)["step"].to_pylist()) == {4}  # stopped after the first validation


@contextmanager
def watched(task: AdaptationTask) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in [*task.state_dict().items(), *task.network.named_buffers()]}  # type: ignore[union-attr]
    modes = [module.training for module in task.modules()]
    metrics, random_state = task.metrics, torch.get_rng_state()
    yield
    after = dict([*task.state_dict().items(), *task.network.named_buffers()])  # type: ignore[union-attr]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert [module.training for module in task.modules()] == modes
    assert task.metrics is metrics
    assert torch.equal(torch.get_rng_state(), random_state)


class Watched(MergeEquivalence):
    """Looks at everything before and after a comparison."""

    comparisons = 0

    def measure(self, trainer: Trainer, pl_module: Any) -> Any:
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.train()
        pl_module.network.base_model.eval()  # mixed modes have to come back too
        with watched(pl_module):
            found = super().measure(trainer, pl_module)
        for module, mode in modes:
            module.training = mode
        self.comparisons += 1
        return found


@pytest.mark.parametrize("kind", ["intents", "questions", "text"])
def test_training_goes_on_as_without_the_gate(kind: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    backbone = tiny_backbone(TASKS[kind][0])
    gate = Watched(at_validation=True)
    # A validation in the middle of an epoch, and of accumulated gradients.
    options = {"max_epochs": 2, "val_check_interval": 2, "accumulate_grad_batches": 3}
    watched_task = fit(kind, backbone, tmp_path / "with", gate, **options)
    plain = fit(kind, backbone, tmp_path / "without", **options)
    assert gate.comparisons >= 2
    expected = plain.state_dict()
    for name, tensor in watched_task.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_full_fine_tuning_is_said_to_have_nothing_to_merge(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETTINGS, "lora", None)
    fit("intents", tiny_backbone("bert"), tmp_path, MergeEquivalence())
    assert "nothing was compared, because model.lora is null" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_tolerance_follows_the_precision(precision: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    gate = MergeEquivalence()
    fit("intents", tiny_backbone("bert"), tmp_path, gate, precision=precision)
    assert gate.verdict is not None
    assert gate.verdict.failure is None
    assert numbers(tmp_path)["base/max_logit_difference"] > 1e-4  # float32's tolerance would not do


def test_a_dry_run_never_fails_for_what_one_step_has_not_learnt(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETTINGS, "optimization", OptimizationSettings(learning_rate=1e-30, warmup_share=0))
    fit("intents", tiny_backbone("bert"), tmp_path, MergeEquivalence(), fast_dev_run=True, logger=False)
    assert "merge check (the last step) FAILED: the adapter changes nothing" in capsys.readouterr().out


def test_two_processes_compare_all_of_the_data_once(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    names = ["MergeEquivalence", "FrozenBaseCheck", "ParameterEfficiency"]
    config = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {
            "class_path": "Clinc150DataModule",
            "init_args": {"data_dir": str(save_tiny_clinc150(tmp_path / "data")), "cache_dir": str(tmp_path)},
        },
        "trainer": {
            "callbacks": [{"class_path": name} for name in names],
            "max_epochs": 2,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "run"}},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    words = ["--data.batch_size=4", "--data.eval_batch_size=3", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    words += ["--trainer.strategy=ddp", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=2"]
    words += ["--checkpoint.monitor=val/in_scope_accuracy", "--checkpoint.mode=max"]
    command = [sys.executable, "-m", "lora_lightning", "fit", f"--config={tmp_path / 'run.yaml'}", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    # Four batches of three rows in each of two processes.
    assert result.stdout.count("): merge into the base weights") == 1
    assert "0 % of 24 decisions flip" in result.stdout
    rows = pq.read_table(tmp_path / "run/version_0/adapter_metrics/merge_equivalence.parquet").to_pylist()
    assert len({row["metric"] for row in rows}) == len(rows)
    metrics = (tmp_path / "run/version_0/metrics.csv").read_text()
    for tag in (
        "verification/base/change_of_in_scope_accuracy",
        "verification/frozen_base/unchanged_tensors",
        "training_efficiency/samples_per_second",
        "efficiency/reduction",
    ):
        assert tag in metrics


@pytest.mark.parametrize(
    ("original", "error", "wording"),
    [("./nowhere", BackboneError, "nowhere"), (None, ConfigurationError, "but no adapted layer is quantized")],
)
def test_an_original_backbone_of_no_use_is_refused_before_training(
    original: str | None, error: type[Exception], wording: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    backbone = tiny_backbone("bert")
    with pytest.raises(error, match=wording):
        fit("intents", backbone, tmp_path, MergeEquivalence(original_backbone=original or str(backbone)))
    assert not (tmp_path / "run" / "version_0" / "metrics.csv").exists()


@pytest.mark.parametrize(("option", "value"), [("batches", 0), ("tolerance", 0.0), ("tolerance", -1.0)])
def test_impossible_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"MergeEquivalence\.{option} is {value}, but"):
        MergeEquivalence(**{option: value})  # type: ignore[arg-type]
