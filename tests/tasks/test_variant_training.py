"""How variants train: LoRA+'s rates, LoRA-FA's projection, AdaLoRA's budget, EVA's start; resuming is exact."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from peft import AdaLoraConfig, LoraConfig, PeftModel
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from lora_lightning.backbones.export import export_model
from lora_lightning.callbacks import FrozenBaseCheck
from lora_lightning.datamodules import Clinc150DataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.variants import eva
from lora_lightning.lora.variants.adalora import (
    AdaLoraSettings,
    add_orthogonality_gradient,
    orthogonality,
    ranks_in_use,
)
from lora_lightning.lora.variants.eva import EvaSettings, start_from_directions
from lora_lightning.lora.variants.lora_fa import freeze_A, projection
from lora_lightning.tasks import OptimizationSettings, SequenceClassificationTask
from lora_lightning.tasks.optimization import build_optimizer, build_schedule, parameter_groups
from lora_lightning.tasks.training_facts import training_facts
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_data import save_tiny_clinc150
from tests.variants import logits_of, train_classifier

STEPS = 8
EPOCH = 9  # steps
BUDGET = AdaLoraSettings(target_r=1, init_r=3, tinit=2, tfinal=2, deltaT=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clinc150(tmp_path_factory.mktemp("data"))


def fit(
    backbone: Path,
    data: Path,
    folder: Path,
    steps: int = STEPS,
    batch_size: int = 8,
    total: int = STEPS,
    resume: Path | None = None,
    **kw: Any,
) -> tuple[SequenceClassificationTask, Trainer]:
    """Trains up to a step of a run that is planned for `total` steps."""
    seed_everything(0, verbose=False)
    module = Clinc150DataModule(
        backbone=str(backbone), data_dir=str(data), batch_size=batch_size, cache_dir=str(folder / "cache")
    )
    task = SequenceClassificationTask(str(backbone), base_dropout=0.0, **kw)
    task.resumes = resume is not None

    class StopAt(FrozenBaseCheck):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= steps

        def on_validation_end(self, trainer: Trainer, *_: Any) -> None:  # where this package saves
            if resume is None:
                trainer.save_checkpoint(folder / f"epoch{trainer.current_epoch}.ckpt")

    trainer = Trainer(
        max_steps=total,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[StopAt()],
        default_root_dir=str(folder),
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(task, module, ckpt_path=None if resume is None else str(resume), weights_only=True)
    return task, trainer


def state_of(task: SequenceClassificationTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def lora_model(classifier: TinyClassifier, **settings: Any) -> PeftModel:
    loaded = classifier("bert")
    made = LoraSettings(**{"r": 2, "lora_dropout": 0.0, "target_modules": "attention-qv", **settings})
    return attach_lora(loaded.model, made, loaded.lacked, "SEQ_CLS")


@pytest.mark.parametrize(
    "variant",
    [
        {"lora": LoraSettings(r=2, lora_dropout=0, init_lora_weights="pissa")},
        {"lora": LoraSettings(r=2, lora_dropout=0, init_lora_weights="eva")},
        {"lora": LoraSettings(lora_dropout=0, adalora=BUDGET)},
        {
            "lora": LoraSettings(r=2, lora_dropout=0, use_dora=True),
            "optimization": OptimizationSettings(loraplus_lr_ratio=4),
        },
        {"lora": LoraSettings(r=2, lora_dropout=0), "optimization": OptimizationSettings(lorafa=True)},
        {
            "lora": LoraSettings(r=2, lora_dropout=0, init_lora_weights="eva"),
            "optimization": OptimizationSettings(lorafa=True),
        },
        {"lora": None, "freeze_backbone": True},
    ],
    ids=["pissa", "eva", "adalora", "dora+loraplus", "lorafa", "eva+lorafa", "head only"],
)
def test_a_resumed_run_ends_as_one_that_never_stopped(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, variant: dict[str, Any]
) -> None:
    variant.setdefault("optimization", OptimizationSettings(learning_rate=0.02))
    backbone = tiny_backbone("bert")
    total = 2 * EPOCH
    whole, _ = fit(backbone, data, tmp_path, steps=total, total=total, **variant)
    resumed, trainer = fit(
        backbone, data, tmp_path, steps=total, total=total, resume=tmp_path / "epoch0.ckpt", **variant
    )
    assert trainer.global_step == total
    expected = state_of(whole)
    for name, tensor in state_of(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_loraplus_groups_are_pefts(tiny_classifier: TinyClassifier) -> None:
    model = lora_model(tiny_classifier, bias="lora_only")
    settings = OptimizationSettings(learning_rate=1e-3, loraplus_lr_ratio=16, weight_decay=0.1)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )

    def by_parameter(groups: Any) -> dict[int, tuple[float, float]]:
        return {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}

    assert by_parameter(parameter_groups(model, settings)) == by_parameter(theirs.param_groups)


def test_loraplus_keeps_its_ratio_under_a_schedule(tiny_classifier: TinyClassifier) -> None:
    settings = OptimizationSettings(learning_rate=1e-3, loraplus_lr_ratio=16, schedule="cosine", warmup_share=0.2)
    optimizer = build_optimizer(lora_model(tiny_classifier), settings)
    schedule = build_schedule(optimizer, settings, 20)
    for _ in range(19):
        optimizer.step()
        schedule.step()
        slow, fast = (group["lr"] for group in optimizer.param_groups[:2])
        assert fast == pytest.approx(16 * slow)


def test_magnitudes_learn_faster_too_and_never_decay(tiny_classifier: TinyClassifier) -> None:
    model = lora_model(tiny_classifier, use_dora=True)
    groups = parameter_groups(model, OptimizationSettings(learning_rate=1.0, loraplus_lr_ratio=3, weight_decay=0.1))
    group = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    magnitudes = [p for name, p in model.named_parameters() if "magnitude" in name]
    assert magnitudes
    assert {group[id(p)] for p in magnitudes} == {(3.0, 0.0)}


def test_lorafa_steps_as_pefts_optimizer_does(tiny_classifier: TinyClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT rounds to bfloat16 where it can; here it is told that it cannot."""
    monkeypatch.setattr("peft.optimizers.lorafa.is_bf16_available", lambda: False)
    ours, theirs = lora_model(tiny_classifier), lora_model(tiny_classifier)
    theirs.load_state_dict(ours.state_dict())
    freeze_A(ours)
    settings = OptimizationSettings(learning_rate=0.01, weight_decay=0.0, lorafa=True)
    optimizers = (build_optimizer(ours, settings), create_lorafa_optimizer(theirs, 2, 16, 0.01))
    tokens = torch.arange(5, 25).view(2, 10)
    for _ in range(4):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            (1e8 * model.eval()(input_ids=tokens, labels=torch.tensor([0, 2])).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, mine), peers in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if "lora_B" in name:
            assert mine.abs().max() > 0.01
            torch.testing.assert_close(mine, peers, rtol=0.02, atol=1e-4)  # its epsilon is 1e-6, AdamW's 1e-8
        elif "lora_A" in name:
            assert torch.equal(mine, peers)


def test_lorafas_projection_is_the_least_squares_solution(tiny_classifier: TinyClassifier) -> None:
    """The minimum over g of || s g A - G ||_F, for any gradient G of W, in NumPy float64; dL/dB is s G A^T."""
    layer = next(iter(adapted_layers(lora_model(tiny_classifier)).values()))
    a = layer.lora_A["default"].weight.detach().double().numpy()
    s = layer.scaling["default"]
    gradient = np.random.default_rng(0).normal(size=(layer.out_features, layer.in_features))
    best = np.linalg.lstsq(s * a.T, gradient.T, rcond=None)[0].T
    _, matrix = projection(layer)
    np.testing.assert_allclose(s * gradient @ a.T @ matrix.double().numpy(), best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("frozen", [False, True])
def test_lorafa_keeps_no_input_of_a_layer(tiny_classifier: TinyClassifier, dropout: float, frozen: bool) -> None:
    """Its claim: nothing of an adapted layer's input is needed for the backward pass; dropout needs its mask."""
    model = lora_model(tiny_classifier, lora_dropout=dropout)
    fuse_lora_layers(model)
    if frozen:
        freeze_A(model)
    layer = next(iter(adapted_layers(model).values())).train()
    x = torch.randn(5, layer.in_features, requires_grad=True)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in saved) is not frozen
    assert any(tensor.shape == x.shape for tensor in saved) is (not frozen or dropout > 0)
    y.sum().backward()
    assert x.grad is not None
    assert (layer.lora_A["default"].weight.grad is None) is frozen


def test_adalora_lowers_its_ranks_to_the_budget(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path) -> None:
    task, _ = fit(
        tiny_backbone("bert"),
        data,
        tmp_path,
        lora=LoraSettings(adalora=BUDGET),
        optimization=OptimizationSettings(learning_rate=0.02),
    )
    ranks = ranks_in_use(task)
    assert sum(ranks.values()) == len(ranks)  # target_r is 1
    assert task.adapted_network.peft_config["default"].total_step == STEPS


class Importances(Callback):
    """Notes after each step whether AdaLoRA's importances are finite, and the scale of the loss."""

    def __init__(self) -> None:
        self.finite: list[bool] = []
        self.scales: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        allocator = pl_module.adapted_network.base_model.rankallocator  # type: ignore[union-attr]
        values = [*allocator.exp_avg_ipt.values(), *allocator.exp_avg_unc.values()]
        self.finite.append(all(bool(value.isfinite().all()) for value in values))
        self.scales.append(trainer.precision_plugin.scaler.get_scale())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("scale", "rank"), [(2.0**22, 1), (2.0**60, 3)], ids=["some", "every one"])
def test_adalora_chooses_no_ranks_by_steps_that_float16_skips(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, scale: float, rank: int
) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    noted = Importances()
    settings = {"lora": LoraSettings(adalora=BUDGET), "optimization": OptimizationSettings(learning_rate=0.02)}
    options: dict[str, Any] = {"callbacks": [noted], "plugins": [plugin], "steps": STEPS}
    with pytest.warns(UserWarning, match=r"16-mixed skipped an optimizer step, because gradients were infinite"):
        task, _ = train_classifier(tiny_backbone("bert"), data, tmp_path, settings, **options)
    assert all(noted.finite)
    assert len(set(noted.scales)) > 1
    assert (noted.scales[-1] == noted.scales[-2]) is (rank == 1)  # the last steps were none that was skipped
    ranks = ranks_in_use(task)
    assert sum(ranks.values()) == rank * len(ranks)


def test_float16_skips_no_step_because_the_loss_is_a_sum(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path
) -> None:
    scaler = torch.amp.GradScaler("cpu")
    options: dict[str, Any] = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)], "steps": 3}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "trainer.precision 16-mixed skipped")
        train_classifier(tiny_backbone("bert"), data, tmp_path, {}, **options)
    assert scaler.get_scale() == 2.0**16 / 8  # batches of 8 rows


def test_adaloras_loss_is_pefts(tiny_classifier: TinyClassifier) -> None:
    """The gradient added to the task's is that of the loss to which PEFT adds its regularization."""
    grads = []
    tokens = torch.arange(5, 25).view(2, 10)
    for own in (True, False):
        model = lora_model(tiny_classifier, r=8, adalora=BUDGET).eval()
        with torch.no_grad():
            torch.manual_seed(3)
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter))
        labels = torch.tensor([0, 2])
        if own:
            logits = model(input_ids=tokens).logits
            nn.functional.cross_entropy(logits, labels).backward()
            value = add_orthogonality_gradient(model, 0.5)
        else:
            model(input_ids=tokens, labels=labels).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
    assert float(value) == pytest.approx(float(orthogonality(model)))


def test_orthogonality_in_numpy(tiny_classifier: TinyClassifier) -> None:
    model = lora_model(tiny_classifier, r=8, adalora=BUDGET)
    norms = []
    for layer in adapted_layers(model).values():
        a, b = (getattr(layer, name)["default"].detach().double().numpy() for name in ("lora_A", "lora_B"))
        norms += [np.linalg.norm(gram - np.eye(3)) for gram in (a @ a.T, b.T @ b)]
    assert float(orthogonality(model)) == pytest.approx(np.mean(norms), rel=1e-5)


@pytest.mark.parametrize(("changes", "named"), [({"tinit": 5, "tfinal": 3}, "tinit 5 and tfinal 3, together 8")])
def test_a_budget_without_a_step_is_refused_before_weights_load(
    tiny_backbone: TinyBackbone,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    named: str,
) -> None:
    monkeypatch.setattr(SequenceClassificationTask, "build_network", lambda _: pytest.fail("weights were loaded"))
    budget = AdaLoraSettings(target_r=1, init_r=3, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=f"{named}, but training takes 8 optimizer steps"):
        fit(tiny_backbone("bert"), data, tmp_path, lora=LoraSettings(adalora=budget))


def test_eva_starts_with_the_principal_directions_of_the_data(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path
) -> None:
    """The first layer's input has no adapter before it: its directions are those of an SVD of all rows in NumPy."""
    lora = LoraSettings(
        r=2, init_lora_weights="eva", eva_config=EvaSettings(rho=1.0, tau=0.999), target_modules="attention-qv"
    )
    task, trainer = fit(tiny_backbone("bert"), data, tmp_path, steps=0, total=1, batch_size=72, lora=lora)
    del trainer
    name, layer = next(iter(adapted_layers(task).items()))
    rows: list[Tensor] = []
    network = task.built_network.eval()
    module = Clinc150DataModule(
        backbone=str(tiny_backbone("bert")), data_dir=str(data), batch_size=72, cache_dir=str(tmp_path / "cache")
    )
    module.setup("fit")
    handle = layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].detach()))
    with torch.no_grad():
        for batch in module.train_dataloader():
            network(**task.model_inputs(batch))
            rows[-1] = rows[-1][batch["attention_mask"].bool()]
    handle.remove()
    x = torch.cat(rows).double().numpy()
    _, _, vh = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    a = layer.lora_A["default"].weight.detach().double().numpy()
    cosines = np.linalg.svd(a @ vh[:2].T, compute_uv=False)  # of the angles between both planes
    assert "layer.0" in name
    assert cosines.min() > 0.95


def test_eva_takes_the_inputs_of_a_pooler(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path) -> None:
    """They are a slice of the hidden states, which lie apart in memory."""
    backbone = Path(shutil.copytree(tiny_backbone("bert"), tmp_path / "with_pooler"))
    BertModel(BertConfig.from_pretrained(backbone)).save_pretrained(backbone)
    own = EvaSettings(rho=1.0)
    lora = LoraSettings(r=2, init_lora_weights="eva", eva_config=own, target_modules=["query", "pooler.dense"])
    task, _ = fit(backbone, data, tmp_path, steps=0, total=1, lora=lora)
    assert any(name.endswith("pooler.dense") for name in ranks_in_use(task))


def test_eva_shares_out_the_ranks_and_looks_at_the_data_once(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraSettings(r=2, init_lora_weights="eva", eva_config=EvaSettings(rho=2.0))
    task, trainer = fit(tiny_backbone("bert"), data, tmp_path, lora=lora)
    ranks = ranks_in_use(task)
    assert sum(ranks.values()) == 2 * 12
    assert len(set(ranks.values())) > 1
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for n, p in task.named_parameters() if "lora_" in n)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.setattr(eva, "directions_of_data", lambda *_: pytest.fail("looked again"))
    again = SequenceClassificationTask.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert ranks_in_use(again) == ranks
    fit(tiny_backbone("bert"), data, tmp_path, total=STEPS + 1, steps=STEPS + 1, resume=tmp_path / "a.ckpt", lora=lora)


def test_eva_leaves_every_layer_its_scaling(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path) -> None:
    for rslora, scaling in ((False, 3 / 2), (True, 3 / 2**0.5)):
        lora = LoraSettings(r=2, lora_alpha=3, init_lora_weights="eva", use_rslora=rslora)
        task, _ = fit(tiny_backbone("bert"), data, tmp_path, steps=0, lora=lora)
        assert len(set(ranks_in_use(task).values())) > 1
        for layer in adapted_layers(task).values():
            assert layer.scaling["default"] == pytest.approx(scaling)


def test_eva_looks_at_the_data_on_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning tells the task its device only after the model is made."""
    devices, handed_on = [], []

    def directions_of_data(_network: Any, loader: list[dict[str, Tensor]], run: Any) -> dict[str, Tensor]:
        run(loader[0])
        return {"layer": torch.empty(2, 3, device="meta").to("meta")}

    class Strategy:
        root_device = torch.device("meta")

        def broadcast(self, value: Any) -> Any:
            handed_on.append(value)
            return value

    monkeypatch.setattr(eva, "directions_of_data", directions_of_data)
    monkeypatch.setattr(eva, "start_from_directions", lambda *_: None)
    monkeypatch.setattr(eva, "adapted_layers", lambda _: {"layer": None})
    monkeypatch.setattr(eva, "adapter_factors", lambda _: (torch.zeros(2, 3), torch.zeros(3, 2)))
    network: Any = nn.Linear(3, 2)
    task: Any = SimpleNamespace(device=torch.device("cpu"), modules=list)
    task.evaluate = lambda batch: devices.append(batch["input_ids"].device.type)
    loaders = SimpleNamespace(train_dataloader=lambda: [{"input_ids": torch.zeros(2, 3)}])
    trainer: Any = SimpleNamespace(strategy=Strategy(), is_global_zero=True, datamodule=loaders)
    monkeypatch.setattr(Tensor, "cpu", lambda self: torch.zeros(self.shape))  # values of meta do not move
    eva.Eva().before_training(network, training_facts(task, trainer, resumes=False))
    assert devices == [network.weight.device.type] == ["meta"]
    assert [value.device.type for value in handed_on[0].values()] == ["cpu"]


def test_a_layer_that_eva_leaves_out_is_not_exported(
    tiny_classifier: TinyClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many targets PEFT keeps the ends of their names, which are those of the left out layer too."""
    monkeypatch.setattr("peft.tuners.lora.eva.MIN_TARGET_MODULES_FOR_OPTIMIZATION", 2)
    model = lora_model(tiny_classifier, init_lora_weights="eva")
    names = list(adapted_layers(model))
    ranks = dict(zip(names, (0, 3, 2, 3), strict=True))
    directions = {f"base_model.model.{name}": torch.randn(rank, 32) for name, rank in ranks.items()}
    start_from_directions(model, directions)
    export_model(model, None, tmp_path / "adapter", {})
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["target_modules"] == sorted(names[1:])
    assert config["init_lora_weights"] is True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        plain = PeftModel.from_pretrained(tiny_classifier("bert").model, tmp_path / "adapter")
    assert torch.equal(logits_of(plain), logits_of(model))
    assert list(adapted_layers(plain)) == names[1:]


def test_eva_that_never_settles_is_one_sentence(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eva, "MOST_BATCHES", 3)
    lora = LoraSettings(r=2, init_lora_weights="eva", eva_config=EvaSettings(tau=1.0))
    with pytest.raises(ConfigurationError, match="EVA's directions had not settled after"):
        fit(tiny_backbone("bert"), data, tmp_path, lora=lora)


def test_eva_on_batches_without_enough_rows_gives_up_after_a_pass_over_the_data(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path
) -> None:
    lora = LoraSettings(r=31, init_lora_weights="eva", eva_config=EvaSettings(rho=1.0), target_modules=["query"])
    with pytest.raises(ConfigurationError, match=f"after {EPOCH * 8} batches, which brought a layer \\d+ rows at most"):
        fit(tiny_backbone("bert"), data, tmp_path, batch_size=1, lora=lora)


def test_doras_magnitude_in_numpy(tiny_classifier: TinyClassifier) -> None:
    """Equation 5 of arXiv 2402.09353: y = m (W + s B A) / ||W + s B A|| x, row by row; at the start y = W x."""
    model = lora_model(tiny_classifier, use_dora=True).double().eval()
    layer = next(iter(adapted_layers(model).values()))
    generator = np.random.default_rng(0)
    weight = layer.get_base_layer().weight.detach().numpy()
    bias = layer.get_base_layer().bias.detach().numpy()
    x = generator.normal(size=(4, weight.shape[1]))
    with torch.no_grad():
        np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), x @ weight.T + bias, rtol=1e-6, atol=1e-9)
        a, b = generator.normal(size=(2, weight.shape[1])), generator.normal(size=(weight.shape[0], 2))
        magnitude = generator.uniform(1, 2, size=weight.shape[0])
        layer.lora_A["default"].weight.copy_(torch.from_numpy(a))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(b))
        layer.lora_magnitude_vector["default"].weight.copy_(torch.from_numpy(magnitude))
        direction = weight + layer.scaling["default"] * b @ a
        expected = x @ (magnitude[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)).T + bias
        np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_frozen_base_check_covers_lorafas_a(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path) -> None:
    fa = OptimizationSettings(lorafa=True)
    task, _ = fit(tiny_backbone("bert"), data, tmp_path, lora=LoraSettings(r=2), optimization=fa)
    assert not [name for name, p in task.named_parameters() if "lora_A" in name and p.requires_grad]
    assert any("lora_A" in name for name in task.saved_names())


def test_peft_itself_needs_no_more(tiny_classifier: TinyClassifier) -> None:
    """The settings reach PEFT's own configuration."""
    model = lora_model(
        tiny_classifier, use_dora=True, use_rslora=True, rank_pattern={"query": 4}, alpha_pattern={"value": 3}
    )
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    assert (config.use_dora, config.use_rslora) == (True, True)
    scalings = {name.rsplit(".", 1)[-1]: layer.scaling["default"] for name, layer in adapted_layers(model).items()}
    assert scalings == pytest.approx({"query": 16 / 4**0.5, "value": 3 / 2**0.5})
    adalora = lora_model(tiny_classifier, r=8, adalora=BUDGET).peft_config["default"]
    assert isinstance(adalora, AdaLoraConfig)
    assert (adalora.init_r, adalora.target_r, adalora.deltaT) == (3, 1, 2)
