"""EVA: adapters that start with the principal directions of what goes into their layers, and share out the ranks by it.

Source: Paischer et al. 2024 (arXiv 2410.07170). The decomposition and the redistribution are PEFT's.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from itertools import islice
from typing import Any, cast

from peft import PeftModel, get_eva_state_dict, initialize_lora_eva_weights
from torch import Tensor

from lora_lightning.compat.peft import adapters_in_float32
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import ADAPTER, adapted_layers, adapter_factors
from lora_lightning.lora.dropout import use_fast_dropout

MOST_BATCHES = 1000  # PEFT would go on for ever

Batch = Mapping[str, Tensor]


class _Batches:
    """Batches without end, as PEFT wants them, but not without end.

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
                break  # nor will another pass bring more
        msg = (
            f"EVA's directions had not settled after {count} batches, which brought a layer {self.most} rows at most: "
            "each batch must bring every layer at least r * rho rows; raise data.batch_size, or lower model.lora.r, "
            "eva_config.rho or eva_config.tau."
        )
        raise ConfigurationError(msg)

    def rows(self, inputs: Any, mask: Tensor | None, _name: str) -> Tensor:
        """What goes into a layer as (rows, in_features)."""
        features: Tensor = inputs[0] if isinstance(inputs, tuple | list) else inputs
        if mask is not None and features.shape[:-1] == mask.shape:
            features = features[mask]
        features = features.reshape(-1, features.shape[-1])
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
    """Where there is text, and, of language models, something to learn: (rows, positions), bool."""
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
    adapters_in_float32(network, ADAPTER)  # new layers have the dtype in which a quantised base computes
    use_fast_dropout(network)  # PEFT has made new layers of dropout
    network.train(mode)


def follow_saved_ranks(network: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Gives the adapters the ranks that a checkpoint has; a no-op where they have them.

    Args:
        network: With `init_lora_weights: eva`; changed in place.
        state: The network's state in the checkpoint.
    """
    own = {f"base_model.model.{name}": adapter_factors(layer)[0] for name, layer in adapted_layers(network).items()}
    saved = {name: state.get(f"{name}.lora_A.{ADAPTER}.weight", weight[:0]) for name, weight in own.items()}
    if any(saved[name].shape[1:] != weight.shape[1:] for name, weight in own.items()):
        return  # of another backbone, as whoever loads it will say
    if any(len(saved[name]) != len(weight) for name, weight in own.items()):
        start_from_directions(network, {name: factor.to(own[name]) for name, factor in saved.items()})
