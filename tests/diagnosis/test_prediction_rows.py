"""Logits, labels and examples of a language model's batches belong together, and prompts end before the answer."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.artefacts.example_measuring import rows_of_all_lengths
from lora_lightning.diagnosis import model_behavior
from lora_lightning.diagnosis import texts as texts_module
from lora_lightning.diagnosis.model_behavior import greedy_completions
from lora_lightning.diagnosis.prediction_rows import PredictionRecorder, predictions_of
from lora_lightning.diagnosis.specification import Measuring
from lora_lightning.diagnosis.texts import beginnings, check_new_tokens, masks_of, texts_of, texts_of_all_lengths
from lora_lightning.errors import ConfigurationError
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.next_token import spread_positions
from lora_lightning.tasks.question_answering import QuestionAnsweringTask, window_losses
from lora_lightning.tasks.sequence_classification import SequenceClassificationTask

VOCABULARY = 50


class Stub(CausalLanguageModelingTask):
    """Predicts each label, with certainty."""

    def outputs(self, batch: dict[str, torch.Tensor], found: Any) -> Outputs:
        assert found is None
        labels = batch["labels"][batch["labels"] != -100]
        logits = 10.0 * functional.one_hot(labels, VOCABULARY).float()[spread_positions(len(labels))]
        return Outputs(logits, "categorical", logits.argmax(dim=-1))


def batch(rows: int, tokens: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(VOCABULARY, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.3] = -100
    return {"input_ids": labels.clamp(min=0), "labels": labels}


@pytest.mark.parametrize(("rows", "tokens", "most"), [(3, 8, 100), (4, 200, 37), (2, 6, 1)])
def test_each_row_has_its_own_label_and_example(rows: int, tokens: int, most: int) -> None:
    task, own = Stub.__new__(Stub), batch(rows, tokens, rows)
    found = predictions_of(task, own, None, most)
    assert found is not None
    assert (found.logits.argmax(dim=-1) == found.labels).all()
    assert len(found.labels) == min(most, int((own["labels"] != -100).sum()), 256)
    for example in found.examples.unique().tolist():
        labels = set(own["labels"][example].tolist())
        assert set(found.labels[found.examples == example].tolist()) <= labels
    assert found.examples.tolist() == sorted(found.examples.tolist())


def test_a_recorder_counts_examples_over_batches_and_compares_with_kept_ones() -> None:
    task, batches = Stub.__new__(Stub), [batch(3, 6, 0), batch(2, 9, 1)]
    kept = PredictionRecorder(task, 2)
    for each in batches:
        kept.watch(each, None)
    assert set(torch.cat([part.examples for part in kept.kept]).tolist()) == {0, 1, 2, 3, 4}
    assert kept.all_changes is None
    again = PredictionRecorder(task, 2, kept.kept)
    for each in batches:
        again.watch(each, None)
    changes = again.all_changes
    assert changes is not None
    assert (changes.divergences == 0).all()
    assert set(changes.examples.tolist()) == {0, 1, 2, 3, 4}


def test_examples_are_documents_if_batches_number_them() -> None:
    """One row has several packed documents, and a document of a stream takes several rows of several batches."""
    task, batches = Stub.__new__(Stub), [batch(3, 6, 0), batch(2, 9, 1)]
    batches[0]["document"] = torch.tensor([[7, 7, 7, 3, 3, 3], [2] * 6, [2] * 6])
    batches[1]["document"] = torch.tensor([[2] * 9, [9] * 9])
    kept = PredictionRecorder(task, 2)
    for each in batches:
        kept.watch(each, None)
    for each, found in zip(batches, kept.kept, strict=True):
        assert found.examples.tolist() == each["document"][each["labels"] != -100].tolist()


class Choices(SequenceClassificationTask):
    """Predicts the logits that it is given, whether each label applies."""

    def outputs(self, batch: dict[str, torch.Tensor], found: torch.Tensor) -> Outputs:  # type: ignore[override]
        del batch
        return Outputs(found, "bernoulli", found > 0)


def test_each_label_of_a_text_is_a_choice_of_two() -> None:
    logits, labels = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]]), torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    found = predictions_of(Choices.__new__(Choices), {"labels": labels}, logits, 1)
    assert found is not None
    torch.testing.assert_close(found.logits.softmax(dim=-1)[:, 1], logits.flatten().sigmoid())
    assert found.labels.tolist() == [1, 0, 0, 1, 1, 0]
    assert found.examples.tolist() == [0, 0, 0, 1, 1, 1]
    losses = functional.cross_entropy(found.logits, found.labels)
    torch.testing.assert_close(losses, functional.binary_cross_entropy_with_logits(logits, labels))


class Answers(QuestionAnsweringTask):
    """Predicts the start and end logits that it is given."""

    def outputs(self, batch: dict[str, torch.Tensor], found: Any) -> Outputs:
        del batch
        return Outputs(torch.cat(found[:2]), "categorical", found[0].argmax(dim=-1))


def test_the_windows_of_a_question_are_one_example_with_starts_and_ends() -> None:
    task, start, end = Answers.__new__(Answers), torch.randn(3, 5), torch.randn(3, 5)
    places = {"start_positions": torch.tensor([0, 4, 1]), "end_positions": torch.tensor([0, 4, 3])}
    batch = {"input_ids": torch.ones(3, 5), "question": torch.tensor([8, 8, 2]), **places}
    kept = PredictionRecorder(task, 2)
    for _ in range(2):
        kept.watch(batch, (start, end, None))
    for found in kept.kept:
        assert found.labels.tolist() == [0, 4, 1, 0, 4, 3]
        assert found.examples.tolist() == [8, 8, 2, 8, 8, 2]
        losses = functional.cross_entropy(found.logits, found.labels)
        torch.testing.assert_close(losses, window_losses(batch, start, end).mean())


def test_prompts_are_what_comes_before_the_answer_or_half_of_a_text() -> None:
    ids = torch.arange(1, 9)[None].repeat(3, 1)
    labels = torch.full((3, 8), -100)
    labels[0, 3:6] = torch.tensor([5, 6, 7])  # the token after each position; the answer starts with token 5
    labels[1, :7] = torch.arange(2, 9)
    found = beginnings([{"input_ids": ids, "labels": labels}])
    assert [each.tolist() for each in found] == [[1, 2, 3, 4], [1, 2, 3]]  # the third row has nothing to learn


def test_packed_documents_are_texts_of_their_own() -> None:
    """Two rows: documents of 5 and 2 tokens, and one of 3 before padding, whose positions are 0 as well."""
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 11, 12], [21, 22, 23, 0, 0, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 7, [1] * 3 + [0] * 4]),
        "labels": torch.full((2, 7), -100),
    }
    batch["labels"][0, 2:5], batch["labels"][0, 6], batch["labels"][1, 1:3] = 9, 9, 9
    texts = texts_of([batch])
    assert [(text.row, text.start, text.stop) for text in texts] == [(0, 0, 5), (1, 0, 3), (0, 5, 7)]
    assert masks_of(texts, batch).tolist() == [[1] * 5 + [0] * 2, [1] * 3 + [0] * 4, [0] * 5 + [1] * 2]
    assert [each.tolist() for each in beginnings([batch])] == [[1, 2, 3], [21, 22], [11, 12]]
    assert [text.length for text in texts_of_all_lengths([batch, batch], 3)[1]] == [5, 3, 2]
    del batch["position_ids"]
    assert [(text.row, text.start, text.stop) for text in texts_of([batch])] == [(0, 0, 7), (1, 0, 3)]


@pytest.mark.parametrize(("new_tokens", "prompts", "is_refused"), [(63, 1, False), (64, 1, True), (64, 0, False)])
def test_completions_that_leave_no_room_for_a_prompt_are_refused(
    new_tokens: int, prompts: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "load_config", lambda _: SimpleNamespace(max_position_embeddings=64))
    measuring = Measuring(prompts=prompts, new_tokens=new_tokens)
    with pytest.raises(ConfigurationError, match=r"64 positions.*at most 63") if is_refused else nullcontext():
        check_new_tokens(CausalLanguageModelingTask("tiny"), measuring)
    check_new_tokens(QuestionAnsweringTask("tiny"), measuring)


def test_rows_and_prompts_are_of_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation batches begin with the longest rows."""
    batches = [
        {"input_ids": torch.arange(length).repeat(4, 1), "labels": torch.full((4, length), 1)}
        for length in (40, 30, 20, 10)
    ]
    for count, lengths in ((4, [40, 30, 20, 10]), (2, [30, 10]), (100, [40] * 4 + [30] * 4 + [20] * 4 + [10] * 4)):
        kept = rows_of_all_lengths(batches, count)
        assert [len(row) for batch in kept for row in batch["input_ids"]] == lengths
        assert all(len(batch["labels"]) == len(batch["input_ids"]) for batch in kept)
    assert rows_of_all_lengths(batches, 0) == []
    monkeypatch.setattr(model_behavior, "isolated_evaluation", lambda _: nullcontext())
    seen: list[list[int]] = []

    def complete(*words: Any) -> list[list[int]]:
        seen.append(words[2]["input_ids"][0].tolist())
        return [[len(seen[-1])]]

    monkeypatch.setattr(model_behavior, "complete_tokens", complete)
    task = Stub.__new__(Stub)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=19))
    monkeypatch.setattr(Stub, "transformers_model", model)
    monkeypatch.setattr(Stub, "tokenizer", None, raising=False)
    monkeypatch.setattr(Stub, "device", torch.device("cpu"))
    opened: Any = SimpleNamespace(task=task, examples=SimpleNamespace(batches=batches))
    assert greedy_completions(opened, 4, 3) == [[16], [15], [10], [5]]  # half of each text, as far as there is room
    assert seen[0] == list(range(4, 20))  # the end of the prompt, where the answer begins
    assert greedy_completions(opened, 0, 3) == []
