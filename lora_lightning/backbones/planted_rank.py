"""The frozen model for `tasks.planted_rank`, whose best update has a known rank."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lora_lightning.errors import ConfigurationError


@dataclass
class PlantedRank:
    """Linear layers side by side, each with an update of its own rank to be found.

    Args:
        in_features: Width of the input of every layer.
        out_features: Width of the output of every layer.
        ranks: Rank of the update that each layer is to learn; as many layers as there are ranks.
        seed: Of the frozen weights and the planted updates.
    """

    in_features: int = 64
    out_features: int = 48
    ranks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    seed: int = 0

    def __post_init__(self) -> None:
        """Rejects ranks that no layer can have.

        Raises:
            ConfigurationError: If there is none, or one is out of range.
        """
        largest = min(self.in_features, self.out_features)
        if not self.ranks or not all(1 <= rank <= largest for rank in self.ranks):
            msg = (
                f"model.problem.ranks is {self.ranks}, but each layer needs a rank from 1 to {largest}, the smaller of "
                "in_features and out_features."
            )
            raise ConfigurationError(msg)

    def base_weights(self) -> Tensor:
        """The frozen weights.

        Returns:
            (layers, out_features, in_features), float32, entries of variance 1 / in_features.
        """
        random = torch.Generator().manual_seed(self.seed)
        shape = (len(self.ranks), self.out_features, self.in_features)
        weights: Tensor = torch.randn(shape, generator=random) / self.in_features**0.5
        return weights

    def deltas(self) -> Tensor:
        """The planted updates.

        Returns:
            (layers, out_features, in_features), float32; each has as many singular values 1 as its rank, the others 0.
        """
        random = torch.Generator().manual_seed(self.seed + 1)
        planted = []
        for rank in self.ranks:
            left = torch.linalg.qr(torch.randn(self.out_features, rank, generator=random)).Q
            right = torch.linalg.qr(torch.randn(self.in_features, rank, generator=random)).Q
            planted.append(left @ right.T)
        return torch.stack(planted)


class PlantedRankConfig(PreTrainedConfig):
    """transformers' configuration of the frozen model.

    Args:
        problem: The fields of `PlantedRank`, its defaults if not given.
        kwargs: transformers' own.
    """

    model_type = "planted_rank"

    def __init__(self, problem: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.problem = problem or asdict(PlantedRank())
        super().__init__(**kwargs)


class PlantedLayer(nn.Module):
    """One of the layers.

    Args:
        problem: With its sizes.
    """

    def __init__(self, problem: PlantedRank) -> None:
        super().__init__()
        self.linear = nn.Linear(problem.in_features, problem.out_features, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, in_features) to (batch, out_features)."""
        outputs: Tensor = self.linear(inputs)
        return outputs


class PlantedRankModel(PreTrainedModel):
    """The frozen layers.

    Args:
        config: With the problem.
    """

    config_class = PlantedRankConfig

    def __init__(self, config: PlantedRankConfig) -> None:
        super().__init__(config)
        problem = PlantedRank(**config.problem)
        self.layers = nn.ModuleList([PlantedLayer(problem) for _ in problem.ranks])
        self.post_init()  # type: ignore[no-untyped-call]  # draws weights of its own, so ours come after it
        weights = {f"layers.{n}.linear.weight": weight for n, weight in enumerate(problem.base_weights())}
        self.load_state_dict(weights)

    def forward(self, inputs: Tensor) -> Tensor:
        """Every layer's output.

        Args:
            inputs: (batch, in_features), floating dtype.

        Returns:
            (batch, layers, out_features), the dtype of `inputs`.
        """
        return torch.stack([layer(inputs) for layer in self.layers], dim=1)
