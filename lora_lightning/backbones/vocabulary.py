"""How many tokens a model embeds, according to its configuration."""

from transformers import PretrainedConfig


def text_config_of(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that describes the text model.

    Args:
        config: A model's configuration; models that also see or hear nest the one of their text model.

    Returns:
        The nested configuration, or `config` itself if there is none.
    """
    try:
        nested: PretrainedConfig = config.get_text_config()
    except ValueError:  # several candidates
        return config
    return nested


def vocabulary_size(config: PretrainedConfig) -> int | None:
    """The number of tokens with an embedding.

    Args:
        config: A model's configuration.

    Returns:
        `vocab_size` of the text model; `None` for models without a vocabulary, such as CANINE. Padded embeddings may
        have more rows in the weights, which were never trained.
    """
    sizes = (getattr(part, "vocab_size", None) for part in (text_config_of(config), config))
    return next((size for size in sizes if isinstance(size, int)), None)
