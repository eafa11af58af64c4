"""Drift is measured against the very base model, for every family and task, and training never notices."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, AutoModelForSequenceClassification, BitsAndBytesConfig, PreTrainedModel

from lora_lightning import callbacks
from lora_lightning.callbacks import IntruderDimensions, RepresentationDrift
from lora_lightning.callbacks.representation_drift import layer_count, probe_rows, shortened_mask
from lora_lightning.datamodules import Clinc150DataModule, InstructionDataModule, SquadV2DataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.figures.drift import drift_figure
from lora_lightning.lora.config import LoraSettings
from lora_lightning.tasks import (
    AdaptationTask,
    CausalLanguageModelingTask,
    OptimizationSettings,
    QuestionAnsweringTask,
    SequenceClassificationTask,
)
from lora_lightning.tasks.held_out_batches import evaluation_mode
from tests.analysis.test_representations import reference_cka
from tests.conftest import TinyBackbone
from tests.family_trials.tiny_architectures import save_tiny_model
from tests.figures.test_rank import assert_fits_its_card
from tests.tiny_data import save_tiny_clinc150, save_tiny_instructions, save_tiny_squad
from tests.tiny_models import FAMILIES, LAYERS

ROOT = Path(__file__).parents[2]
TASKS: dict[str, Callable[..., AdaptationTask]] = {
    "classification": SequenceClassificationTask,
    "squad": QuestionAnsweringTask,
    "instructions": CausalLanguageModelingTask,
}


def data_of(kind: str, folder: Path, backbone: Path) -> LightningDataModule:
    options: dict[str, Any] = {"backbone": str(backbone), "cache_dir": str(folder / "cache"), "batch_size": 8}
    if kind == "squad":
        return SquadV2DataModule(data_dir=str(save_tiny_squad(folder)), max_length=32, doc_stride=8, **options)
    if kind == "instructions":
        file = str(save_tiny_instructions(folder))
        return InstructionDataModule(train_file=file, context_length=30, validation_share=0.4, **options)
    return Clinc150DataModule(data_dir=str(save_tiny_clinc150(folder)), eval_batch_size=5, **options)


def train(
    folder: Path, backbone: Path, *callbacks: Callback, kind: str = "classification", **options: Any
) -> AdaptationTask:
    """A few steps with a learning rate that moves every layer; options of the task, or of the trainer."""
    settings = OptimizationSettings(learning_rate=0.02)
    own = {name: options.pop(name) for name in ("lora",) if name in options}
    task = options.pop("task", None) or TASKS[kind](str(backbone), optimization=settings, **own)
    checkpoint = options.pop("ckpt_path", None)
    defaults: dict[str, Any] = {"max_steps": 3, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{**defaults, **options},
    )
    torch.manual_seed(0)
    trainer.fit(task, data_of(kind, folder, backbone), ckpt_path=checkpoint, weights_only=True)
    return task


def exported(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "representations" / f"{name}.safetensors")


def table(folder: Path) -> dict[tuple[int, int, str], float]:
    rows = pq.read_table(folder / "adapter_metrics" / "representation_drift.parquet").to_pylist()
    totals = {(row["step"], row["metric"]): row["value"] for row in rows if row["module"] == "all"}
    rows = [row for row in rows if row["module"] != "all"]
    found = {(row["step"], row["layer"], row["metric"]): row["value"] for row in rows}
    assert len(found) == len(rows)  # nothing twice
    for (step, metric), mean in totals.items():
        values = [value for (at, _, kind), value in found.items() if (at, kind) == (step, metric)]
        assert mean == pytest.approx(np.mean(values))
    assert totals.keys() == {(step, metric) for step, _, metric in found}
    return found


def hidden_means(model: PreTrainedModel, task: AdaptationTask, rows: torch.Tensor) -> Any:
    """Mean hidden state of each example by layer, one example at a time and so without padding, in float64."""
    dataset = task.trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
    found = []
    with torch.no_grad():
        for row in rows.tolist():
            batch = dataset[[row]]
            states = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[1:]
            found.append([state[0].double().numpy() for state in states])
    return [np.array([example[layer].mean(axis=0) for example in found]) for layer in range(LAYERS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_plain_transformers_models(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str
) -> None:
    drift = RepresentationDrift(every_n_steps=2, probe_size=12)
    task = train(tmp_path, tiny_backbone(family), drift)
    assert sorted(path.name for path in (tmp_path / "representations").iterdir()) == [
        "base.safetensors",
        "step_000002.safetensors",
        "step_000003.safetensors",
    ]
    base, adapted = exported(tmp_path, "base"), exported(tmp_path, "step_000003")
    assert set(base) == {"rows", *(f"layer.{layer}.output" for layer in range(LAYERS))}
    plain = AutoModel.from_pretrained(tiny_backbone(family)).eval()
    merged = copy.deepcopy(task.built_network).merge_and_unload().base_model.eval()  # type: ignore[operator]
    for module in merged.modules():
        module._forward_pre_hooks.clear()  # all tokens
    expected = [hidden_means(model, task, base["rows"]) for model in (plain, merged)]
    values = table(tmp_path)
    for layer in range(LAYERS):
        before, after = (states[layer] for states in expected)
        np.testing.assert_allclose(base[f"layer.{layer}.output"], before, atol=2e-6)
        np.testing.assert_allclose(adapted[f"layer.{layer}.output"], after, atol=2e-5)
        cosines = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        assert values[3, layer, "cosine"] == pytest.approx(cosines.mean(), abs=1e-5)
        assert values[3, layer, "cka"] == pytest.approx(reference_cka(before, after), abs=1e-4)
    assert values[3, LAYERS - 1, "cosine"] < 0.9999  # it has moved


@pytest.mark.parametrize(
    ("kind", "family"),
    [("squad", "bert"), ("squad", "llama"), ("instructions", "gpt2"), ("instructions", "opt")],
)
def test_other_tasks(tiny_backbone: TinyBackbone, tmp_path: Path, kind: str, family: str) -> None:
    drift = RepresentationDrift(probe_size=6, pooling="last", layers=[1])
    task = train(tmp_path, tiny_backbone(family), drift, kind=kind, max_steps=-1, max_epochs=1)
    steps = task.trainer.global_step
    assert {(step, layer) for step, layer, _ in table(tmp_path)} == {(steps, 1)}
    assert 0 < table(tmp_path)[steps, 1, "cka"] < 1
    base = exported(tmp_path, "base")
    plain = AutoModel.from_pretrained(tiny_backbone(family)).eval()
    dataset = task.trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
    for row, state in zip(base["rows"].tolist(), base["layer.1.output"], strict=True):
        batch = dataset[[row]]
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "position_ids") if name in batch}
        if "position_ids" in inputs:  # the last document of the block, alone
            start = int((inputs["position_ids"][0] == 0).nonzero()[-1])
            inputs = {"input_ids": inputs["input_ids"][:, start:]}
        with torch.no_grad():
            alone = plain(**inputs, output_hidden_states=True).hidden_states[2][0, -1]
        torch.testing.assert_close(state, alone, rtol=0, atol=1e-5)


class Watcher(Callback):
    """Notes everything that a measurement could have changed, before and after it."""

    def __init__(self, drift: RepresentationDrift) -> None:
        self.drift = drift
        self.measured = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        del batch, batch_idx

        def state() -> Any:
            modes = [module.training for module in pl_module.modules()]
            gradients = [(p.requires_grad, p.grad is None) for p in pl_module.parameters()]
            return modes, gradients, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

        pl_module.network.get_submodule("base_model.model.bert.encoder.layer.0").eval()  # a mode of its own
        before = state()
        self.drift.measure(trainer, pl_module)
        assert state() == before
        self.measured += 1


def test_a_measurement_leaves_no_trace(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    drift = RepresentationDrift()
    watcher = Watcher(drift)
    train(tmp_path, tiny_backbone("bert"), drift, watcher)
    assert watcher.measured == 3


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4, modules_to_save=["pooler"])])
def test_training_does_not_notice(tiny_backbone: TinyBackbone, tmp_path: Path, lora: LoraSettings | None) -> None:
    tasks = [
        train(tmp_path, tiny_backbone("bert"), *callbacks, lora=lora, max_steps=-1, max_epochs=2)
        for callbacks in ((), (RepresentationDrift(every_n_steps=2),))
    ]
    states = [task.state_dict() for task in tasks]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param(None, id="full"),
        pytest.param(LoraSettings(r=2, target_modules="attention", modules_to_save=["output.dense"]), id="saved"),
        pytest.param(LoraSettings(r=2, bias="all"), id="biases"),
    ],
)
def test_the_base_is_the_pretrained_model_also_after_resuming(
    tiny_backbone: TinyBackbone, tmp_path: Path, lora: LoraSettings | None
) -> None:
    backbone = tiny_backbone("bert")
    options: dict[str, Any] = {"lora": lora, "max_steps": -1, "enable_checkpointing": True}
    first = train(tmp_path / "a", backbone, RepresentationDrift(probe_size=8), **options, max_epochs=1)
    half = first.trainer.global_step
    last = next((tmp_path / "a").rglob("*.ckpt"))
    task = train(
        tmp_path / "b", backbone, RepresentationDrift(probe_size=8), **options, max_epochs=2, ckpt_path=str(last)
    )
    values = table(tmp_path / "b")
    assert {step for step, *_ in values} == {2 * half}
    base = exported(tmp_path / "b", "base")
    before = hidden_means(AutoModel.from_pretrained(backbone).eval(), task, base["rows"])
    for layer in range(LAYERS):
        np.testing.assert_allclose(base[f"layer.{layer}.output"], before[layer], atol=2e-6)
    assert values[2 * half, 1, "cosine"] < table(tmp_path / "a")[half, 1, "cosine"] < 0.9999


def test_what_a_variant_froze_stays_frozen_beside_every_monitor(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    listed = yaml.safe_load((ROOT / "configs/callbacks/all_monitors.yaml").read_text())["trainer"]["callbacks+"]
    names = [entry["class_path"] for entry in listed]
    assert {"FrozenBaseCheck", "RepresentationDrift"} < set(names)
    settings = OptimizationSettings(learning_rate=0.02, lorafa=True)
    task = SequenceClassificationTask(str(tiny_backbone("bert")), optimization=settings)
    train(tmp_path, tiny_backbone("bert"), *(getattr(callbacks, name)() for name in names), task=task)
    factors = {name: each for name, each in task.named_parameters() if "lora_A" in name}
    assert factors
    assert not any(each.requires_grad or each.grad is not None for each in factors.values())
    assert all(each.requires_grad for name, each in task.named_parameters() if "lora_B" in name)


def test_a_checkpoint_without_the_bases_states_is_said_so(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lora": None, "max_steps": -1, "enable_checkpointing": True}
    first = train(tmp_path / "a", tiny_backbone("bert"), RepresentationDrift(probe_size=9), **options, max_epochs=1)
    step = first.trainer.global_step
    with pytest.warns(UserWarning, match=f"compares with step {step}, from which this run resumes"):
        train(
            tmp_path / "b",
            tiny_backbone("bert"),
            RepresentationDrift(probe_size=8),  # other examples
            **options,
            max_epochs=2,
            ckpt_path=str(next((tmp_path / "a").rglob("*.ckpt"))),
        )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_in_its_own_folder_goes_on_in_its_table(
    tiny_backbone: TinyBackbone, tmp_path: Path, accumulate: int
) -> None:
    options: dict[str, Any] = {"max_steps": -1, "accumulate_grad_batches": accumulate}
    backbone, half = tiny_backbone("bert"), -(-9 // accumulate)
    # Not the step at which the first run had ended: one that had not would not measure there.
    due = [step for step in range(1, 2 * half + 1) if step % 2 == 0 or step == 2 * half]
    train(tmp_path, backbone, RepresentationDrift(2), **options, max_epochs=1, enable_checkpointing=True)
    last = str(next(tmp_path.rglob("*.ckpt")))
    for _ in range(2):  # the second time, what the first had measured after the checkpoint is measured anew
        train(tmp_path, backbone, RepresentationDrift(2), **options, max_epochs=2, ckpt_path=last)
        assert sorted({step for step, *_ in table(tmp_path)}) == due


def test_a_quantized_base_is_itself_the_base(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = SequenceClassificationTask(str(tiny_backbone("bert")))
    models = [four_bit(tiny_backbone("bert")) for _ in range(2)]
    config = LoraConfig(target_modules=["query", "value", "output.dense"], task_type="SEQ_CLS")
    task.network = get_peft_model(models[0], config).train()
    train(tmp_path, tiny_backbone("bert"), RepresentationDrift(probe_size=8), IntruderDimensions(), task=task)
    base = exported(tmp_path, "base")
    before = hidden_means(models[1].base_model.eval(), task, base["rows"])
    np.testing.assert_allclose(base["layer.1.output"], before[1], atol=1e-5)
    assert table(tmp_path)[3, 1, "cosine"] < 1 - 1e-7
    assert (
        pq.read_table(tmp_path / "adapter_metrics" / "intruder_dimensions.parquet").num_rows == 4 * 8 + 2
    )  # four layers twice, and all


def four_bit(backbone: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["classifier", "bert.pooler.dense"])
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=5, quantization_config=settings
    )
    assert type(model.bert.encoder.layer[0].attention.self.query).__name__ == "Linear4bit"
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # or an evaluation reorders the weights, and training fails
    return model


def test_checkpoints_of_adapters_stay_small(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    drift = RepresentationDrift()
    train(tmp_path, tiny_backbone("bert"), drift)
    assert drift.state_dict() == {"measured_at": 3}


def test_several_loggers_and_the_picture(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    board, rows = TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")
    train(tmp_path, tiny_backbone("bert"), RepresentationDrift(every_n_steps=1, export=False), logger=[board, rows])
    events = EventAccumulator(board.log_dir)
    events.Reload()
    tag = "weights/drift/cka"
    assert [event.step for event in events.Scalars(tag)] == [1, 2, 3]
    assert [event.step for event in events.Images("weights/drift/by_layer")] == [1, 2, 3]
    assert tag in (Path(rows.log_dir) / "metrics.csv").read_text()
    assert {step for step, *_ in table(Path(board.log_dir))} == {1, 2, 3}
    assert not (Path(board.log_dir) / "representations").exists()


def test_a_trial_run_writes_nothing(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    train(tmp_path, tiny_backbone("bert"), RepresentationDrift(), fast_dev_run=True)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "data_full.json"}


def test_bf16_weights(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = train(tmp_path, tiny_backbone("llama"), RepresentationDrift(probe_size=8), precision="bf16-true")
    base = exported(tmp_path, "base")
    assert base["layer.1.output"].dtype == torch.float32
    before = hidden_means(AutoModel.from_pretrained(tiny_backbone("llama")).eval(), task, base["rows"])
    np.testing.assert_allclose(base["layer.1.output"], before[1], atol=0.05)
    assert table(tmp_path)[3, 1, "cosine"] < 0.999


def test_the_probe_is_drawn_once_for_all() -> None:
    lengths = np.arange(100) % 17
    rows = probe_rows(lengths, 20)
    assert len(set(rows.tolist())) == 20
    assert rows.tolist() == probe_rows(lengths, 20).tolist()
    assert (np.diff(lengths[rows]) <= 0).all()
    assert sorted(probe_rows(lengths[:5], 20).tolist()) == [0, 1, 2, 3, 4]


def test_modes_come_back_one_by_one() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    with evaluation_mode(model):
        assert not model[0].training
    assert [model.training, model[0].training, model[1].training] == [True, True, False]


def test_the_picture_takes_any_values() -> None:
    values = {("cosine", 3, 5): 1.0, ("cosine", 3, 9): 0.4, ("cka", 3, 5): float("nan")}
    axes = drift_figure(values).axes
    assert axes[0].get_title() == "cosine with the base"


@pytest.mark.parametrize("layers", [1, 6, 32, 80])
def test_the_picture_fits_its_card(layers: int) -> None:
    metrics, steps = ("cosine", "cka"), (1000, 55_000, 100_000)
    values = {
        (metric, layer, step): 1 - layer / step for metric in metrics for layer in range(layers) for step in steps
    }
    assert_fits_its_card(drift_figure(values))


def test_misuse_is_one_clear_sentence(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="probe_size is 3, but it must be at least 4"):
        RepresentationDrift(probe_size=3)
    with pytest.raises(ConfigurationError, match=r"layers has 2, but .* has 2 layers; choose from 0 to 1"):
        train(tmp_path, tiny_backbone("distilbert"), RepresentationDrift(layers=[0, 2]))


@pytest.mark.parametrize("family", ["bart", "t5", "funnel"])
def test_layers_of_encoder_decoders_and_of_poolers(tmp_path: Path, family: str) -> None:
    save_tiny_model(family, tmp_path / "model")
    callback = RepresentationDrift(probe_size=4)
    task = train(tmp_path, tmp_path / "model", callback)
    rows = table(tmp_path)
    layers = layer_count(task.transformers_model.config)
    assert {layer for _, layer, _ in rows} == set(range(layers))
    assert all(0 < value <= 1.0001 for (_, _, metric), value in rows.items() if "cosine" in metric)


def test_the_mask_of_a_layer_that_pools_tokens() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    assert shortened_mask(mask, 8) is mask
    assert shortened_mask(mask, 4).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert shortened_mask(mask, 3).tolist() == [[1, 1, 0], [1, 1, 0]]
