"""The texts that a model reads in batches: the rows, or the documents that are packed into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lora_lightning.artefacts.example_measuring import spread_places
from lora_lightning.backbones import load_config
from lora_lightning.diagnosis.specification import Measuring
from lora_lightning.errors import ConfigurationError
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.next_token import IGNORED

NO_LIMIT = 2**31
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Text:
    """Where a text is.

    Attributes:
        batch: Number of the batch.
        row: In it.
        start: Its first position.
        stop: The position after its last one.
    """

    batch: int
    row: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Its number of positions."""
        return self.stop - self.start


def texts_of(batches: Sequence[Batch]) -> list[Text]:
    """Finds all texts.

    Args:
        batches: With `input_ids` or `attention_mask`, (rows, positions), and `position_ids`, which start at 0 with
            every document, if rows hold several; int64.

    Returns:
        The texts, the longest first.
    """
    found = []
    for number, batch in enumerate(batches):
        real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(batch["input_ids"]) > 0
        for row, own in enumerate(real):
            places = own.nonzero().flatten()
            if "position_ids" in batch:
                starts = places[batch["position_ids"][row][places] == 0].tolist()
            else:
                starts = places[:1].tolist()
            stops = [*starts[1:], *(places[-1:] + 1).tolist()]
            found += [Text(number, row, *bounds) for bounds in zip(starts, stops, strict=True)]
    return sorted(found, key=lambda text: -text.length)


def texts_of_all_lengths(batches: Sequence[Batch], count: int) -> dict[int, list[Text]]:
    """Some texts, evenly spread over their lengths.

    Args:
        batches: As for `texts_of`.
        count: How many at most.

    Returns:
        The texts by number of the batch.
    """
    texts = texts_of(batches)
    chosen: dict[int, list[Text]] = {}
    for place in spread_places(len(texts), count):
        chosen.setdefault(texts[place].batch, []).append(texts[place])
    return chosen


def masks_of(texts: Sequence[Text], batch: Batch) -> Tensor:
    """Marks the tokens of each text in its row.

    Args:
        texts: Of one batch.
        batch: With `attention_mask`.

    Returns:
        (texts, positions), int64: 1 where a token is the text's.
    """
    mask = batch["attention_mask"]
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.stack([mask[text.row] * ((text.start <= places) & (places < text.stop)) for text in texts])


def beginnings(batches: Sequence[Batch]) -> list[Tensor]:
    """The prompts of a language model: what comes before the first label of a text, or the first half of a text.

    Args:
        batches: As for `texts_of`, with `labels`, (rows, positions), int64; a label is the token after its position.

    Returns:
        (tokens,) each, int64, at least 1; of the longest text first, and none of texts without labels.
    """
    found = []
    for text in texts_of(batches):
        ids, labels = (batches[text.batch][name][text.row, text.start : text.stop] for name in ("input_ids", "labels"))
        learnt = (labels != IGNORED).nonzero().flatten()
        if not len(learnt):
            continue
        first, last = int(learnt[0]), int(learnt[-1])
        found.append(ids[: first + 1] if first else ids[: max(1, (last + 1) // 2)])
    return found


def most_positions(config: PretrainedConfig) -> int:
    """How many tokens a model takes at once, as far as its configuration says."""
    return getattr(config, "max_position_embeddings", None) or NO_LIMIT


def check_new_tokens(task: AdaptationTask, measuring: Measuring) -> None:
    """Refuses completions that leave no room for a prompt.

    Args:
        task: A task whose model need not be built.
        measuring: How much is measured.

    Raises:
        ConfigurationError: If a language model has no more positions than `measure.new_tokens`.
    """
    if not isinstance(task, CausalLanguageModelingTask) or not measuring.prompts:
        return
    most = most_positions(load_config(task.backbone))
    if measuring.new_tokens >= most:
        msg = f"measure.new_tokens of the diagnosis is {measuring.new_tokens}, but {task.backbone} has {most} "
        msg += f"positions, and a prompt needs some of them; give at most {most - 1}, or set measure.prompts to 0"
        raise ConfigurationError(msg)
