"""Ranks under a budget: what is written trains exactly the ranks and parameters that were announced."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from lora_lightning import RunRecord
from lora_lightning.artefacts import Allocation, allocate, allocating, measured_layers, saved_updates
from lora_lightning.artefacts.allocating import shuffle_ranks
from lora_lightning.errors import CheckpointError, ConfigurationError, VerificationError
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.parameter_names import ADAPTER, is_adapter_parameter
from lora_lightning.tasks import SequenceClassificationTask
from lora_lightning.training.commands import prepare_command
from tests.artefacts.runs import train_tiny_run
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

PATTERNS = {"rank_pattern": {"query": 5, "layer.1.output.dense": 3}, "alpha_pattern": {"value": 7.0}}


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A classifier of intents with patterns and rsLoRA."""
    options = {f"model__lora__{name}": value for name, value in PATTERNS.items()}
    folder = tmp_path_factory.mktemp("intents")
    return train_tiny_run(
        "intents", tiny_backbone("bert"), folder, model__lora__r=4, model__lora__use_rslora=True, **options
    )


def config_of(backbone: Path, folder: Path, **lora: Any) -> dict[str, Any]:
    """A config of `fit` for a classifier of intents."""
    data = {"data_dir": str(save_tiny_clinc150(folder / "data")), "cache_dir": str(folder / "cache"), "batch_size": 8}
    more = {name: lora.pop(name) for name in ("optimization", "quantization") if name in lora}
    options = {"backbone": str(backbone), "lora": {"r": 4, **lora}, **more}
    return {
        "model": {"class_path": "SequenceClassificationTask", "init_args": options},
        "data": {"class_path": "Clinc150DataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "logger": False, "max_epochs": 1, "default_root_dir": str(folder)},
    }


def network_of(*configs: dict[str, Any] | Path) -> Any:
    """The model that `fit` would train."""
    words = [f"--config={yaml.safe_dump(each) if isinstance(each, dict) else each}" for each in configs]
    cli = prepare_command("fit", [*words, "--trainer.logger=false"])
    cli.datamodule.check_splits("fit")
    cli.model.adopt_labels(cli.datamodule.label_space)
    cli.model.configure_model()
    return cli.model.adapted_network


def check_announced(network: Any, found: Allocation, scalings: dict[str, float]) -> None:
    """Ranks, scalings and the number of trainable adapter parameters are those of the allocation."""
    layers = adapted_layers(network)
    assert {name: len(adapter_factors(layer)[0]) for name, layer in layers.items()} == found.ranks
    for name, layer in layers.items():
        assert layer.scaling[ADAPTER] == pytest.approx(scalings[name], rel=1e-9)
    trainable = [
        parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and is_adapter_parameter(name)
    ]
    assert sum(trainable) == found.parameters <= found.budget


def scalings_of(network: Any) -> dict[str, float]:
    return {name: float(layer.scaling[ADAPTER]) for name, layer in adapted_layers(network).items()}


def test_a_run_decides_by_the_spectrum_of_its_updates(run: RunRecord, tmp_path: Path) -> None:
    found = allocate(run.folder, budget="r=2", output=tmp_path / "ranks.yaml")
    base = AutoModelForSequenceClassification.from_pretrained(
        run.settings["model"]["init_args"]["backbone"], num_labels=5
    )
    assert run.adapter is not None
    trained = adapted_layers(PeftModel.from_pretrained(base, str(run.adapter)))
    gains = []
    for name, layer in trained.items():
        dense = layer.get_delta_weight(ADAPTER).detach().double().numpy()
        values = np.linalg.svd(dense, compute_uv=False)[: layer.r[ADAPTER]]
        gains += [(value**2 / sum(dense.shape), name) for value in values[1:]]
    left = found.budget - sum(sum(layer.get_delta_weight(ADAPTER).shape) for layer in trained.values())
    ranks = dict.fromkeys(trained, 1)
    for _, name in sorted(gains, reverse=True):  # by hand
        cost = sum(trained[name].get_delta_weight(ADAPTER).shape)
        if cost <= left:
            ranks[name], left = ranks[name] + 1, left - cost
    assert found.ranks == ranks
    assert len(set(ranks.values())) > 1
    assert found.kept > found.uniform_kept
    config = run.settings
    config["trainer"]["logger"] = False
    check_announced(network_of(config, found.output), found, scalings_of(network_of(config)))
    assert found.picture.read_bytes()[:4] == b"\x89PNG"
    written = found.output.read_text()
    assert written == found.config()
    json.dumps(found.as_json())


@pytest.mark.parametrize(
    "lora",
    [
        {"lora_alpha": 7.0},
        {"use_dora": True, **PATTERNS},
        {"use_rslora": True, "layers_to_transform": [1]},
        {"init_lora_weights": "pissa"},
        {"optimization": {"lorafa": True}},
        {"quantization": {"bits": 4}},
    ],
    ids="-".join,
)
def test_gradients_decide_before_training(
    lora: dict[str, Any], tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_backbone("bert"), tmp_path, **lora)
    lines: list[str] = []
    count, counted = measured_layers._with_costs, []
    monkeypatch.setattr(measured_layers, "_with_costs", lambda *given: (counted.append(given[2]), count(*given))[1])
    found = allocate(config=config, budget="r=3", output=tmp_path / "r.yaml", batches=2, report=lines.append)
    assert lines[0].endswith("layers over 2 batches, in three passes")
    assert len(set(found.ranks.values())) > 1
    assert len(counted) == 3
    assert counted[0] == counted[1] == counted[2]  # without weights, before and after measuring
    assert {path.name for path in tmp_path.iterdir()} == {"data", "cache", "r.yaml", "r.png"}
    check_announced(network_of(config, found.output), found, scalings_of(network_of(config)))


PAIRS_ALONE: dict[str, Any] = {
    "target_modules": ["query", "value"],
    "exclude_modules": ["layer.0.attention.self.value"],
    "use_rslora": True,
    "use_dora": True,
}
LAST_LAYER: dict[str, Any] = {
    "layers_to_transform": [1],
    "layers_pattern": "layer",
    "init_lora_weights": "pissa",
    "optimization": {"lorafa": True},
}


@pytest.mark.parametrize(
    ("measured", "others"),
    [(PAIRS_ALONE, [LAST_LAYER, {"adalora": {"target_r": 2, "init_r": 3}}]), (LAST_LAYER, [PAIRS_ALONE])],
    ids=["pairs", "last layer"],
)
def test_another_base_config_trains_what_was_allocated(
    measured: dict[str, Any], others: list[dict[str, Any]], tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    config = config_of(tiny_backbone("bert"), tmp_path, **measured)
    found = allocate(config=config, budget="r=3", output=tmp_path / "r.yaml", batches=1)
    scalings = scalings_of(network_of(config))
    for other in others:
        base = config_of(tiny_backbone("bert"), tmp_path, **other)
        check_announced(network_of(base, found.output), found, scalings)


def test_the_gradients_are_those_of_the_frozen_weights(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    """Dense gradients of all batches by autograd, in float64."""
    config = config_of(tiny_backbone("bert"), tmp_path, target_modules=["query", "output.dense"])
    seen: dict[str, Any] = {}

    class Meter(measured_layers._GradientMeter):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            weights = {
                name: layer.get_base_layer().weight for name, layer in adapted_layers(pl_module.adapted_network).items()
            }
            for weight in weights.values():
                weight.requires_grad_(requires_grad=True)
            sums = {name: np.zeros(tuple(weight.shape)) for name, weight in weights.items()}
            batches = list(trainer.datamodule.train_dataloader())[:2]
            for layer in adapted_layers(pl_module.adapted_network).values():
                layer._disable_adapters = True  # the plain layers of PEFT, whose weights get gradients
            for number, batch in enumerate(batches):
                gradients = torch.autograd.grad(pl_module.training_step(batch, number), list(weights.values()))
                for name, gradient in zip(weights, gradients, strict=True):
                    sums[name] += gradient.double().numpy()
            seen["values"] = {name: np.linalg.svd(dense, compute_uv=False) for name, dense in sums.items()}
            seen["measured"] = self.measured

    original = measured_layers._GradientMeter
    measured_layers._GradientMeter = Meter  # type: ignore[misc]
    try:
        allocate(config=config, budget="r=2", output=tmp_path / "r.yaml", batches=2)
    finally:
        measured_layers._GradientMeter = original  # type: ignore[misc]
    for name, values in seen["values"].items():
        spectrum = seen["measured"].spectra[name].numpy()
        np.testing.assert_allclose(spectrum, values[: len(spectrum)], atol=1e-4 * values[0])


def test_a_run_that_has_not_finished_is_named(run: RunRecord, tmp_path: Path) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(run.folder, unfinished)
    (unfinished / "summary.json").unlink()
    with pytest.warns(UserWarning, match="its training has not finished: the adapter is that of step"):
        allocate(unfinished, budget="r=2", output=tmp_path / "ranks.yaml")


def test_shuffled_ranks_are_the_same_ones_elsewhere(run: RunRecord, tmp_path: Path) -> None:
    found = allocate(run.folder, budget="r=2", output=tmp_path / "a.yaml")
    control = allocate(run.folder, budget="r=2", output=tmp_path / "b.yaml", shuffled=3)
    again = allocate(run.folder, budget="r=2", output=tmp_path / "c.yaml", shuffled=3)
    assert control.ranks == again.ranks != found.ranks
    assert sorted(control.ranks.values()) == sorted(found.ranks.values())
    assert control.parameters == found.parameters
    assert "shuffled over layers of the same shape (seed 3)" in control.output.read_text()


def test_nothing_to_shuffle_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="layers of the same shape all have the same rank"):
        shuffle_ranks({"a": 1, "b": 1, "c": 2}, {"a": (2, 2), "b": (2, 2), "c": (2, 3)}, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither RUN nor --config are given"),
        ({"run": "RUN", "config": "x.yaml"}, "both RUN and --config are given"),
        ({"run": "RUN", "batches": 3}, "--batches applies to gradients"),
        ({"run": "RUN", "overrides": {"model.lora.r": 3}}, "--model.lora.r applies to gradients"),
        ({"config": "x.yaml", "batches": 0}, "--batches is 0, but at least 1"),
        ({"run": "RUN", "shuffled": -1}, "--shuffled is -1"),
        ({"run": "RUN", "budget": "r8"}, "--budget is 'r8', but it must be a number"),
        ({"run": "RUN", "budget": -5}, "--budget is '-5'"),
        ({"run": "RUN", "budget": 10}, "--budget is 10 trainable adapter parameters, below "),
        ({"run": "RUN", "budget": "r=100"}, "which the ranks of the run .* take; lower it"),
        ({"run": "RUN", "output": "ranks.json"}, "ends in .yaml"),
        ({"run": "RUN", "output": "nowhere/ranks.yaml"}, "is not a writable folder"),
        ({"run": "nothing"}, "nothing is not a run folder"),
        ({"config": "nothing.yaml"}, "nothing.yaml"),
    ],
)
def test_mistakes_are_a_sentence(
    options: dict[str, Any], message: str, run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if options.get("run") == "RUN":
        options = {**options, "run": run.folder}
    with pytest.raises((ConfigurationError, CheckpointError), match=message):
        allocate(**{"budget": "r=2", "output": "ranks.yaml", **options})
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_unless_told_otherwise(
    run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "ranks.yaml"
    output.with_suffix(".png").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"would replace .*ranks.png"):
        allocate(run.folder, budget="r=2", output=output)
    assert output.with_suffix(".png").read_text() == "mine"
    allocate(run.folder, budget="r=2", output=output, overwrite=True)
    with pytest.raises(ConfigurationError, match=r"would replace .*ranks.yaml"):
        allocate(run.folder, budget="r=2", output=output)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(allocating, "write_text_atomically", lambda *_: (_ for _ in ()).throw(full))
    other = tmp_path / "other.yaml"
    with pytest.raises(ConfigurationError, match="cannot be written \\(no space left on device\\)"):
        allocate(run.folder, budget="r=2", output=other)
    assert not other.exists()
    assert not other.with_suffix(".png").exists()
    former = {path: path.read_bytes() for path in (output, output.with_suffix(".png"))}
    with pytest.raises(ConfigurationError, match="cannot be written"):
        allocate(run.folder, budget="r=3", output=output, overwrite=True)
    assert {path: path.read_bytes() for path in former} == former


def test_the_config_of_the_measured_run_is_not_replaced(run: RunRecord) -> None:
    config = run.folder / "config.yaml"
    former = config.read_bytes()
    with pytest.raises(ConfigurationError, match=r"config.yaml, a file of the run that is read"):
        allocate(run.folder, budget="r=2", output=config, overwrite=True)
    assert config.read_bytes() == former


def test_the_uniform_rank_is_the_largest_that_fits(run: RunRecord, tmp_path: Path) -> None:
    found = allocate(run.folder, budget="r=1", output=tmp_path / "one.yaml")
    costs = {layer.name: layer.parameters // layer.rank for layer in found.layers}
    limits = {name: 3 if name.endswith("layer.1.output.dense") else 5 if "query" in name else 4 for name in costs}
    budget = sum(cost * min(limits[name], 4) for name, cost in costs.items())
    assert budget < 4 * sum(costs.values())
    assert allocate(run.folder, budget=budget, output=tmp_path / "four.yaml").uniform == 4


def test_layers_of_a_run_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layer.{number}.query" for number in range(12)]
    factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(4, 2)}
    weights = {
        f"base_model.model.{name}.{part}.weight": factor.clone() for name in names for part, factor in factors.items()
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2}))
    assert list(saved_updates.read_adapter_weights(tmp_path)) != list(weights)
    assert [each.module for each in saved_updates.saved_updates(tmp_path)] == names


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (None, r"has no adapters \(model.lora: null\)"),
        ({"adalora": {"target_r": 2, "init_r": 3}}, "sets model.lora.adalora, which chooses ranks itself"),
        ({"init_lora_weights": "orthogonal"}, "orthogonal, which needs even ranks"),
        ({"init_lora_weights": "eva"}, "sets model.lora.init_lora_weights eva, which chooses ranks itself"),
        (
            {"target_parameters": ["experts.down_proj"], "lora_dropout": 0.0},
            r"adapts experts \(model.lora.target_parameters\)",
        ),
        ({"r": 2}, "--budget is .* above .*, which full ranks take"),
    ],
)
def test_settings_without_free_ranks_are_refused_before_weights_load(
    lora: dict[str, Any] | None,
    message: str,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SequenceClassificationTask, "build_network", lambda _: pytest.fail("weights are loaded"))
    config = config_of(tiny_backbone("bert"), tmp_path)
    config["model"]["init_args"]["lora"] = lora
    with pytest.raises(ConfigurationError, match=message):
        allocate(config=config, budget="r=1000", output=tmp_path / "ranks.yaml", batches=1)
    assert not (tmp_path / "ranks.yaml").exists()


def test_an_adapter_that_changes_nothing_cannot_decide(
    run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = saved_updates.read_adapter_weights
    monkeypatch.setattr(
        saved_updates,
        "read_adapter_weights",
        lambda folder: {name: 0 * value for name, value in read(folder).items()},
    )
    with pytest.raises(VerificationError, match="are all zero, so they cannot choose ranks"):
        allocate(run.folder, budget="r=2", output=tmp_path / "ranks.yaml")
