"""What does quantization do to the base? The error of each layer, and the share of it that adapters cancel."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from lora_lightning.analysis.quantization_error import canceled_share, reachable_share, relative_error, weight_shape
from lora_lightning.backbones.gguf_origin import origin_of_weights
from lora_lightning.diagnosis.opened_runs import OpenedRun, full_weight_of, quantized_weight_of
from lora_lightning.diagnosis.weight_dtypes import bytes_in, dtype_name, weights_dtype
from lora_lightning.lora.delta import AdapterDelta, split_layer_number
from lora_lightning.lora.quantized import quantized_bits, weight_bytes
from lora_lightning.statistics.jackknife import Interval, mean_interval

Updates = Mapping[str, AdapterDelta]


@dataclass(frozen=True)
class LayerError:
    """A quantized layer.

    Attributes:
        module: Dotted name.
        layer: Number of its layer; `None` outside numbered layers.
        kind: Name within the layer.
        error: ||W - Q(W)|| / ||W||.
        canceled: The share of W - Q(W) that adapters on the quantized base cancel, averaged over them; NaN without one.
        canceled_by_other: The same of adapters that were trained without quantization, which have never seen the
            error: what is expected by chance.
        reachable: The largest share that an update of this rank could cancel; NaN without an adapter.
        excess_kurtosis: Of the entries of W.
        outlier_share: Share of the entries that are more than 4 standard deviations from their mean.
        largest: The largest distance of an entry from the mean, in standard deviations.
        full_bytes: Memory of the weight in runs of the quantized precision, if it is not quantized there.
        quantized_bytes: Memory of the quantized weight with its scales.
    """

    module: str
    layer: int | None
    kind: str
    error: float
    canceled: float
    canceled_by_other: float
    reachable: float
    excess_kurtosis: float
    outlier_share: float
    largest: float
    full_bytes: int
    quantized_bytes: int


@dataclass(frozen=True)
class BaseErrors:
    """What quantizing the base does.

    Attributes:
        layers: The quantized layers, in the model's order.
        canceled: The share of W - Q(W) that an adapter on the quantized base cancels, as the mean over layers, with
            its interval over adapters.
        canceled_by_other: The same of adapters that were trained without quantization.
        adapters: Number of adapters of each kind: on the quantized base, and without quantization.
        full_bytes: Memory of all frozen and trained weights without quantization, adapters included.
        quantized_bytes: The same with the quantized base.
        pad_token_id: Of the tokenizer; -1 if the data has none.
        vocabulary: Number of embeddings; 0 if the model reads no tokens.
        dtypes: In which the runs of both precisions keep what is not quantized, first without quantization; all bytes
            are counted in these.
        origin: The quantized types from which the weights were dequantized before all training, such as
            `Q4_1 (79 %) and Q8_0 (21 %)`; empty if they were not.
    """

    layers: tuple[LayerError, ...]
    canceled: Interval
    canceled_by_other: Interval
    adapters: tuple[int, int]
    full_bytes: int
    quantized_bytes: int
    pad_token_id: int
    vocabulary: int
    origin: str = ""
    dtypes: tuple[str, str] = ("float32", "float32")

    @property
    def counted_in(self) -> str:
        """In which dtypes bytes are counted, as a sentence."""
        if len({*self.dtypes}) == 1:
            return f"What is not quantized is counted in {self.dtypes[0]}, as it was trained."
        own, other = self.dtypes
        return (
            f"What is not quantized is counted as it was trained: in {own} without quantization, and in {other} beside "
            "quantized weights."
        )

    @property
    def caution(self) -> str:
        """What has to be said beside every number about weights that were quantized before; empty for others."""
        if not self.origin:
            return ""
        return f"The base's weights were dequantized from {self.origin}, so this says little about a base in 16 bits."


def measure_base_errors(
    full: OpenedRun, quantized: OpenedRun, own: Sequence[Updates], others: Sequence[Updates]
) -> BaseErrors:
    """Compares the base of two runs, and what adapters do about its errors.

    Args:
        full: A run without quantization.
        quantized: A run with it.
        own: The updates of each adapter that was trained on the quantized base, by module.
        others: The same of each that was trained without quantization.

    Returns:
        The errors of all quantized layers.
    """
    originals = full.layers
    dtypes = weights_dtype(full.run), weights_dtype(quantized.run)
    layers: list[LayerError] = []
    shares: tuple[list[list[float]], list[list[float]]] = [], []
    for name, layer in quantized.quantized_layers().items():
        weight, rounded = full_weight_of(originals[name]), quantized_weight_of(layer).to(_device(originals[name]))
        both = [[_share(updates.get(name), weight - rounded) for updates in each] for each in (own, others)]
        rank = next((updates[name].r for updates in own if name in updates), None)
        layers.append(_layer_error(name, dtypes[1], layer, weight, rounded, both, rank))
        for found, each in zip(shares, both, strict=True):
            found.append(each)
    pad, vocabulary = padding_of(full)
    canceled, by_other = (_over_adapters(each) for each in shares)
    return BaseErrors(
        tuple(layers),
        canceled,
        by_other,
        (len(own), len(others)),
        model_bytes(full.task.built_network, originals, dtypes[0]),
        model_bytes(quantized.task.built_network, quantized.layers, dtypes[1]),
        pad,
        vocabulary,
        origin_of_weights(full.task.backbone),
        (dtype_name(dtypes[0]), dtype_name(dtypes[1])),
    )


@torch.no_grad()
def _layer_error(
    name: str,
    dtype: torch.dtype,
    quantized: nn.Module,
    weight: Tensor,
    rounded: Tensor,
    shares: Sequence[Sequence[float]],
    rank: int | None,
) -> LayerError:
    shape = weight_shape(weight)
    layer, kind = split_layer_number(name)
    return LayerError(
        name,
        layer,
        kind,
        error=relative_error(weight, rounded),
        canceled=mean_of_known(shares[0]),
        canceled_by_other=mean_of_known(shares[1]),
        reachable=math.nan if rank is None else reachable_share(weight - rounded, rank),
        excess_kurtosis=shape.excess_kurtosis,
        outlier_share=shape.outlier_share,
        largest=shape.largest,
        full_bytes=bytes_in(weight, dtype),
        quantized_bytes=weight_bytes(quantized),
    )


def _over_adapters(shares: Sequence[Sequence[float]]) -> Interval:
    """The mean over layers and adapters, from the shares by layer and adapter; other seeds are other adapters."""
    means = [mean_of_known(each) for each in zip(*shares, strict=True)]
    return mean_interval([mean for mean in means if not math.isnan(mean)])


def mean_of_known(numbers: Iterable[float]) -> float:
    """The mean of the numbers that are not NaN; NaN if none is left."""
    known = [number for number in numbers if not math.isnan(number)]
    return fmean(known) if known else math.nan


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


def _share(update: AdapterDelta | None, error: Tensor) -> float:
    return math.nan if update is None else canceled_share(update, error)


def model_bytes(model: nn.Module, layers: Mapping[str, nn.Module], dtype: torch.dtype = torch.float32) -> int:
    """The memory of a model's weights.

    Args:
        model: Any.
        layers: Its linear layers, whose quantized weights have scales beside them.
        dtype: Of what is not quantized, in its run.

    Returns:
        Bytes of parameters and buffers, each storage once, with the scales of quantized weights.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    packed = {id(layer.weight): layer for layer in layers.values() if quantized_bits(layer)}
    others = [tensor for number, tensor in tensors.items() if number not in packed]
    return sum(map(weight_bytes, packed.values())) + sum(bytes_in(tensor, dtype) for tensor in others)


def padding_of(opened: OpenedRun) -> tuple[int, int]:
    """The padding token of a run's data, and how many embeddings its model has.

    Args:
        opened: The run.

    Returns:
        -1 without a tokenizer or a padding token, and 0 without embeddings.
    """
    tokenizer = getattr(opened.examples.datamodule, "tokenizer", None)
    pad = -1 if tokenizer is None or tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    try:
        embeddings = opened.task.transformers_model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return pad, 0
    return pad, 0 if embeddings is None else int(embeddings.weight.shape[0])  # type: ignore[index]
