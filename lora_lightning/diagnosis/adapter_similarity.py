"""Does quantization change what is learnt? The updates of both precisions, beside those of other seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from lora_lightning.analysis.similarity import (
    Side,
    cosines_of_products,
    distances_of_products,
    factor_cosine,
    inner_products,
    principal_cosines,
    random_largest_angle,
    random_overlap,
    rotated_factors,
    squares_on_one_scale,
    subspace_overlap,
    update_directions,
)
from lora_lightning.analysis.spectrum import rank_numbers, singular_values
from lora_lightning.errors import DataError
from lora_lightning.lora.delta import AdapterDelta, split_layer_number
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.permutation import LEAST_GROUP, PermutationTest, label_permutation
from lora_lightning.statistics.seed_noise import difference_from_seed_noise

TELLING_COSINE = 0.5  # of two seeds: D^2 > 2 d^2 needs more, as d^2 = 2 - 2 cos, and D^2 <= 2 unless both are opposed


class PairKind(StrEnum):
    """In what two adapters, or the models that have them, differ.

    Attributes:
        PRECISION: In the precision alone; both started with the same A and the same new head.
        SEED: In the seed alone.
        BOTH: In both; these share no start, so they are what stands beside `SEED`.
    """

    PRECISION = "precision"
    SEED = "seed"
    BOTH = "precision and seed"

    @property
    def shown(self) -> str:
        """As it stands over a column or a panel."""
        return f"another {self}{', same start' if self is PairKind.PRECISION else ''}"


@dataclass(frozen=True)
class Adapter:
    """The adapter of a run.

    Attributes:
        title: Of the run.
        is_quantized: Whether it was trained on the quantized base.
        seed: Of the run.
        updates: dW by module.
    """

    title: str
    is_quantized: bool
    seed: int
    updates: Mapping[str, AdapterDelta]


@dataclass(frozen=True)
class ModuleSimilarity:
    """How alike the updates of a module are, as means over pairs of adapters by kind of pair.

    Attributes:
        module: Dotted name.
        layer: Number of its layer; `None` outside numbered layers.
        kind: Name within the layer.
        cosine: Of dW.
        distance: Relative distance of dW.
        output_overlap: Mean squared cosine of the principal angles between column spaces.
        input_overlap: The same of row spaces.
        largest_angle: The largest principal angle of both, in degrees.
        random_output_overlap: What random subspaces of the same dimensions have.
        random_input_overlap: The same of row spaces.
        random_largest_angle: Their largest principal angle, in degrees.
        norms: Mean Frobenius norm of dW by precision: first not quantized.
        effective_ranks: Mean effective rank of dW by precision.
        spectra: Mean singular values of dW by precision, descending.
    """

    module: str
    layer: int | None
    kind: str
    cosine: Mapping[PairKind, float]
    distance: Mapping[PairKind, float]
    output_overlap: Mapping[PairKind, float]
    input_overlap: Mapping[PairKind, float]
    largest_angle: Mapping[PairKind, float]
    random_output_overlap: float
    random_input_overlap: float
    random_largest_angle: float
    norms: tuple[float, float]
    effective_ranks: tuple[float, float]
    spectra: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class RotationDemo:
    """Why cosines of A and of B mean nothing: one adapter beside itself with rotated factors.

    Attributes:
        module: Whose adapter it is.
        update: Cosine of dW, which is 1.
        a: Cosine of A.
        b: Cosine of B.
    """

    module: str
    update: float
    a: float
    b: float


@dataclass(frozen=True)
class SharedStart:
    """Why pairs with one seed decide nothing: they start with the same A, and stay near each other for that.

    Attributes:
        same_seed: Mean cosine of A between the two precisions with one seed; NaN without such a pair.
        other_seed: The same with two seeds.
    """

    same_seed: float
    other_seed: float


@dataclass(frozen=True)
class AdapterSimilarity:
    """What adapters of both precisions have in common.

    Attributes:
        adapters: Titles, the order of `distances`.
        distances: Relative distance of each pair, averaged over modules.
        modules: By module.
        by_kind: Mean distance by kind of pair.
        permutation: Whether precisions differ, from adapters with seeds of their own; `None` if there are too few.
        against_seeds: Squared distance by precision minus that by seed, in units of the mean squared norm, with its
            interval over seeds, from adapters with seeds of their own.
        demo: That factors mean nothing alone.
        start: That adapters with one seed share their start.
        zero_modules: Modules whose update is zero in an adapter, as `adapter: module`.
        scalings: Scalings by module that differ between the precisions: not quantized, quantized.
    """

    adapters: tuple[str, ...]
    distances: tuple[tuple[float, ...], ...]
    modules: tuple[ModuleSimilarity, ...]
    by_kind: Mapping[PairKind, float]
    permutation: PermutationTest | None
    against_seeds: Interval
    demo: RotationDemo
    start: SharedStart
    zero_modules: tuple[str, ...]
    scalings: Mapping[str, tuple[float, float]]

    @property
    def seed_cosine(self) -> float:
        """Mean cosine of dW of two seeds of one precision over modules; NaN without such a pair."""
        cosines = [each.cosine.get(PairKind.SEED, math.nan) for each in self.modules]
        known = [cosine for cosine in cosines if math.isfinite(cosine)]
        return fmean(known) if known else math.nan

    @property
    def seeds_are_telling(self) -> bool:
        """Whether the change by precision could be larger than that by another seed.

        If adapters of two seeds have little in common, another seed changes so much that the precision cannot change
        more, not even if adapters of both precisions have nothing in common.
        """
        return not self.seed_cosine < TELLING_COSINE or self.against_seeds.low > 0


def compare_adapters(
    adapters: Sequence[Adapter], seeds: Sequence[int], other_seeds: Sequence[int]
) -> AdapterSimilarity:
    """Compares adapters.

    Args:
        adapters: Of both precisions; at least two, with the same modules.
        seeds: Those that both precisions have.
        other_seeds: Those that only the quantized precision has.

    Returns:
        Similarities with their baselines, and both tests.

    Raises:
        DataError: If two adapters have other modules.
    """
    modules = list(adapters[0].updates)
    for each in adapters[1:]:
        if each.updates.keys() != adapters[0].updates.keys():
            odd = min(each.updates.keys() ^ adapters[0].updates.keys())
            msg = f"{each.title!r} and {adapters[0].title!r} adapt different modules, such as {odd}, so their updates "
            msg += "cannot be compared; use the same target_modules for both precisions."
            raise DataError(msg)
    pairs = _pairs_by_kind(adapters)
    distances = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    counted = torch.zeros_like(distances)
    full, quantized = _independent(adapters, seeds, other_seeds)
    apart = [*full, *quantized]
    squares = torch.zeros(len(apart), len(apart), dtype=torch.float64)
    found = []
    for module in modules:
        updates = [each.updates[module] for each in adapters]
        products = inner_products(updates)
        own = distances_of_products(products)
        distances += own.nan_to_num(0.0)
        counted += ~own.isnan()
        squares += squares_on_one_scale(products[apart][:, apart])
        found.append(_of_module(module, updates, adapters, products, pairs))
    mean = distances / counted.clamp(min=1)
    return AdapterSimilarity(
        adapters=tuple(each.title for each in adapters),
        distances=tuple(tuple(row) for row in mean.tolist()),
        modules=tuple(found),
        by_kind={kind: _mean_over(mean, chosen) for kind, chosen in pairs.items() if chosen},
        permutation=_test_labels(full, quantized, mean),
        against_seeds=_against_seeds(squares / len(modules), len(full)),
        demo=_demonstrate_rotation(adapters[0].updates[modules[0]]),
        start=SharedStart(*(_cosine_of_a(adapters, pairs[kind]) for kind in (PairKind.PRECISION, PairKind.BOTH))),
        zero_modules=tuple(
            f"{each.title}: {module}" for each in adapters for module in modules if _is_zero(each.updates[module])
        ),
        scalings=_different_scalings(adapters),
    )


def _pairs_by_kind(adapters: Sequence[Adapter]) -> dict[PairKind, list[tuple[int, int]]]:
    pairs: dict[PairKind, list[tuple[int, int]]] = {kind: [] for kind in PairKind}
    for i, j in combinations(range(len(adapters)), 2):
        same_seed, same_base = (
            adapters[i].seed == adapters[j].seed,
            adapters[i].is_quantized is adapters[j].is_quantized,
        )
        kind = PairKind.SEED if same_base else PairKind.PRECISION if same_seed else PairKind.BOTH
        pairs[kind].append((i, j))
    return pairs


def _mean_over(values: Tensor, pairs: Sequence[tuple[int, int]]) -> float:
    known = [float(values[pair]) for pair in pairs if not values[pair].isnan()]
    return fmean(known) if known else float("nan")


def _of_module(
    module: str,
    updates: Sequence[AdapterDelta],
    adapters: Sequence[Adapter],
    products: Tensor,
    pairs: Mapping[PairKind, Sequence[tuple[int, int]]],
) -> ModuleSimilarity:
    cosines, distances = cosines_of_products(products), distances_of_products(products)
    sides: tuple[Side, Side] = ("outputs", "inputs")
    spaces = {side: [update_directions(update, side) for update in updates] for side in sides}
    overlaps = {side: _pairwise(spaces[side]) for side in sides}
    angles = _largest_angles(spaces)
    known = {kind: chosen for kind, chosen in pairs.items() if chosen}
    spectra = singular_values(updates)
    by_precision = [
        [spectrum for spectrum, each in zip(spectra, adapters, strict=True) if each.is_quantized is wanted]
        for wanted in (False, True)
    ]
    layer, kind = split_layer_number(module)
    r, (out, inputs) = updates[0].r, (updates[0].B.shape[0], updates[0].A.shape[1])
    return ModuleSimilarity(
        module,
        layer,
        kind,
        cosine={kind: _mean_over(cosines, chosen) for kind, chosen in known.items()},
        distance={kind: _mean_over(distances, chosen) for kind, chosen in known.items()},
        output_overlap={kind: _mean_over(overlaps["outputs"], chosen) for kind, chosen in known.items()},
        input_overlap={kind: _mean_over(overlaps["inputs"], chosen) for kind, chosen in known.items()},
        largest_angle={kind: _mean_over(angles, chosen) for kind, chosen in known.items()},
        random_output_overlap=random_overlap(out, min(r, out), min(r, out)),
        random_input_overlap=random_overlap(inputs, min(r, inputs), min(r, inputs)),
        random_largest_angle=random_largest_angle(tuple((side, min(r, side)) for side in (out, inputs))),
        norms=_both([[float(spectrum.norm()) for spectrum in group] for group in by_precision]),
        effective_ranks=_both(
            [[rank_numbers(spectrum, r)["effective_rank"] for spectrum in group] for group in by_precision]
        ),
        spectra=tuple(tuple(torch.stack(group).mean(dim=0).tolist()) if group else () for group in by_precision),  # type: ignore[arg-type]
    )


def _both(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    first, second = (fmean(group) if group else float("nan") for group in groups)
    return first, second


def _pairwise(spaces: Sequence[Tensor]) -> Tensor:
    values = torch.full((len(spaces), len(spaces)), torch.nan, dtype=torch.float64)
    for i, j in combinations(range(len(spaces)), 2):
        values[i, j] = subspace_overlap(spaces[i], spaces[j])
    return values


def _largest_angles(spaces: Mapping[Side, Sequence[Tensor]]) -> Tensor:
    count = len(spaces["outputs"])
    values = torch.full((count, count), torch.nan, dtype=torch.float64)
    for i, j in combinations(range(count), 2):
        least = [principal_cosines(own[i], own[j])[-1:] for own in spaces.values()]
        if all(map(len, least)):
            values[i, j] = torch.rad2deg(torch.arccos(torch.cat(least).min()))
    return values


def _independent(
    adapters: Sequence[Adapter], seeds: Sequence[int], other_seeds: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Places of the adapters of both precisions of which no two have a seed, and so the initial A, in common."""
    full = [place for place, each in enumerate(adapters) if not each.is_quantized and each.seed in seeds]
    return full, [place for place, each in enumerate(adapters) if each.is_quantized and each.seed in other_seeds]


def _test_labels(full: Sequence[int], quantized: Sequence[int], distances: Tensor) -> PermutationTest | None:
    chosen = distances[[*full, *quantized]][:, [*full, *quantized]]
    if len(full) < LEAST_GROUP or len(quantized) < LEAST_GROUP or not chosen.isfinite().all():
        return None
    return label_permutation(chosen.numpy(), len(full))


def _against_seeds(squared: Tensor, full: int) -> Interval:
    """What the precision changes minus what another seed changes, in squared distances, where changes add up.

    With D between two seeds of two precisions and d between two seeds of one precision, the precision alone changes
    D^2 - d^2, which is less than another seed changes if D^2 < 2 d^2. All adapters are independent, so any pairing will
    do.
    """
    pairs = [*zip(range(full), range(full, len(squared)), strict=False)]
    by_both = {number: float(squared[pair]) for number, pair in enumerate(pairs)}
    by_seed = {
        (i, j): sum(float(squared[one, other]) for one, other in zip(pairs[i], pairs[j], strict=True))
        for i, j in combinations(by_both, 2)
    }
    return difference_from_seed_noise(by_both, by_seed)


def _cosine_of_a(adapters: Sequence[Adapter], pairs: Sequence[tuple[int, int]]) -> float:
    """Mean cosine of A over pairs and modules; the scale of a factor is a convention, its direction is the start."""
    cosines = [
        factor_cosine(adapters[i].updates[module].A, adapters[j].updates[module].A)
        for i, j in pairs
        for module in adapters[i].updates
    ]
    return fmean(cosines) if cosines else float("nan")


def _demonstrate_rotation(update: AdapterDelta) -> RotationDemo:
    rotated = rotated_factors(update)
    cosine = float(cosines_of_products(inner_products([update, rotated]))[0, 1])
    return RotationDemo(update.module, cosine, factor_cosine(update.A, rotated.A), factor_cosine(update.B, rotated.B))


def _is_zero(update: AdapterDelta) -> bool:
    return not update.A.any() or not update.B.any()


def _different_scalings(adapters: Sequence[Adapter]) -> dict[str, tuple[float, float]]:
    full = next((each for each in adapters if not each.is_quantized), None)
    quantized = next((each for each in adapters if each.is_quantized), None)
    if full is None or quantized is None:
        return {}
    both = {name: (update.scaling, quantized.updates[name].scaling) for name, update in full.updates.items()}
    return {name: pair for name, pair in both.items() if abs(pair[0] - pair[1]) > 1e-6 * abs(pair[0])}
