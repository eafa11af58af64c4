"""Which backbones may run Python code of their own: none, unless the user says so."""

from lora_lightning.backbones.source import resolve_backbone

_trusted: set[str] = set()  # of this process; never in a checkpoint, which may come from a stranger


def trust_remote_code(backbone: str) -> None:
    """Lets this process run the Python files in a backbone's repository, as its `config.json` names them.

    It is transformers' `trust_remote_code=True`, for this backbone alone: it holds wherever its model, its tokenizer or
    its configuration is loaded from now on.

    Args:
        backbone: Hub id, folder or `package://` name.

    Raises:
        BackboneError: If the folder or package is not there.
    """
    _trusted.add(resolve_backbone(backbone))


def runs_remote_code(source: str) -> bool:
    """Whether `trust_remote_code` was called for a backbone.

    Args:
        source: From `resolve_backbone`.

    Returns:
        False where it was not.
    """
    return source in _trusted
