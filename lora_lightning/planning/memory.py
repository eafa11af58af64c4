"""Peak memory of a training: weights and optimizer are counted, activations are traced."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lora_lightning.backbones.gguf_origin import memory_to_load
from lora_lightning.compat.fake_tensors import errors_of_shapes_hidden
from lora_lightning.compat.torch import convert_tensors
from lora_lightning.errors import LoraLightningError
from lora_lightning.lora.parameter_names import is_adapter_parameter
from lora_lightning.planning.layers import cut_to, depths_to_trace, layer_lists
from lora_lightning.planning.outline import build_outline
from lora_lightning.planning.overhead import overhead_of
from lora_lightning.planning.precisions import Precision, in_precision, why_unavailable
from lora_lightning.planning.results import MemoryRow
from lora_lightning.planning.settings import PlannedTraining
from lora_lightning.planning.step import BatchShape, StepTrace, StepTracer
from lora_lightning.planning.storage import Peak, storages_of
from lora_lightning.tasks import AdaptationTask

MOMENTS = 2  # of AdamW
IMPORTANCES = 3  # of AdaLoRA
MOST_ROWS = 2**20


@dataclass(frozen=True)
class Linear:
    """A number of bytes that is linear in the rows of a batch."""

    start: float
    slope: float

    def at(self, rows: int) -> int:
        """The value at a number of rows."""
        return max(0, round(self.start + self.slope * rows))


@dataclass(frozen=True)
class Measure:
    """What a training in one precision holds, in bytes.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of all trainable parameters.
        optimizer: Moments and importances.
        forward: Activations of the forward pass.
        backward: Activations at the peak of the backward pass.
        backward_gradients: Gradients at that moment.
        validation: Activations of a batch in validation.
        checkpoint: What a checkpoint on the device holds, which is read after training.
        second_base: The base model that a monitor loads beside the trained one, with a batch of validation.
        loading: All that is there while a GGUF file is dequantized, less the overhead of the later phases.
    """

    weights: int
    gradients: int
    optimizer: int
    forward: Linear
    backward: Linear
    backward_gradients: int
    validation: int
    checkpoint: int
    second_base: int
    loading: int

    def parts(self, rows: int) -> tuple[str, int, int]:
        """When the peak with some rows in a step is, and its activations and gradients."""
        phases = [
            (
                "forward",
                self.forward.at(rows),
                self.gradients,
            ),  # Lightning frees the last step's after the forward pass
            ("backward", self.backward.at(rows), self.backward_gradients),
            ("validation", self.validation, self.gradients),
            ("checkpoint", self.checkpoint, 0),
            ("merge check", self.second_base, self.gradients),
            ("loading", self.loading - self.weights - self.optimizer, 0),
        ]
        return max(phases, key=lambda phase: phase[1] + phase[2])


def memory_row(
    training: PlannedTraining, precision: Precision, device: str, limit: int | None, head_is_linear: bool
) -> MemoryRow:
    """Plans the memory of a training in one precision.

    Args:
        training: The settings; its task has the outline of the config's precision, or gets that of another one. A
            network is not used again once it was traced.
        precision: How weights are kept.
        device: `cpu` or `cuda`.
        limit: Memory that there is, in bytes; `None` if nobody asked.
        head_is_linear: Of a language model: whether its logits are a linear layer of the last hidden state.

    Returns:
        The row of the table.
    """
    task = training.task
    if why := why_unavailable(task, precision):
        return MemoryRow(precision.name, precision.options, precision.is_config, unavailable=why)
    with in_precision(task, precision), errors_of_shapes_hidden():
        try:
            if not precision.is_config:
                build_outline(task, precision.compute_dtype(device))
            measure = _measure(training, precision, device, head_is_linear, needs_slope=limit is not None)
        except LoraLightningError:
            raise
        except Exception as error:  # noqa: BLE001  # an architecture that looks at values raises anything
            why = f"a step of this model cannot be traced without values ({type(error).__name__})"
            return MemoryRow(precision.name, precision.options, precision.is_config, unavailable=why)

    def row(rows: int) -> MemoryRow:
        phase, activations, gradients = measure.parts(rows)
        return MemoryRow(
            precision.name,
            precision.options,
            precision.is_config,
            weights=measure.weights,
            gradients=gradients,
            optimizer=measure.optimizer,
            activations=activations,
            overhead=overhead_of(device, is_quantized=precision.quantization is not None),
            phase=phase,
        )

    found = row(training.rows)
    if limit is None:
        return found
    largest = _largest(lambda rows: row(rows).peak <= limit)
    return MemoryRow(**{**vars(found), "largest_batch": largest, "fits": found.peak <= limit})


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number of rows that fits, by bisection; 0 for none."""
    low, high = 0, MOST_ROWS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _measure(
    training: PlannedTraining, precision: Precision, device: str, head_is_linear: bool, *, needs_slope: bool
) -> Measure:
    task, network = training.task, training.task.built_network
    if (dtype := precision.weights) is not None:
        convert_tensors(network, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    trainable = [(name, each) for name, each in network.named_parameters() if each.requires_grad]
    gradients = sum(_size(each) for _, each in trainable)
    optimizer = MOMENTS * gradients
    if task.lora is not None and task.lora.adalora is not None:
        optimizer += IMPORTANCES * sum(_size(each) for name, each in trainable if is_adapter_parameter(name))
    weights = sum(_size(tensor) for tensor in storages_of(network))
    model, lora = task.transformers_model, task.lora
    depths = depths_to_trace(model, lora)
    depth = max((len(each) for each in layer_lists(model)), default=0)
    with cut_to(model, depths[-1]):  # no other layers are traced
        tracer = StepTracer(task, precision.autocast, head_is_linear, device)
    rows = training.rows
    traces = {key: _trace(tracer, training, model, *key) for key in [(each, rows) for each in depths]}
    if needs_slope:
        traces[depths[0], 2 * rows] = _trace(tracer, training, model, depths[0], 2 * rows, validates=False)

    def grow(value: Callable[[StepTrace], int]) -> tuple[float, float]:
        """The value at the config's rows for all layers, and its share that does not depend on rows."""
        first = value(traces[depths[0], rows])
        total = first + (depth - depths[0]) * _per_layer(depths, [value(traces[each, rows]) for each in depths])
        more = value(traces[depths[0], 2 * rows]) if needs_slope else 2 * first
        return total, 2 * first - more

    def linear(peak: Callable[[StepTrace], Peak]) -> Linear:
        total, constant = grow(lambda trace: peak(trace).activations)
        return Linear(constant, (total - constant) / rows)

    accumulated = gradients if training.accumulates else 0
    validation = round(grow(lambda trace: trace.validation.activations)[0])
    return Measure(
        weights,
        gradients,
        optimizer,
        forward=linear(lambda trace: trace.forward),
        backward=linear(lambda trace: trace.backward),
        backward_gradients=max(accumulated, min(gradients, round(grow(lambda trace: trace.backward.gradients)[0]))),
        validation=validation,
        checkpoint=gradients + optimizer if device == "cpu" else 0,
        second_base=weights + validation if training.loads_second_base else 0,
        loading=_loading(task, precision) if device == "cpu" else 0,
    )


def _loading(task: AdaptationTask, precision: Precision) -> int:
    overhead = overhead_of("cpu", is_quantized=precision.quantization is not None)
    return 0 if task.auto_class is None else memory_to_load(task.backbone) - overhead


def _per_layer(depths: tuple[int, ...], values: list[int]) -> float:
    return 0.0 if len(depths) == 1 else (values[1] - values[0]) / (depths[1] - depths[0])


def _trace(
    tracer: StepTracer, training: PlannedTraining, model: nn.Module, depth: int, rows: int, *, validates: bool = True
) -> StepTrace:
    shapes = [
        BatchShape(count, tokens, training.has_padding, training.is_packed)
        for count, tokens in ((rows, training.tokens), (training.evaluation_rows, training.evaluation_tokens))
    ]
    with cut_to(model, depth):
        return tracer.trace(shapes[0], shapes[1] if validates else None)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
