"""EVA: adapters that start with the principal directions of their layers' inputs, and share out the ranks by these.

Source: Paischer et al. 2024 (arXiv 2410.07170). The decomposition and the redistribution are PEFT's.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, ClassVar, Self, cast

from peft import EvaConfig, PeftModel, get_eva_state_dict, initialize_lora_eva_weights
from torch import Tensor, nn

from lora_lightning.compat.peft import adapters_in_float32
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.dropout import use_fast_dropout
from lora_lightning.lora.parameter_names import ADAPTER, peft_name, weight_name
from lora_lightning.lora.target_modules import layer_features
from lora_lightning.lora.variants.variant import LARGEST_FLOAT32, Batch, Initialization, TrainingFacts

MOST_BATCHES = 1000  # PEFT sets no limit


@dataclass
class EvaSettings:
    """How `init_lora_weights: eva` uses the training data (arXiv 2410.07170).

    Args:
        rho: An adapter may get up to `rho * r` ranks, at the expense of others; 1 gives every adapter `r`.
        tau: Cosine above which a direction has settled from one batch to the next, in (0, 1].
        whiten: Divide each direction by the square root of its singular value.
    """

    rho: float = 2.0
    tau: float = 0.99
    whiten: bool = False

    def __post_init__(self) -> None:
        """Rejects values that PEFT cannot use.

        Raises:
            ConfigurationError: If a value is out of its range.
        """
        if not 1 <= self.rho < LARGEST_FLOAT32:
            msg = f"model.lora.eva_config.rho is {self.rho}, but it must be at least 1, and finite."
            raise ConfigurationError(msg)
        if not 0 < self.tau <= 1:
            msg = f"model.lora.eva_config.tau is {self.tau}, but it must be a cosine in (0, 1]."
            raise ConfigurationError(msg)


class Eva(Initialization):
    """EVA's part in a run: it runs the model on the training data once, before anything has seen the parameters.

    Args:
        value: `eva`.
        config: `eva_config`; `None` for PEFT's default.
    """

    initializations = ("eva",)
    excludes: ClassVar[Mapping[str, str]] = {
        "model.lora.trainable_token_indices": (
            "PEFT takes the embeddings for one of EVA's layers; choose one of the two"
        )
    }
    why_not_sharded = "EVA runs the model before it is sharded"
    chooses_ranks = True

    def __init__(self, value: Any = "eva", config: EvaSettings | None = None) -> None:
        super().__init__(value)
        self.config = EvaConfig(**(asdict(config) if config else {}))

    @classmethod
    def from_settings(cls, lora: Any, optimization: Any) -> Self | None:
        """Makes the variant, with its own settings, if `init_lora_weights` is `eva`."""
        del optimization
        chosen = lora is not None and cls.is_chosen_by(lora.init_lora_weights)
        return cls(lora.init_lora_weights, lora.eva_config) if chosen else None

    def check_layer(self, module: str, layer: nn.Module, rank: int) -> None:
        """Refuses a rank for which the layer's inputs have too few directions."""
        width, _ = layer_features(layer)
        if round(rank * self.config.rho) > width:
            msg = (
                f"model.lora.init_lora_weights is eva, but r * rho = {round(rank * self.config.rho)} directions are "
                f"more than the {width} inputs of {module}; lower r or eva_config.rho."
            )
            raise ConfigurationError(msg)

    def peft_arguments(self) -> dict[str, Any]:
        """PEFT's settings of EVA."""
        return {"eva_config": self.config}

    def before_training(self, network: PeftModel, training: TrainingFacts) -> None:
        """Takes directions and ranks from the main process's share of the training data, the same on all processes."""
        if training.resumes:
            return
        network.to(training.device)  # Lightning moves the model later
        directions: dict[str, Tensor] = {}
        if training.is_main_process:
            with training.isolated():
                directions = directions_of_data(network, training.batches(), training.evaluate)
            directions = {name: values.cpu() for name, values in directions.items()}  # the others have their own GPUs
        start_from_directions(network, training.broadcast(directions))
        ranks = [adapter_factors(layer)[0].shape[0] for layer in adapted_layers(network).values()]
        training.report(
            f"EVA: {len(ranks)} of {len(directions)} layers have an adapter, of rank {min(ranks)} to {max(ranks)} "
            f"({sum(ranks)} in all)"
        )

    def adopt_shapes(self, network: PeftModel, state: Mapping[str, Tensor]) -> None:
        """Gives the adapters the ranks that they have in a checkpoint; does nothing if they have them already."""
        own = {name: adapter_factors(layer)[0] for name, layer in adapted_layers(network).items()}
        saved = {name: state.get(weight_name(name, "A"), weight[:0]) for name, weight in own.items()}
        if any(saved[name].shape[1:] != weight.shape[1:] for name, weight in own.items()):
            return  # a checkpoint of another backbone, which is refused when the shapes are compared
        if any(len(saved[name]) != len(weight) for name, weight in own.items()):
            start_from_directions(network, {peft_name(name): factor.to(own[name]) for name, factor in saved.items()})

    @classmethod
    def needs_conversion(cls, network: PeftModel) -> bool:
        """Always: PEFT keeps only the ends of the targets' names, which also match layers that lost their adapter."""
        return cls.is_chosen_by(getattr(network.peft_config[ADAPTER], "init_lora_weights", None))


class _Batches:
    """Batches without end, as PEFT wants them, up to `MOST_BATCHES`.

    Args:
        loader: Batches of the training data.
        least: Rows that an adapter needs of a batch; PEFT skips a smaller one.
    """

    def __init__(self, loader: Any, least: int) -> None:
        self.loader = loader
        self.least = least
        self.most = 0  # rows that a batch brought a layer

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        count = 0
        while count < MOST_BATCHES:
            for batch in islice(self.loader, MOST_BATCHES - count):
                yield batch
                count += 1
            if self.most < self.least:
                break  # another pass would bring no more
        msg = (
            f"EVA's directions had not settled after {count} batches, which brought a layer {self.most} rows at most: "
            "each batch must bring every layer at least r * rho rows; raise data.batch_size, or lower model.lora.r, "
            "eva_config.rho or eva_config.tau."
        )
        raise ConfigurationError(msg)

    def rows(self, inputs: Any, mask: Tensor | None, _name: str) -> Tensor:
        """A layer's input as (rows, in_features)."""
        features: Tensor = inputs[0] if isinstance(inputs, tuple | list) else inputs
        if mask is not None and features.shape[:-1] == mask.shape:
            features = features[mask]
        # A pooler reads a slice of the hidden states, which PEFT cannot take a view of.
        features = features.reshape(-1, features.shape[-1]).contiguous()
        self.most = max(self.most, len(features))
        return features


def directions_of_data(network: PeftModel, loader: Any, run: Callable[[Batch], Any]) -> dict[str, Tensor]:
    """The directions that the adapters are to start with.

    Args:
        network: With `init_lora_weights: eva`, on the device that computes; left as it is.
        loader: Batches of the training data.
        run: Runs the network on a batch.

    Returns:
        A by the name of the layer in the network, (its rank, in_features), float32; the ranks sum up to what
        `r` and `rank_pattern` gave all layers together, and may be 0.

    Raises:
        ConfigurationError: If the directions do not settle.
    """
    rho = cast("Any", network.peft_config[ADAPTER]).eva_config.rho
    ranks = [adapter_factors(layer)[0].shape[0] for layer in adapted_layers(network).values()]
    batches = _Batches(loader, round(min(ranks) * rho))
    with redirect_stdout(io.StringIO()):  # PEFT prints each batch that is too small
        found: dict[str, Tensor] = get_eva_state_dict(
            network,
            batches,
            forward_fn=lambda _, batch: run(batch),
            prepare_model_inputs_fn=_positions_that_count,
            prepare_layer_inputs_fn=batches.rows,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    return found


def _positions_that_count(batch: Batch, _config: Any) -> Tensor | None:
    """The positions that hold text and, for language models, a label: (rows, positions), bool."""
    mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
    labels = batch.get("labels")
    if labels is not None and "input_ids" in batch and labels.shape == batch["input_ids"].shape:
        learnt = labels != -100  # noqa: PLR2004  # torch's own mark
        mask = learnt if mask is None else mask & learnt
    return mask


def start_from_directions(network: PeftModel, directions: Mapping[str, Tensor]) -> None:
    """Puts directions and their ranks into the adapters; B stays 0. Layers of rank 0 lose their adapter.

    Args:
        network: With `init_lora_weights: eva`; changed in place.
        directions: From `directions_of_data`.
    """
    mode = network.training
    scalings = {name: layer.scaling[ADAPTER] for name, layer in adapted_layers(network).items()}
    initialize_lora_eva_weights(network, eva_state_dict=dict(directions))
    for name, layer in adapted_layers(network).items():
        layer.scaling[ADAPTER] = scalings[name]  # PEFT keeps it for alpha / r, not for rsLoRA's alpha / sqrt(r)
    adapters_in_float32(network, ADAPTER)  # new layers have the dtype in which a quantized base computes
    use_fast_dropout(network)  # PEFT has made new layers of dropout
    network.train(mode)
