"""Base of the intent data modules: in-scope intents in domains, and out-of-scope queries."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NoReturn

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.datamodules.label_doubts import doubts_about_labels
from lora_lightning.datamodules.sequence_classification import ClassificationDataModule, LabeledTexts
from lora_lightning.errors import DataError
from lora_lightning.metrics.label_space import OUT_OF_SCOPE_TARGET, LabelSpace

OUT_OF_SCOPE = "oos"
FEWEST_CLASSES = 2

Pairs = list[tuple[str, str]]  # (text, intent)


class IntentDataModule(ClassificationDataModule):
    """Base of the intent data modules.

    Args:
        oos_as_class: Whether out-of-scope queries are a class of their own, which is learnt from the training
            queries. Otherwise they are not used for training, and only a threshold on a score detects them.
        backbone: The model whose tokenizer is used; set automatically from `model.backbone`.
        batch_size: Training rows per step and process.
        eval_batch_size: Rows per step and process in validation, test and prediction.
        max_length: Maximum number of tokens per text; longer texts are truncated.
        predict_file: Text file with one query per line for `predict`, or `-` for standard input.
        cache_dir: Folder for tokenized data; by default `~/.cache/lora_lightning`, or below `$XDG_CACHE_HOME`.
        num_workers: Worker processes that build batches; 0 is fastest for short texts.
    """

    def __init__(
        self,
        oos_as_class: bool = True,
        backbone: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 128,
        predict_file: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            backbone=backbone,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_length=max_length,
            predict_file=predict_file,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self.oos_as_class = oos_as_class

    @abstractmethod
    def load_pairs(self) -> dict[str, Pairs]:
        """Reads (text, intent) pairs by split, out-of-scope queries with the intent `oos`; checks every row."""

    @abstractmethod
    def domain_of_intent(self) -> dict[str, str]:
        """Domain by in-scope intent; empty where there are no domains."""

    @cached_property
    def _pairs(self) -> dict[str, Pairs]:
        return self.load_pairs()

    @cached_property
    def label_space(self) -> LabelSpace:
        """Intents in alphabetical order, the out-of-scope class last."""
        names = sorted({intent for _, intent in self._pairs["train"]} - {OUT_OF_SCOPE})
        outside = any(intent == OUT_OF_SCOPE for pairs in self._pairs.values() for _, intent in pairs)
        has_class = outside and self.oos_as_class
        if len(names) + has_class < FEWEST_CLASSES:
            _refuse_one_class(names, outside)
        domains: dict[str, list[int]] = {}
        domain_of_intent = self.domain_of_intent()
        for index, name in enumerate(names):
            if name in domain_of_intent:
                domains.setdefault(domain_of_intent[name], []).append(index)
        if not has_class:
            return LabelSpace(names, None, outside, domains)
        return LabelSpace([*names, OUT_OF_SCOPE], len(names), outside, domains)

    def load_splits(self) -> dict[str, LabeledTexts]:
        """Class indices in place of names; without a class for them, out-of-scope rows do not train."""
        space = self.label_space
        index = {name: number for number, name in enumerate(space.names)}
        rows = {}
        for split, pairs in self._pairs.items():
            kept = [
                (text, index.get(intent, OUT_OF_SCOPE_TARGET))
                for text, intent in pairs
                if intent in index or split != "train"
            ]
            rows[split] = LabeledTexts([text for text, _ in kept], [label for _, label in kept])
        self.warn_about_repeated_texts(rows)
        if doubts := doubts_about_labels(intent for _, intent in self._pairs["train"]):
            rank_zero_warn(f"the training data has {'; '.join(doubts)}.")
        return rows


def _refuse_one_class(names: Sequence[str], outside: bool) -> NoReturn:
    if not names:
        msg = "the training data has no intent, only queries out of scope; give queries of two intents or more."
    else:
        remedy = ", or set data.oos_as_class: true to learn queries out of scope as a second class" if outside else ""
        msg = f"the training data has one intent only, {names[0]!r}; give queries of another intent{remedy}."
    raise DataError(msg)
