"""Pairs of texts carry token types exactly where the backbone has an embedding for them."""

from pathlib import Path
from typing import Any

import pytest

from lora_lightning.datamodules.sequence_classification import ClassificationDataModule, LabeledTexts
from lora_lightning.metrics import LabelSpace
from tests.conftest import TinyBackbone

PAIRS = LabeledTexts(["w1 w2", "w3"], [0, 1], ["w4", "w5 w6"])


class PairDataModule(ClassificationDataModule):
    """Two pairs."""

    def load_splits(self) -> dict[str, LabeledTexts]:
        return {"train": PAIRS, "val": PAIRS}

    @property
    def label_space(self) -> LabelSpace:
        return LabelSpace(["no", "yes"], None, False, {})


@pytest.mark.parametrize(
    ("family", "types"),
    [("bert", True), ("electra", True), ("roberta", False), ("distilbert", False), ("deberta-v2", False)],
)
def test_pairs_have_token_types_where_the_model_has(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, types: bool
) -> None:
    module = PairDataModule(backbone=str(tiny_backbone(family)), cache_dir=str(tmp_path))
    module.prepare_data()
    module.setup("fit")
    batch = module.splits["train"][[0, 1]]
    names = {"input_ids", "attention_mask", "index", "labels"}
    assert set(batch) == names | ({"token_type_ids"} if types else set())
    if types:
        assert batch["token_type_ids"].shape == batch["input_ids"].shape


def test_a_single_text_has_no_token_types(tiny_backbone: TinyBackbone) -> None:
    module = PairDataModule(backbone=str(tiny_backbone("bert")))
    assert set(module.encode("train", LabeledTexts(["w1"], [0])).tokens) == {"input_ids"}


def test_predictions_stand_beside_their_pair() -> None:
    module = PairDataModule()
    module.prediction_splits = {"predict": PAIRS}
    assert module.prediction_inputs("predict") == [
        {"text": "w1 w2", "text_pair": "w4"},
        {"text": "w3", "text_pair": "w5 w6"},
    ]


@pytest.mark.parametrize(
    ("labels", "counts"), [([1, 0, 1, -1, 1], [1, 3]), ([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]], [1, 3])]
)
def test_the_training_rows_of_each_label_are_counted(
    monkeypatch: pytest.MonkeyPatch, labels: list[Any], counts: list[int]
) -> None:
    rows = LabeledTexts(["w1"] * len(labels), labels)
    monkeypatch.setattr(PairDataModule, "load_splits", lambda _: {"train": rows, "val": PAIRS})
    found, total = PairDataModule().label_counts()
    assert (found.tolist(), total) == (counts, len(labels))
