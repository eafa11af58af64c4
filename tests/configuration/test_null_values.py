"""`null` is refused just where an option's type has no place for it."""

from typing import Any

import pytest
from lightning import Callback

from lora_lightning.configuration.null_values import check_nulls
from lora_lightning.errors import ConfigurationError
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.early_stopping import AdapterEarlyStopping

GROUPS = {"checkpoint": AdapterCheckpoint, "early_stopping": AdapterEarlyStopping}


def options(**more: Any) -> dict[str, Any]:
    return {"model": {"class_path": "lora_lightning.tasks.SequenceClassificationTask", "init_args": more}}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (options(backbone=None), "model.backbone is null, but it needs a value."),
        (options(optimization=None), "model.optimization is null, but it needs a value; leave it out for the default."),
        (options(lora={"r": None}), "model.lora.r is null, but it needs a value; leave it out for the default."),
        (options(quantization={"bits": None}), "model.quantization.bits is null, but"),
        (
            {
                "trainer": {
                    "callbacks": [
                        {"class_path": "lora_lightning.callbacks.IntruderDimensions", "init_args": {"top_k": None}}
                    ]
                }
            },
            "trainer.callbacks.top_k is null, but",
        ),
        ({"checkpoint": {"mode": None}}, "checkpoint.mode is null, but"),
        ({"early_stopping": {"patience": None}}, "early_stopping.patience is null, but"),
    ],
)
def test_null_without_a_meaning_is_named(given: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_nulls(given, GROUPS)
    assert str(raised.value).startswith(name)


@pytest.mark.parametrize(
    "given",
    [
        {},
        options(lora=None, quantization=None, base_dropout=None),
        options(lora={"modules_to_save": None, "r": 4}),
        {"data": {"class_path": "lora_lightning.datamodules.Clinc150DataModule", "init_args": {"data_dir": None}}},
        {"trainer": {"max_epochs": None, "callbacks": None, "logger": None, "log_every_n_steps": None}},
        {"early_stopping": {"stopping_threshold": None}},
    ],
    ids=str,
)
def test_null_with_a_meaning_passes(given: dict[str, Any]) -> None:
    check_nulls(given, GROUPS)


class OfAnotherPackage(Callback):
    """Its annotation has no meaning at run time."""

    def __init__(self, steps: "NowhereDefined") -> None:  # type: ignore[name-defined]  # noqa: F821
        self.steps = steps


def test_a_class_whose_types_are_not_known_is_left_alone() -> None:
    entry = {"class_path": f"{__name__}.OfAnotherPackage", "init_args": {"steps": None}}
    check_nulls({"trainer": {"callbacks": [entry]}}, GROUPS)
