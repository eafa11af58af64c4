"""A checkpoint's base model: which one it was trained on, and whether this is the same."""

from collections.abc import Mapping
from typing import Any

from lora_lightning.backbones.base_identity import BaseIdentity
from lora_lightning.errors import CheckpointError

REMEDY = "Set model.backbone to the model that it was trained on, or set --allow_other_base true."
BASE_MODEL = "base_model"  # in a checkpoint and in run.json; the name of the adapter folder's file


def check_base(
    checkpoint: Mapping[str, Any],
    base: BaseIdentity | None,
    where: str,
    *,
    is_frozen: bool,
    allowed: bool,
    remedy: str = REMEDY,
) -> bool:
    """Refuses a checkpoint that was trained on a base model of other content.

    Args:
        checkpoint: Its content.
        base: The base model of this command; `None` for a task that makes its base itself.
        where: What to call the checkpoint in a message.
        is_frozen: Whether the base's weights are used as they are; those of a model that was trained in full are in
            its checkpoint, so that only configuration and tokenizer of the base matter.
        allowed: Whether the user allows another base.
        remedy: How to give the right one, as a sentence.

    Returns:
        Whether the checkpoint knows its base by content, so that the base's name does not matter; False for those of
        older releases.

    Raises:
        CheckpointError: If the content differs and that is not allowed.
    """
    saved = BaseIdentity.from_saved(checkpoint.get(BASE_MODEL))
    if saved is None or base is None:
        return False
    if not allowed and (found := saved.differences(base, weights=is_frozen)):
        msg = f"{where} was trained on another base model: different {' and '.join(found)}. {remedy}"
        raise CheckpointError(msg)
    return True
