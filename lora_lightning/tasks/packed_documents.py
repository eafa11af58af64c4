"""How a language model keeps the documents of one row apart: found out by trying, exact or refused."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_lightning.compat.transformers import create_masks_for_generate
from lora_lightning.errors import BackboneError

Way = Literal["positions", "mask"]
WAYS: tuple[Way, ...] = ("positions", "mask")
Inputs = dict[str, Any]
Features = Callable[[Inputs], Tensor]

DOCUMENTS = (11, 3, 14, 1, 5)  # tokens: shorter and longer than the kernels of convolutions, and a single one
TIMES_ROUNDING = 10  # a difference that many times larger than the rounding that was measured has another cause
TIMES_PRECISION = 20  # the same for the precision of the features' dtype
SMALLEST_TOLERANCE = 1e-5  # in float32: relative, of a token's features
SMALLEST_LEAK = 1e-6  # of a gradient, relative to that of a document's own tokens; 0 if nothing leaks
LONGEST_WINDOW = 8192  # tokens; a document longer than a sliding window is tried if that is not longer
WINDOW_NAMES = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size", "local_window")


def packed_inputs(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, way: Way) -> Inputs:
    """Arguments for rows of several documents.

    Args:
        model: The language model.
        input_ids: (rows, positions), int64.
        position_ids: (rows, positions), int64, starting at 0 with every document.
        way: From `how_documents_are_kept_apart`.

    Returns:
        Arguments of the model's `forward`.
    """
    # With a cache transformers does not look for several documents in a row.
    inputs = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
    return inputs | ({"attention_mask": block_diagonal_mask(model, position_ids)} if way == "mask" else {})


def block_diagonal_mask(model: PreTrainedModel, position_ids: Tensor) -> Tensor | dict[str, Tensor | None] | None:
    """A causal mask that ends where a document ends, in the form that the model's attention takes.

    Args:
        model: The language model.
        position_ids: (rows, positions), starting at 0 with every document.

    Returns:
        (rows, 1, positions, positions), with the layers' sliding windows; by layer type if the layers differ; `None`
        if every row is one document.
    """
    mask = create_masks_for_generate(
        model.config,
        torch.empty(*position_ids.shape, 0, dtype=model.dtype, device=position_ids.device),  # its shape counts
        None,
        None,  # by place: transformers 5.23 calls it past_key_values, and 5.24 warns of that name
        position_ids=position_ids,
    )
    return cast("Tensor | dict[str, Tensor | None] | None", mask)


def how_documents_are_kept_apart(model: PreTrainedModel, features: Features) -> Way:
    """Finds out how this architecture must be told that a row holds several documents.

    If positions start again at 0, transformers makes a block-diagonal mask in most architectures. OPT's and GPT-OSS's
    attention never sees the positions, so they need the mask itself. Alibi, convolutions and states that run through
    a row know neither.

    A way works if every document has the features that it has alone, up to the rounding that another shape of the
    input causes, and if no feature has a gradient with respect to another document, which no rounding can hide.

    Args:
        model: The language model, in evaluation mode.
        features: Computes (rows, positions, features) from arguments of the model's `forward`, differentiable.

    Returns:
        `positions` if `position_ids` are enough, `mask` if the model needs `block_diagonal_mask` as well.

    Raises:
        BackboneError: If neither keeps documents apart.
    """
    documents = _some_documents(model, DOCUMENTS)
    alone = [_features_alone(features, tokens) for tokens in documents]
    tolerance = _tolerance(features, documents, alone)
    for way in WAYS:
        try:
            if _is_exact(model, features, way, documents, alone, tolerance):
                return way
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001, S112  # an architecture that takes no such argument raises anything
            continue
    msg = (
        f"{type(model).__name__} cannot keep several documents in one row apart, so examples cannot be packed for it; "
        "set data.packing: false, which trains one example a row."
    )
    raise BackboneError(msg)


def check_is_causal(model: PreTrainedModel, features: Features) -> None:
    """Refuses a model whose features depend on later tokens: it would read the token that it has to predict.

    Args:
        model: The language model, in evaluation mode.
        features: As for `how_documents_are_kept_apart`.

    Raises:
        BackboneError: If it does.
    """
    (tokens,) = _some_documents(model, [max(DOCUMENTS)])
    found, embedded = _with_embeddings(model, features, _alone(tokens[None]))
    half = len(tokens) // 2
    gradient = _gradient(found[:, :half], embedded)
    if gradient[:, half:].norm() > SMALLEST_LEAK * gradient[:, :half].norm():
        msg = (
            f"{type(model).__name__} attends to the tokens after a position too, so it would see the token that it has "
            "to predict; give a causal language model such as gpt2, facebook/opt-125m or HuggingFaceTB/SmolLM2-135M."
        )
        raise BackboneError(msg)


def reads_padding(model: PreTrainedModel, features: Features) -> bool:
    """Whether padding before a text changes what follows it, as in RWKV and xLSTM, which look at no attention mask.

    Args:
        model: The language model, in evaluation mode.
        features: As for `how_documents_are_kept_apart`.
    """
    (tokens,) = _some_documents(model, [max(DOCUMENTS)])
    half = len(tokens) // 2
    mask = (torch.arange(len(tokens), device=tokens.device) >= half).long()
    found, embedded = _with_embeddings(model, features, _alone(tokens[None]) | {"attention_mask": mask[None]})
    gradient = _gradient(found[:, half:], embedded)
    return not bool(gradient[:, :half].norm() <= SMALLEST_LEAK * gradient[:, half:].norm())


def _is_exact(
    model: PreTrainedModel,
    features: Features,
    way: Way,
    documents: Sequence[Tensor],
    alone: Sequence[Tensor],
    tolerance: float,
) -> bool:
    found, embedded = _with_embeddings(model, features, _packed(model, [documents, documents[::-1]], way))
    expected = torch.stack([torch.cat(list(alone)), torch.cat(list(alone[::-1]))])
    if not _difference(found, expected) <= tolerance or _leaks(found, embedded, documents):
        return False
    window = max((w for name in WINDOW_NAMES if isinstance(w := getattr(model.config, name, None), int)), default=0)
    if not max(DOCUMENTS) < window <= LONGEST_WINDOW:
        return True
    long = _some_documents(model, (3, window + 3))
    with torch.no_grad():
        found = features(_packed(model, [long], way))
    expected = torch.cat([_features_alone(features, tokens) for tokens in long])
    return _difference(found[0], expected) <= tolerance


@torch.no_grad()
def _features_alone(features: Features, tokens: Tensor) -> Tensor:
    return features(_alone(tokens[None]))[0]


def _tolerance(features: Features, documents: Sequence[Tensor], alone: Sequence[Tensor]) -> float:
    """From how far features change with the shape of the input alone: those of quantized weights do by some percent."""
    longer = [_features_alone(features, torch.cat([tokens, documents[0]])) for tokens in documents]
    rounding = max(_difference(more[: len(one)], one) for more, one in zip(longer, alone, strict=True))
    precision = torch.finfo(alone[0].dtype).eps
    return max(TIMES_ROUNDING * rounding, TIMES_PRECISION * precision, SMALLEST_TOLERANCE)


def _alone(input_ids: Tensor) -> Inputs:
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}


def _packed(model: PreTrainedModel, batch: Sequence[Sequence[Tensor]], way: Way) -> Inputs:
    input_ids = torch.stack([torch.cat(list(row)) for row in batch])
    places = [torch.cat([torch.arange(len(tokens), device=tokens.device) for tokens in row]) for row in batch]
    return packed_inputs(model, input_ids, torch.stack(places), way)


def _some_documents(model: PreTrainedModel, lengths: Sequence[int]) -> list[Tensor]:
    """Documents of different tokens, as far as the vocabulary allows; (length,) each."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.arange(sum(lengths), device=model.device) * 7 % (vocabulary - 3) + 3  # no special ones
    return list(torch.split(tokens, list(lengths)))


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest relative difference of a token's features; NaN compares as different."""
    found, expected = found.detach().float(), expected.float()
    size = expected.norm(dim=-1)
    return float(((found - expected).norm(dim=-1) / size.clamp_min(1e-6 * size.max())).max())


def _with_embeddings(model: PreTrainedModel, features: Features, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Features, and the embeddings, (rows, positions, hidden size), that they can be differentiated by."""
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        is_transposed = output.shape[:2] != inputs["input_ids"].shape  # XLNet's first axis is positions
        seen.append((output.transpose(0, 1) if is_transposed else output).detach().requires_grad_())
        copy = seen[-1].clone()  # some architectures change it in place
        return copy.transpose(0, 1) if is_transposed else copy

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        found = features(inputs)
    finally:
        hook.remove()
    return found, seen[-1]


def _leaks(found: Tensor, embedded: Tensor, documents: Sequence[Tensor]) -> bool:
    """Whether the features of a document in the first row have a gradient with respect to another document."""
    stop = 0
    for tokens in documents:
        start, stop = stop, stop + len(tokens)
        gradient = _gradient(found[0, start:stop], embedded)
        own = gradient[0, start:stop].norm()
        gradient[0, start:stop] = 0
        if not gradient.norm() <= SMALLEST_LEAK * own:
            return True
    return False


def _gradient(found: Tensor, embedded: Tensor) -> Tensor:
    """With respect to the embeddings, of a sum with random weights: norms make plain sums constant."""
    weights = torch.randn(found.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(found.device)
    return torch.autograd.grad((found.float() * weights).sum(), embedded, retain_graph=True)[0].float()
