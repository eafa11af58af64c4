"""What the spectra of a trained model tell its user to do about r, in one paragraph."""

from collections.abc import Collection, Mapping

from torch import Tensor

from lora_lightning.lora.spectrum import common_energy_rank, effective_rank

LITTLE = 0.25  # of r; an adapter that uses less of its rank is named in the advice
ENERGY = 0.99
ENOUGH = 0.75  # of r; a lower rank than this is worth a try


def rank_advice(spectra: Mapping[str, Tensor], ranks: Mapping[str, int]) -> str:
    """Says how much of their rank the adapters use, and which r to try next.

    Args:
        spectra: Singular values of dW, by module, each (n,), descending.
        ranks: r by module, at least one module.

    Returns:
        One to three sentences.
    """
    finite = {name: spectrum for name, spectrum in spectra.items() if spectrum.isfinite().all()}
    trained = {name: spectrum for name, spectrum in finite.items() if spectrum.any()}
    sentences = [_use(trained, ranks)] if trained else []
    sentences += _odd([name for name in spectra if name not in finite], spectra, "hold NaN or infinity")
    sentences += _odd([name for name in finite if name not in trained], spectra, "have not moved from dW = 0")
    return " ".join(sentences)


def _use(spectra: Mapping[str, Tensor], ranks: Mapping[str, int]) -> str:
    used = {name: float(effective_rank(spectrum)) / ranks[name] for name, spectrum in spectra.items()}
    sizes = {ranks[name] for name in spectra}
    r = f"r = {min(sizes)}" if len(sizes) == 1 else f"their rank (r = {min(sizes)} to {max(sizes)})"
    little = sum(share < LITTLE for share in used.values())
    if little:
        use = f"{little} of {len(spectra)} adapters use less than a quarter of {r}"
    else:
        use = f"the adapters use {100 * min(used.values()):.0f} to {100 * max(used.values()):.0f} % of {r}"
    keeps = common_energy_rank(list(spectra.values()), ENERGY)
    return f"{use}; r = {keeps} keeps 99 % of the energy of all dW; {_what_to_try(keeps, max(sizes), used.values())}."


def _what_to_try(keeps: int, r: int, used: Collection[float]) -> str:
    if keeps <= ENOUGH * r:
        return f"try model.lora.r = {keeps} at the same scaling"
    if min(used) > ENOUGH:
        return f"nothing is idle: if quality still matters more than size, try model.lora.r = {2 * r}"
    return f"r = {r} fits"


def _odd(names: Collection[str], spectra: Mapping[str, Tensor], what: str) -> list[str]:
    return [f"{len(names)} of {len(spectra)} adapters {what}, {next(iter(names))} first."] if names else []
