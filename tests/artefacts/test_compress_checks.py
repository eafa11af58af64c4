"""What is known before weights load: the metric and its split, the columns of examples, the adapter's rank."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lora_lightning.artefacts.compress_checks import (
    ComparedMetric,
    check_ranks_below,
    choose_compared_metric,
    metrics_of_task,
    saved_rank,
)
from lora_lightning.artefacts.example_measuring import SplitExamples
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from lora_lightning.tasks.outcome_rows import batch_rows, outcome_columns

MNLI = ["val_matched", "val_mismatched"]
NAMES = ["contradiction", "entailment", "neutral"]


def classifier(**labels: Any) -> SequenceClassificationTask:
    return SequenceClassificationTask("nowhere", label_space=LabelSpace(NAMES, **labels))


@pytest.mark.parametrize(
    ("wanted", "monitor", "expected"),
    [
        (None, "val_mismatched/accuracy", ("accuracy", "val_mismatched")),
        ("accuracy", "val_mismatched/loss", ("accuracy", "val_mismatched")),
        ("val_matched/macro_f1", "val_mismatched/accuracy", ("macro_f1", "val_matched")),
        ("accuracy", None, ("accuracy", "val_matched")),
        ("accuracy", "train/loss", ("accuracy", "val_matched")),
    ],
)
def test_the_metric_is_compared_on_the_split_that_it_belongs_to(
    wanted: str | None, monitor: str | None, expected: ComparedMetric
) -> None:
    assert choose_compared_metric(classifier(), MNLI, wanted, monitor) == expected


def test_a_loss_of_a_language_model_is_its_perplexity() -> None:
    task = CausalLanguageModelingTask("nowhere")
    assert choose_compared_metric(task, ["val"], None, "val/loss") == ("perplexity", "val")
    assert choose_compared_metric(task, ["val"], "loss", "val/loss") == ("loss", "val")
    with pytest.raises(ConfigurationError, match="was chosen by val/best_f1, which has no numbers per example"):
        choose_compared_metric(QuestionAnsweringTask("nowhere"), ["val"], None, "val/best_f1")


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("scope", [{}, {"out_of_scope_index": 2, "has_out_of_scope": True}])
def test_the_columns_are_those_that_batches_have(kind: Any, scope: dict[str, Any]) -> None:
    scope = scope if kind == "single_label_classification" else {}
    task = classifier(problem_type=kind, **scope)
    logits = torch.randn(4, 1 if kind == "regression" else 3)
    labels = {"single_label_classification": torch.tensor([0, 1, 2, 1]), "regression": torch.randn(4)}
    batch = {"labels": labels.get(kind, torch.randint(2, (4, 3)).float()), "index": torch.arange(4)}
    assert outcome_columns(task) == batch_rows(task, batch, (logits, torch.tensor(0.0))).keys()
    expected = {
        "single_label_classification": {"loss", "accuracy", "macro_f1"},
        "multi_label_classification": {"loss", "exact_match"},
        "regression": {"loss", "pearson"},
    }[kind]
    assert expected <= set(metrics_of_task(task))
    assert ("in_scope_accuracy" in metrics_of_task(task)) is bool(scope)


def test_the_examples_are_those_of_the_split_and_some_of_them_are_spread() -> None:
    def loader(name: str) -> Any:
        rows = [[10 * number, 10 * number + 1] for number in range(8)]
        dataset: Any = type("Rows", (), {"__getitem__": lambda _, index: {name: torch.tensor(index)}})()
        return SimpleNamespace(sampler=rows, dataset=dataset)

    module = SimpleNamespace(
        val_dataloader=lambda: [loader("matched"), loader("mismatched")], split_names=lambda kind: MNLI if kind else []
    )
    examples = SplitExamples(classifier(), SimpleNamespace(datamodule=module), "val_mismatched")  # type: ignore[arg-type]
    assert [*examples.batches[0]] == ["mismatched"]
    assert (examples.row_count, examples.spread(16)) == (16, examples)
    few = examples.spread(4)
    assert [batch["mismatched"].tolist() for batch in few.batches] == [[10], [30], [50], [70]]
    for rows, places in ((0, [[40]]), (1, [[40]]), (2, [[20], [60]])):
        assert [batch["mismatched"].tolist() for batch in examples.spread(rows).batches] == places


@pytest.mark.parametrize("batch_size", [16, 128, 512, 1024, 4000])
def test_some_examples_are_of_all_lengths_however_large_batches_are(batch_size: int) -> None:
    """Batches go from long rows to short ones; the ends alone would be the longest and the shortest."""
    order = list(range(3100))
    batches = [order[start : start + batch_size] for start in range(0, 3100, batch_size)]
    rows: Any = type("Rows", (), {"__getitem__": lambda _, numbers: {"index": torch.tensor(numbers)}})()
    loader = SimpleNamespace(sampler=batches, dataset=rows)
    module = SimpleNamespace(val_dataloader=lambda: loader, split_names=lambda _: ["val"])
    examples = SplitExamples(classifier(), SimpleNamespace(datamodule=module), "val")  # type: ignore[arg-type]
    found = examples.spread(256).batches
    assert [len(batch["index"]) for batch in found] == [min(batch_size, 256)] * (256 // min(batch_size, 256))
    places = torch.cat([batch["index"] for batch in found])
    assert places.diff().unique().tolist() == [12, 13]
    assert (int(places[0]), int(places[-1])) == (6, 3093)


def of_batches(*batches: Any) -> SplitExamples:
    rows: Any = type("Rows", (), {"__getitem__": lambda _, index: batches[index]})()
    loader = SimpleNamespace(sampler=range(len(batches)), dataset=rows)
    module = SimpleNamespace(val_dataloader=lambda: loader, split_names=lambda _: ["val"])
    return SplitExamples(QuestionAnsweringTask("nowhere"), SimpleNamespace(datamodule=module), "val")  # type: ignore[arg-type]


def test_questions_keep_all_their_windows() -> None:
    """The windows of a question are in different batches."""
    examples = of_batches(*({"question": torch.tensor([number, (number + 5) % 8])} for number in range(8)))
    assert examples.spread(16) is examples
    for rows, questions in ((1, [4]), (2, [4]), (3, [2, 6]), (4, [2, 6])):
        batches = examples.spread(rows).batches
        kept = sorted(question for batch in batches for question in batch["question"].tolist())
        assert len(kept) == 2 * len(questions)
        assert len({*kept}) == len(questions)


def test_documents_are_whole_and_others_in_their_rows_do_not_count() -> None:
    """Document 1 begins in the row in which document 0 ends; -1 is padding, and a prompt has no labels."""
    documents = torch.tensor([[0, 0, 1, 1], [1, 1, 1, -1], [2, 2, -1, -1], [3, 3, 3, -1]])
    labels = torch.where(documents < 0, -100, 5)
    labels[2:, 0] = -100
    examples = of_batches(*({"document": documents[i : i + 2], "labels": labels[i : i + 2]} for i in (0, 2)))
    (batch,) = examples.spread(1).batches
    assert batch["document"].tolist() == [[2, 2, -1, -1]]
    first, second = examples.spread(2).batches  # documents 1 and 3
    assert first["document"].tolist() == documents[:2].tolist()
    assert first["labels"].tolist() == [[5, 5, 5, 5], [5, 5, 5, -100]]  # document 0 is whole, too
    assert second["document"].tolist() == [[3, 3, 3, -1]]
    torn = of_batches({"document": documents[:2].flip(0), "labels": labels[:2].flip(0)}).spread(1)
    assert {label for batch in torn.batches for label in batch["labels"].flatten().tolist()} == {5, -100}
    cut = of_batches({"document": torch.tensor([[0, 1], [1, 1], [2, 2]]), "labels": torch.full((3, 2), 5)})
    only_first = cut.batches[0] | {"document": torch.tensor([[0, 1], [0, 0], [1, 1]])}
    (kept,) = of_batches(only_first).spread(1).batches
    assert kept["labels"].tolist() in ([[5, -100], [5, 5]], [[-100, 5], [5, 5]])


def test_the_rank_of_a_folder_is_the_largest_of_its_layers(tmp_path: Path) -> None:
    names = [
        f"base_model.model.layer.{number}.{name}.lora_{side}.weight"
        for number in (0, 1)
        for name in "qv"
        for side in "AB"
    ]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "adapter_model.safetensors")
    for config, expected in (
        ({"r": 4, "rank_pattern": {}}, 4),
        ({"r": 4, "rank_pattern": {"q": 6, "layer.1.v": 9}}, 9),
        ({"r": 4, "rank_pattern": {"q": 2, "v": 3, "other": 8}}, 3),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert saved_rank(tmp_path) == expected
    check_ranks_below(3, (2, 1), tmp_path)
    check_ranks_below(3, "all", tmp_path)
    with pytest.raises(ConfigurationError, match="--ranks has 3, but the adapter has rank 3"):
        check_ranks_below(3, (3, 2), tmp_path)
    with pytest.raises(ConfigurationError, match="has rank 1 in every layer"):
        check_ranks_below(1, (), tmp_path)
