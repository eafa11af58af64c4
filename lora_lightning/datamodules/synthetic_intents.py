"""The quickstart's data: intents written by a grammar, with nothing to download."""

from lora_lightning.datamodules.intent_grammar import DOMAINS, generate_intents
from lora_lightning.datamodules.intents import IntentDataModule, Pairs


class SyntheticIntentsDataModule(IntentDataModule):
    """Some thirty intents in seven domains, plus out-of-scope queries, from the grammar in `intent_grammar`.

    Args:
        corpus_seed: Seed of the generated sentences.
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
        corpus_seed: int = 0,
        oos_as_class: bool = True,
        backbone: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 64,
        predict_file: str | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            oos_as_class=oos_as_class,
            backbone=backbone,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_length=max_length,
            predict_file=predict_file,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self.corpus_seed = corpus_seed

    def load_pairs(self) -> dict[str, Pairs]:
        """Generates the corpus (a tenth of a second)."""
        return generate_intents(self.corpus_seed)

    def domain_of_intent(self) -> dict[str, str]:
        """The grammar's domains."""
        return dict(DOMAINS)
