"""The norms that a run shows are NumPy's; gradients are those of a whole step, before clipping."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_lightning.callbacks import AdapterNormMonitor
from lora_lightning.figures.histograms import BINS
from lora_lightning.lora.delta import adapted_layers, adapter_factors, pretrained_weight
from tests.callbacks.test_merge_equivalence import fit, fit_quantized
from tests.conftest import TinyBackbone

Numbers = dict[int, dict[tuple[str, str], float]]


def numbers(folder: Path) -> Numbers:
    """What the table holds: value by module and metric, by step."""
    (path,) = folder.rglob("adapter_norms.parquet")
    found: Numbers = {}
    for row in pq.read_table(path).to_pylist():
        assert (row["module"], row["metric"]) not in found.setdefault(row["step"], {})
        found[row["step"]][row["module"], row["metric"]] = row["value"]
    return found


def test_a_runs_last_numbers_are_those_of_its_weights(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = fit("intents", tiny_backbone("bert"), tmp_path, AdapterNormMonitor())
    found = numbers(tmp_path)[4]
    layers = adapted_layers(task)
    squares = {"A": 0.0, "dW": 0.0, "W": 0.0}
    for name, layer in layers.items():
        a, b = (factor.detach().double().numpy() for factor in adapter_factors(layer))
        weight = layer.get_base_layer().weight.detach().double().numpy()
        dense = layer.scaling["default"] * b @ a
        for letter, factor in (("A", a), ("B", b)):
            assert found[name, f"{letter}_norm"] == pytest.approx(np.linalg.norm(factor))
            assert found[name, f"{letter}_mean"] == pytest.approx(factor.mean())
            assert found[name, f"{letter}_std"] == pytest.approx(factor.std())
        assert found[name, "delta_norm"] == pytest.approx(np.linalg.norm(dense), rel=1e-5)
        ratio = np.linalg.norm(dense) / np.linalg.norm(weight)
        assert found[name, "relative_delta_norm"] == pytest.approx(ratio, rel=1e-5)
        for key, matrix in (("A", a), ("dW", dense), ("W", weight)):
            squares[key] += np.linalg.norm(matrix) ** 2
    assert found["all", "A_norm"] == pytest.approx(squares["A"] ** 0.5)
    assert found["all", "delta_norm"] == pytest.approx(squares["dW"] ** 0.5, rel=1e-5)
    assert found["all", "relative_delta_norm"] == pytest.approx((squares["dW"] / squares["W"]) ** 0.5, rel=1e-5)
    assert len(found) == 10 * (len(layers) + 1)


class GradientsOfTheStep(Callback):
    """The gradients after each batch's backward pass; of a step's last batch they are sums over the step's rows."""

    def __init__(self) -> None:
        self.norms: dict[int, dict[str, float]] = {}
        self.rows: dict[int, int] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        del pl_module, batch_idx
        step = trainer.global_step + 1
        self.rows[step] = self.rows.get(step, 0) + len(batch["input_ids"])

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        step = trainer.global_step + 1
        self.norms[step] = {
            f"{name}/{letter}": float(np.linalg.norm(factor.grad.double().numpy())) / self.rows[step]
            for name, layer in adapted_layers(pl_module).items()
            for letter, factor in zip("AB", adapter_factors(layer), strict=True)
        }


@pytest.mark.parametrize("every_n_steps", [2, None])
def test_gradients_are_a_whole_steps_before_clipping(
    tiny_backbone: TinyBackbone, tmp_path: Path, every_n_steps: int | None
) -> None:
    reference = GradientsOfTheStep()
    # Two steps an epoch, of two batches and of one; the fifth is the last.
    options = {"limit_train_batches": 3, "accumulate_grad_batches": 2, "max_epochs": 3, "max_steps": 5}
    fit(
        "questions",
        tiny_backbone("bert"),
        tmp_path,
        reference,
        AdapterNormMonitor(every_n_steps),
        gradient_clip_val=1e-3,
        **options,
    )
    found = numbers(tmp_path)
    assert list(found) == [2, 4, 5]
    for step, metrics in found.items():
        if every_n_steps and step % every_n_steps:
            assert ("all", "A_gradient_norm") not in metrics  # measured because training ended, between two steps
            continue
        for key, norm in reference.norms[step].items():
            name, letter = key.split("/")
            assert metrics[name, f"{letter}_gradient_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["all", "B_gradient_norm"] > 1e-3


@pytest.mark.parametrize("log_modules", [False, True])
def test_loggers_get_the_totals_and_if_asked_every_module(
    tiny_backbone: TinyBackbone, tmp_path: Path, log_modules: bool
) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table")]
    monitor = AdapterNormMonitor(log_modules=log_modules)
    task = fit("intents", tiny_backbone("bert"), tmp_path, monitor, logger=loggers)
    found = numbers(tmp_path)[4]
    events = EventAccumulator(str(loggers[0].log_dir), size_guidance={"histograms": 0, "scalars": 0}).Reload()
    loggers[1].experiment.save()
    header = (Path(loggers[1].log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    tags = events.Tags()
    for (module, metric), value in found.items():
        tag = f"weights/norms/{metric}" if module == "all" else f"weights/norms/{module}/{metric}"
        assert (tag in header) is (tag in tags["scalars"]) is (module == "all" or log_modules)
        if tag in header:
            assert events.Scalars(tag)[-1].value == pytest.approx(value, rel=1e-6)
    assert tags["images"] == ["weights/norms/relative_delta_norm_by_layer"]
    assert sorted(tags["histograms"]) == ["weights/norms/A", "weights/norms/B"]
    entries = np.concatenate(
        [adapter_factors(layer)[1].detach().numpy().flatten() for layer in adapted_layers(task).values()]
    )
    values = events.Histograms("weights/norms/B")[0].histogram_value
    assert (values.num, values.min, values.max) == (entries.size, entries.min(), entries.max())
    expected, edges = np.histogram(entries, BINS)
    assert np.abs(np.array(values.bucket[1:]) - expected).sum() <= 2  # one entry on an edge may fall to either side
    np.testing.assert_allclose(values.bucket_limit, edges, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_counts_with_the_weight_it_stands_for(
    tiny_backbone: TinyBackbone, tmp_path: Path, bits: int
) -> None:
    task = fit_quantized(tiny_backbone("llama"), tmp_path, AdapterNormMonitor(), bits)  # type: ignore[arg-type]
    found = numbers(tmp_path)[4]
    for name, layer in adapted_layers(task).items():
        weight = np.linalg.norm(pretrained_weight(layer).numpy())
        assert found[name, "relative_delta_norm"] == pytest.approx(found[name, "delta_norm"] / weight, rel=1e-5)
