"""Intruders of whole models: planted ones are found and named, W is decomposed once, nothing is measured too often."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer

from lora_lightning.analysis.intruders import Intruders, left_singular_vectors
from lora_lightning.callbacks import IntruderDimensions, intruder_dimensions
from lora_lightning.callbacks.intruder_dimensions import describe_intruders, measurements_of
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, adapter_factors, pretrained_weight
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone

QUERY, KEY = "bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.1.attention.self.key"


@pytest.fixture
def task(tiny_backbone: TinyBackbone) -> SequenceClassificationTask:
    task = SequenceClassificationTask(str(tiny_backbone("bert")))
    task.adopt_labels(LabelSpace(names=["a", "b"]))
    task.configure_model()
    return task


def test_a_planted_intruder_is_found_where_it_is(
    task: SequenceClassificationTask, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = adapted_layers(task)
    for name in (QUERY, KEY):
        a, b = adapter_factors(layers[name])
        weight = pretrained_weight(layers[name])
        directions, strengths = left_singular_vectors(weight)
        # New: between sixteen weak directions of W. Old: along its strongest.
        direction = directions[:, 16:].sum(dim=1) / 4 if name == QUERY else directions[:, 0]
        right = torch.linalg.svd(weight)[2][0]
        with torch.no_grad():
            b[:, 0] = direction.float() * strengths[0].float() * 2
            a[0] = right / layers[name].scaling["default"]
    monitor, trainer = IntruderDimensions(), Trainer(logger=False)
    found = {(m.module, m.metric): m.value for m in monitor.measure(trainer, task)}
    monitor.conclude(trainer, task, None)
    assert found[QUERY, "count"] == 1
    assert found[QUERY, "strength"] > 0.9
    assert found[KEY, "count"] == 0
    assert found[KEY, "strength"] == found[KEY, "energy"] == 0
    assert found["all", "count"] == sum(v for (module, metric), v in found.items() if metric == "count") / 2
    assert found["all", "strength"] == max(v for (_, metric), v in found.items() if metric == "strength")
    assert f"in {QUERY} with" in capsys.readouterr().out


def test_weights_are_decomposed_once(task: SequenceClassificationTask, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(
        intruder_dimensions, "left_singular_vectors", lambda weight: counted.append(1) or left_singular_vectors(weight)
    )
    often, once = IntruderDimensions(every_n_steps=1), IntruderDimensions()
    trainer = Trainer(logger=False)
    first, second = often.measure(trainer, task), often.measure(trainer, task)
    assert first == second == once.measure(trainer, task)
    assert len(counted) == (2 + 1 + 2) * len(adapted_layers(task))  # W once for `often`, W + dW every time
    assert once._own == {}  # no memory where it is not needed again


def test_what_a_user_reads() -> None:
    none, some = Intruders(0, 0.0, 0.0, 0.71), Intruders(2, 0.5, 0.1, 0.2)
    assert describe_intruders({"a": none}) == (
        "none (even the least similar strong direction has a cosine of 0.71 with one of the base)"
    )
    assert describe_intruders({"a": none, "b": some}) == (
        "2 in 1 of 2 layers, the strongest in b with 50% of its largest singular value"
    )
    assert measurements_of({}) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [({"top_k": 0}, "top_k is 0"), ({"epsilon": 0.0}, "epsilon is 0.0"), ({"epsilon": 2.0}, "is 2")],
)
def test_misuse_is_one_clear_sentence(options: dict[str, float], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        IntruderDimensions(**options)  # type: ignore[arg-type]
