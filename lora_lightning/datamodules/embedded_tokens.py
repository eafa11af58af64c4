"""Compare the tokens of a split with the model's vocabulary: a token without an embedding would crash the model."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lora_lightning.backbones.vocabulary import vocabulary_size
from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.errors import BackboneError

TOKEN_COLUMNS = ("input_ids", "labels")  # of a language model, labels are tokens too


def check_tokens_are_embedded(
    split: EncodedSplit, name: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, backbone: str
) -> None:
    """Refuses a tokenizer that has more tokens than the model, if the data or the padding needs one of these.

    Tokens that never occur are harmless, and the tokenizers of some released models have such ones.

    Args:
        split: The tokenized split.
        name: Name of the split, for the message.
        tokenizer: The backbone's.
        config: The backbone's.
        backbone: Name of the backbone, for the message.

    Raises:
        BackboneError: If a token id is not below the `vocab_size` of the configuration.
    """
    size = vocabulary_size(config)
    if size is None:
        return
    columns = [split.tokens[column] for column in TOKEN_COLUMNS if column in split.tokens]
    largest = max((int(column.max()) for column in columns if len(column)), default=-1)
    if largest >= size:
        found = f"gives token {largest} ({_text_of(tokenizer, largest)}) in the {name} split"
    elif tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= size:
        found = f"pads with token {tokenizer.pad_token_id} ({_text_of(tokenizer, tokenizer.pad_token_id)})"
    else:
        return
    msg = (
        f"the tokenizer of {backbone!r} {found}, but the model embeds 0 to {size - 1}; resize the model's embeddings "
        "(model.resize_token_embeddings(len(tokenizer))) and save both again, or remove the added tokens from the "
        "tokenizer."
    )
    raise BackboneError(msg)


def _text_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return repr(tokenizer.convert_ids_to_tokens(token))
