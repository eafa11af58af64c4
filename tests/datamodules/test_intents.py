"""The label space with and without an out-of-scope class, and what becomes of out-of-scope rows."""

from pathlib import Path
from typing import ClassVar

import pytest

from lora_lightning.datamodules import IntentDataModule, SyntheticIntentsDataModule
from lora_lightning.datamodules.intent_grammar import DOMAINS
from lora_lightning.datamodules.intents import Pairs
from lora_lightning.datamodules.sequence_classification import LabeledTexts
from lora_lightning.errors import DataError
from lora_lightning.metrics.label_space import LabelSpace

PAIRS: dict[str, Pairs] = {
    "train": [("t0", "zoo"), ("t1", "oos"), ("t2", "alarm"), ("t3", "pay"), ("t4", "alarm"), ("t5", "oos")],
    "val": [("v0", "oos"), ("v1", "pay")],
    "test": [("e0", "alarm"), ("e1", "oos"), ("e2", "zoo")],
}


class PlantedIntents(IntentDataModule):
    """Three intents, two of them in domains."""

    pairs: ClassVar[dict[str, Pairs]] = PAIRS

    def load_pairs(self) -> dict[str, Pairs]:
        return self.pairs

    def domain_of_intent(self) -> dict[str, str]:
        return {"pay": "bank", "alarm": "home", "unused": "home"}


class WithoutOutOfScope(PlantedIntents):
    """The same without out-of-scope queries."""

    pairs: ClassVar[dict[str, Pairs]] = {
        split: [pair for pair in pairs if pair[1] != "oos"] for split, pairs in PAIRS.items()
    }


def test_out_of_scope_is_the_last_class() -> None:
    module = PlantedIntents(oos_as_class=True)
    assert module.label_space == LabelSpace(["alarm", "pay", "zoo", "oos"], 3, True, {"home": [0], "bank": [1]})
    assert module.load_splits() == {
        "train": LabeledTexts(["t0", "t1", "t2", "t3", "t4", "t5"], [2, 3, 0, 1, 0, 3]),
        "val": LabeledTexts(["v0", "v1"], [3, 1]),
        "test": LabeledTexts(["e0", "e1", "e2"], [0, 3, 2]),
    }


def test_without_the_class_out_of_scope_rows_do_not_train_and_are_evaluated_as_minus_one() -> None:
    module = PlantedIntents(oos_as_class=False)
    assert module.label_space == LabelSpace(["alarm", "pay", "zoo"], None, True, {"home": [0], "bank": [1]})
    assert module.load_splits() == {
        "train": LabeledTexts(["t0", "t2", "t3", "t4"], [2, 0, 1, 0]),
        "val": LabeledTexts(["v0", "v1"], [-1, 1]),
        "test": LabeledTexts(["e0", "e1", "e2"], [0, -1, 2]),
    }


@pytest.mark.parametrize("oos_as_class", [True, False])
def test_data_without_out_of_scope_queries_gets_no_class_for_them(oos_as_class: bool) -> None:
    module = WithoutOutOfScope(oos_as_class=oos_as_class)
    assert module.label_space == LabelSpace(["alarm", "pay", "zoo"], None, False, {"home": [0], "bank": [1]})
    assert module.load_splits()["train"].labels == [2, 0, 1, 0]


@pytest.mark.parametrize("oos_as_class", [True, False])
def test_synthetic_intents_reach_the_loaders(oos_as_class: bool, backbone: str, tmp_path: Path) -> None:
    module = SyntheticIntentsDataModule(
        oos_as_class=oos_as_class, backbone=backbone, cache_dir=str(tmp_path / "cache"), eval_batch_size=50
    )
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    space = module.label_space
    assert space.names == sorted(DOMAINS) + ["oos"] * oos_as_class
    assert space.domains == {
        domain: [index for index, name in enumerate(sorted(DOMAINS)) if DOMAINS[name] == domain]
        for domain in dict.fromkeys(DOMAINS[name] for name in sorted(DOMAINS))
    }
    trained = {label for batch in module.train_dataloader() for label in batch["labels"].tolist()}
    assert trained == set(range(len(space.names)))
    pairs = module.load_pairs()
    for split, loader in (("val", module.val_dataloader()), ("test", module.test_dataloader())):
        labels: dict[int, int] = {}
        for batch in loader:
            labels |= zip(batch["index"].tolist(), batch["labels"].tolist(), strict=True)
        outside = len(space.names) - 1 if oos_as_class else -1
        for row, (text, intent) in enumerate(pairs[split]):
            assert labels.pop(row) == (outside if intent == "oos" else space.names.index(intent))
            assert module.texts(split)[row] == text
        assert not labels


def test_corpus_seed_changes_the_sentences() -> None:
    assert (
        SyntheticIntentsDataModule(corpus_seed=0).load_pairs() != SyntheticIntentsDataModule(corpus_seed=1).load_pairs()
    )


class OneIntent(PlantedIntents):
    """One intent, and queries out of scope."""

    pairs: ClassVar[dict[str, Pairs]] = {
        "train": [("t0", "pay"), ("t1", "oos")],
        "val": [("v0", "pay")],
        "test": [("e0", "oos")],
    }


class NoIntent(PlantedIntents):
    """Queries out of scope alone."""

    pairs: ClassVar[dict[str, Pairs]] = {name: [(f"{name} 0", "oos")] for name in ("train", "val", "test")}


def test_one_intent_needs_the_out_of_scope_class() -> None:
    assert OneIntent(oos_as_class=True).label_space.names == ["pay", "oos"]
    with pytest.raises(DataError) as raised:
        _ = OneIntent(oos_as_class=False).label_space
    assert str(raised.value) == (
        "the training data has one intent only, 'pay'; give queries of another intent, or set data.oos_as_class: true "
        "to learn queries out of scope as a second class."
    )


@pytest.mark.parametrize("oos_as_class", [True, False])
def test_no_intent_is_nothing_to_learn(oos_as_class: bool) -> None:
    with pytest.raises(DataError, match=r"has no intent, only queries out of scope; give queries of two intents"):
        _ = NoIntent(oos_as_class=oos_as_class).label_space


class Doubtful(PlantedIntents):
    """A test query that training has, a text with two intents, an intent in two spellings."""

    pairs: ClassVar[dict[str, Pairs]] = {
        "train": [("t0", "pay"), ("t1", "Pay"), ("t2", "alarm"), ("t2", "pay"), ("t3", "oos")],
        "val": [("v0", "pay")],
        "test": [(" t0", "pay"), ("e1", "alarm"), ("t3", "oos")],
    }


def test_doubtful_rows_are_counted() -> None:
    with pytest.warns(UserWarning) as said:  # noqa: PT030
        Doubtful().load_splits()
    assert [str(warning.message) for warning in said] == [
        "2 of 3 rows of the test split are also in the training data, such as ' t0'; scores on them will be too high.",
        "1 text occurs with different labels, such as 't2' with 'alarm' and 'pay'; correct or remove the rows.",
        (
            "the training data has labels that differ only in case, spaces, Unicode form or invisible characters: "
            "'Pay' (1 row) / 'pay' (2 rows)."
        ),
    ]
