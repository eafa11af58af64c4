"""Rotary position embeddings whose frequencies depend on the length of a row: no pass changes those of the next.

transformers keeps the frequencies of the longest row so far (`dynamic`), or of the last one (`longrope`), in a buffer.
A logit would depend on the rows that the model saw before, and the frozen base would change during training.
"""

from typing import Any

import torch
from torch import nn

BY_LENGTH = ("dynamic", "longrope")
ORIGINAL = "original_inv_freq"


def reset_frequencies_after_each_pass(model: nn.Module) -> None:
    """Puts the frequencies of short rows back after each pass, with hooks.

    Args:
        model: From transformers; changed in place. Models without such embeddings stay as they are.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)  # by layer type if the layers differ
        kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
        if any(word in str(kind) for kind in kinds for word in BY_LENGTH):
            module.register_forward_hook(_reset, always_call=True)


@torch.inference_mode(mode=False)
@torch.no_grad()
def _reset(module: Any, *_: Any) -> None:
    for name in [name for name, _ in module.named_buffers(recurse=False) if name.endswith(ORIGINAL)]:
        prefix = name.removesuffix(ORIGINAL)
        own, original = getattr(module, f"{prefix}inv_freq"), getattr(module, name)
        if own.is_inference():  # made in an evaluation: training could not write to it
            module.register_buffer(f"{prefix}inv_freq", original.to(own.device, copy=True), persistent=False)
        else:
            own.copy_(original)
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
