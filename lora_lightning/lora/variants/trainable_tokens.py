"""Trainable tokens: the embeddings of a few tokens train beside the adapters."""

from lora_lightning.lora.variants.variant import Variant


class TrainableTokens(Variant):
    """PEFT's `trainable_token_indices`."""

    option = "model.lora.trainable_token_indices"
    why_not_sharded = "PEFT puts the tokens' rows into full embeddings"
