"""How far training moves each layer's hidden states of the same examples."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from safetensors.torch import save
from torch import Tensor
from transformers import PretrainedConfig

from lora_lightning.analysis.representations import FEWEST_EXAMPLES, Pooling, linear_cka, pool_tokens, row_cosines
from lora_lightning.backbones import load_config
from lora_lightning.backbones.first_token import every_token
from lora_lightning.callbacks.adapter_monitor import TOTAL, TRAINING, AdapterMonitor, Measurement
from lora_lightning.datamodules import TextDataModule
from lora_lightning.datamodules.base import VALIDATION
from lora_lightning.errors import ConfigurationError
from lora_lightning.figures.drift import drift_figure
from lora_lightning.loggers import Board
from lora_lightning.lora.initial_factors import pretrained_base
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.runs.files import atomic_file
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.held_out_batches import evaluation_mode

FOLDER = "representations"
ROWS = "rows"  # of the validation split, beside the layers in an exported file
ROWS_AT_ONCE = 16  # of similar length, so that little is padded, and few hidden states are held together
PROBE_SEED = 0  # not the run's own: every run of the same data looks at the same examples


class RepresentationDrift(AdapterMonitor):
    """Compares the hidden states of adapted and base model, on a fixed sample of the validation data.

    An example is a row of the split; documents that are packed into one row are one example.

    Each layer has `cosine`, the mean over the examples (1: every example points where it did), and `cka`, debiased
    linear centered kernel alignment (1: the same geometry of the examples, up to rotation and scale; around 0:
    unrelated; NaN if all examples have the same state, or there are fewer than 4). The curves `weights/drift/` are
    their means over the layers; a picture shows both over layers and steps.

    The base's states are computed when training starts, with the adapters and `modules_to_save` disabled. If parameters
    of the base are trainable (`lora: null`, or `lora.bias`), they are its states before the first step, and checkpoints
    keep the pooled states for resumed runs. All tokens of the last layer are computed, even if a classifier uses only
    the first. The layers of an encoder-decoder are numbered through, the encoder's first.

    Args:
        every_n_steps: Optimizer steps between measurements; `null` measures at each validation.
        layers: Numbers of the layers, from 0; `null` measures all.
        probe_size: Examples, at least 4; all of the (first) validation split if it has fewer.
        pooling: An example's vector: `mean` over its real tokens, or its `first` or `last` one.
        export: Write the pooled states to `base.safetensors` and `step_<step>.safetensors` in
            `<run folder>/representations`: (examples, features), float32, by layer; and `rows`, the examples' numbers
            in the validation split.
        log_modules: Whether loggers get a curve for each number of each layer.
    """

    table = "representation_drift"
    tag = "weights/drift"

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: list[int] | None = None,
        probe_size: int = 64,
        pooling: Pooling = "mean",
        export: bool = True,
        log_modules: bool = False,
    ) -> None:
        super().__init__(every_n_steps, log_modules)
        if probe_size < FEWEST_EXAMPLES:
            msg = f"RepresentationDrift.probe_size is {probe_size}, but it must be at least {FEWEST_EXAMPLES}."
            raise ConfigurationError(msg)
        self.layers = layers
        self.probe_size = probe_size
        self.pooling: Pooling = pooling
        self.export = export
        self._rows = np.empty(0, dtype=np.int64)
        self._base: dict[str, Tensor] = {}
        self._base_trains = False
        self._resumed: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses data without texts, and a layer that the backbone lacks, before its weights load.

        Raises:
            ConfigurationError: If nothing is text, or a number in `layers` is none of the backbone's layers'.
        """
        if stage != "fit":
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, TextDataModule):
            name = type(datamodule).__name__
            msg = f"RepresentationDrift compares the hidden states of texts, and {name} has none; leave it out."
            raise ConfigurationError(msg)
        if self.layers is None:
            return
        task = cast("AdaptationTask", pl_module)
        count = layer_count(load_config(task.backbone))
        for layer in self.layers:
            if not 0 <= layer < count:
                msg = (
                    f"RepresentationDrift.layers has {layer}, but {task.backbone} has {count} layers; choose from 0 to "
                    f"{count - 1}."
                )
                raise ConfigurationError(msg)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the examples and computes the base's states."""
        super().on_train_start(trainer, pl_module)
        task = cast("AdaptationTask", pl_module)
        self._rows = probe_rows(_validation(trainer)[1].lengths, self.probe_size)
        network = task.built_network
        self._base_trains = not isinstance(network, PeftModel) or _biases_train(network)
        with nullcontext() if self._base_trains else _pretrained(cast("PeftModel", network)):
            self._base = self._states(trainer, task)
        if self._base_trains and trainer.global_step:
            self._restore_base(trainer)
        self._write_states(trainer, "base", self._base)

    def _restore_base(self, trainer: Trainer) -> None:
        """The base's states from before the first step, as the checkpoint has them."""
        if self._resumed.get("what") == self._what():
            self._base = self._resumed["states"]
            return
        rank_zero_warn(
            f"RepresentationDrift compares with step {trainer.global_step}, from which this run resumes: the base is "
            "trainable, and the checkpoint has no states of the same layers and examples from before training."
        )

    def state_dict(self) -> dict[str, Any]:
        """The base's states, if they cannot be computed again."""
        base = {"states": self._base, "what": self._what()} if self._base_trains else {}
        return {**super().state_dict(), **base}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts."""
        super().load_state_dict(state_dict)
        self._resumed = state_dict

    def _what(self) -> dict[str, Any]:
        return {"layers": list(self._base), "rows": self._rows.tolist(), "pooling": self.pooling}

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Compares each layer with the base's, and exports."""
        states = self._states(trainer, cast("AdaptationTask", pl_module))
        self._write_states(trainer, "exported" if self._export else f"step_{trainer.global_step:06d}", states)
        measurements = []
        for layer, base in self._base.items():
            cosine = float(row_cosines(states[layer], base).mean())
            measurements.append(Measurement(layer, "cosine", cosine))
            measurements.append(Measurement(layer, "cka", float(linear_cka(states[layer], base))))
        for metric in ("cosine", "cka"):
            values = [m.value for m in measurements if m.metric == metric and not math.isnan(m.value)]
            measurements.append(Measurement(TOTAL, metric, math.fsum(values) / len(values) if values else math.nan))
        return measurements

    def _states(self, trainer: Trainer, task: AdaptationTask) -> dict[str, Tensor]:
        """The pooled states of every layer, (examples, features), float32, on the CPU; every process computes them."""
        datamodule, dataset = _validation(trainer)
        pooled: dict[str, list[Tensor]] = {}
        with torch.no_grad(), evaluation_mode(task), every_token(task):
            at_once = min(ROWS_AT_ONCE, datamodule.eval_batch_size)
            for start in range(0, len(self._rows), at_once):
                rows = self._rows[start : start + at_once]
                batch = {name: tensor.to(task.device) for name, tensor in dataset[rows].items()}
                for layer, hidden in enumerate(task.hidden_states(batch)[1:]):  # the first is the embeddings'
                    if self.layers is None or layer in self.layers:
                        mask = shortened_mask(batch["attention_mask"], hidden.shape[1])
                        vectors = pool_tokens(hidden, mask, self.pooling)
                        pooled.setdefault(f"layer.{layer}.output", []).append(vectors.cpu())
        return {layer: torch.cat(parts) for layer, parts in pooled.items()}

    def _write_states(self, trainer: Trainer, name: str, states: dict[str, Tensor]) -> None:
        if not self.export or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = run_folder_of(trainer) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        content = {**states, ROWS: torch.from_numpy(self._rows)}
        with atomic_file(folder / f"{name}.safetensors") as file:
            file.write(save(content, metadata={"pooling": self.pooling}))

    def add_pictures(self, trainer: Trainer, board: Board, measurements: list[Measurement]) -> None:
        """Draws both similarities over layers and steps."""
        del measurements
        rows = [row for part in self._parts for row in part.to_pylist() if row["state"] == TRAINING]
        rows = [row for row in rows if row["module"] != TOTAL]
        figure = drift_figure({(row["metric"], row["layer"], row["step"]): row["value"] for row in rows})
        board.add_figure(f"{self.tag}/by_layer", figure, trainer.global_step)


@contextmanager
def _pretrained(network: PeftModel) -> Iterator[None]:
    """The pretrained model alone. PEFT would leave whatever a variant froze (LoRA-FA's A) trainable afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        with network.disable_adapter(), pretrained_base(network):
            yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def _biases_train(network: PeftModel) -> bool:
    """Whether disabling the adapters would leave trained biases behind."""
    return cast("LoraConfig", network.peft_config[ADAPTER]).bias != "none"


def _validation(trainer: Trainer) -> tuple[TextDataModule, Any]:
    datamodule = cast("TextDataModule", trainer.datamodule)  # type: ignore[attr-defined]
    return datamodule, datamodule.splits[datamodule.split_names(VALIDATION)[0]]


def layer_count(config: PretrainedConfig) -> int:
    """The number of a model's layers, of an encoder-decoder those of both.

    Args:
        config: The architecture.

    Returns:
        As many as `AdaptationTask.hidden_states` returns beside the embeddings' output.
    """
    if not config.is_encoder_decoder:
        return int(config.num_hidden_layers)
    sides = (("encoder_layers", "num_layers"), ("decoder_layers", "num_decoder_layers"))
    return sum(int(next(getattr(config, name) for name in names if hasattr(config, name))) for names in sides)


def shortened_mask(mask: Tensor, tokens: int) -> Tensor:
    """The attention mask of a layer that pools neighboring tokens, as Funnel's do.

    Args:
        mask: (rows, positions), int64, of the model's input.
        tokens: How many vectors a row has in this layer.

    Returns:
        (rows, tokens): for each vector whether a position that it stands for is a token; the mask itself for a layer
        that pools nothing.
    """
    places = torch.arange(tokens, device=mask.device) * mask.shape[1] // tokens
    return mask if tokens == mask.shape[1] else mask[:, places]


def probe_rows(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Draws the probed examples: the same for the same data.

    Args:
        lengths: (rows,), tokens of each row of the split.
        size: How many to draw; all rows if there are fewer.

    Returns:
        (min(size, rows),), int64, different row numbers, from long rows to short, so that little is padded.
    """
    rows = np.random.default_rng(PROBE_SEED).permutation(len(lengths))[:size]
    return rows[np.argsort(-lengths[rows], kind="stable")]
