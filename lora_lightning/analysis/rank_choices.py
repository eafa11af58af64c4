"""Which rank each layer keeps when a trained adapter is truncated: by one number for all, or by its singular values."""

import heapq
from collections.abc import Callable, Mapping

from torch import Tensor

from lora_lightning.analysis.spectrum import energy_rank

PORTABLE_RANKS = (8, 16, 32, 64, 128, 256)  # that every loader of adapters takes
SMALL_RANKS = (6, 4, 3, 2, 1)
HALVINGS = 50  # of a share; then it has the precision of a float
Ranks = dict[str, int]
Rule = Callable[[Mapping[str, Tensor], float], Ranks]


def uniform_ranks(spectra: Mapping[str, Tensor], k: int) -> Ranks:
    """One rank for all layers.

    Args:
        spectra: Singular values of dW by layer, (r,), descending.
        k: The rank, at least 1.

    Returns:
        By layer; a layer of a lower rank keeps its own.
    """
    return {name: min(k, len(spectrum)) for name, spectrum in spectra.items()}


def energy_ranks(spectra: Mapping[str, Tensor], share: float) -> Ranks:
    """The least rank of each layer that keeps a share of its energy, the sum of squared singular values.

    That is the rule of `peft.convert_to_lora` with a float rank.

    Args:
        spectra: As above.
        share: In (0, 1].

    Returns:
        By layer, at least 1.
    """
    return {name: max(1, int(energy_rank(spectrum, share))) for name, spectrum in spectra.items()}


def cumulative_ranks(spectra: Mapping[str, Tensor], share: float) -> Ranks:
    """The least rank of each layer that keeps a share of the sum of its singular values.

    Args:
        spectra: As above.
        share: In (0, 1].

    Returns:
        By layer, at least 1.
    """
    return {name: max(1, int(energy_rank(spectrum.sqrt(), share))) for name, spectrum in spectra.items()}


def budget_ranks(spectra: Mapping[str, Tensor], costs: Mapping[str, int], budget: int) -> Ranks:
    """One budget of parameters for all layers: the directions with the largest sigma^2 per parameter.

    Among equal gains the layer of the lowest rank comes first, then the first layer.

    Args:
        spectra: As above.
        costs: Parameters of one rank, in_features + out_features, by layer.
        budget: Parameters of all layers; at least one rank of each is kept.

    Returns:
        By layer, at least 1.
    """
    ranks = dict.fromkeys(spectra, 1)
    left = budget - adapter_parameters(ranks, costs)
    names = list(spectra)
    queue = [
        (-_gain(spectra[name], 1, costs[name]), 1, place) for place, name in enumerate(names) if len(spectra[name]) > 1
    ]
    heapq.heapify(queue)
    while queue:
        _, rank, place = heapq.heappop(queue)
        name = names[place]
        if costs[name] > left:
            continue
        left -= costs[name]
        ranks[name] = rank + 1
        if rank + 1 < len(spectra[name]):
            heapq.heappush(queue, (-_gain(spectra[name], rank + 1, costs[name]), rank + 1, place))
    return ranks


def _gain(spectrum: Tensor, place: int, cost: int) -> float:
    return float(spectrum[place]) ** 2 / cost


def share_of_size(
    rule: Rule, spectra: Mapping[str, Tensor], costs: Mapping[str, int], budget: int
) -> tuple[float, Ranks]:
    """The largest share at which a rule stays within a budget, so that rules can be compared at equal size.

    Args:
        rule: `energy_ranks` or `cumulative_ranks`.
        spectra: As above.
        costs: As in `budget_ranks`.
        budget: Parameters of all layers.

    Returns:
        The share, and the ranks; one rank of each layer if the budget is not enough for more.
    """
    low, high = 0.0, 1.0
    if adapter_parameters(rule(spectra, high), costs) <= budget:
        return high, rule(spectra, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if adapter_parameters(rule(spectra, middle), costs) <= budget:
            low = middle
        else:
            high = middle
    return low, rule(spectra, low)


def adapter_parameters(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """Parameters of the factors of all layers."""
    return sum(rank * costs[name] for name, rank in ranks.items())


def portable_rank(k: int) -> int:
    """The least rank that every loader takes and that holds k; k itself above 256."""
    return next((rank for rank in PORTABLE_RANKS if rank >= k), k)


def candidate_ranks(r: int) -> list[int]:
    """The ranks to try below r, from the largest down: the portable ones, and below 8 those a third apart.

    A rank between two portable ones is stored as the larger, so it would save nothing.

    Args:
        r: The adapter's, at least 1.

    Returns:
        The ranks; empty for an adapter of rank 1.
    """
    return [k for k in (*PORTABLE_RANKS[::-1], *SMALL_RANKS) if k < r]
