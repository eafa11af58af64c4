"""What the spectra of a trained model tell its user to do about r, in one paragraph."""

from collections.abc import Collection, Mapping

from torch import Tensor

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.spectrum import common_energy_rank, effective_rank

LITTLE = 0.25  # of r; an adapter that uses less of its rank is named in the advice
ENERGY = 0.99
ENOUGH = 0.75  # of r; a lower rank than this is worth a try


def rank_advice(spectra: Mapping[str, Tensor], ranks: Mapping[str, int], lora: LoraSettings | None = None) -> str:
    """Says how much of their rank the adapters use, and which r to try next.

    Args:
        spectra: Singular values of dW, by module, each (n,), descending.
        ranks: r by module, at least one module.
        lora: What the adapters were made with, to name the options of another r; `None` if that is not known.

    Returns:
        One to three sentences.
    """
    finite = {name: spectrum for name, spectrum in spectra.items() if spectrum.isfinite().all()}
    trained = {name: spectrum for name, spectrum in finite.items() if spectrum.any()}
    sentences = [_use(trained, ranks, lora)] if trained else []
    sentences += _odd([name for name in spectra if name not in finite], spectra, "hold NaN or infinity")
    sentences += _odd([name for name in finite if name not in trained], spectra, "have not moved from dW = 0")
    return " ".join(sentences)


def _use(spectra: Mapping[str, Tensor], ranks: Mapping[str, int], lora: LoraSettings | None) -> str:
    used = {name: float(effective_rank(spectrum)) / ranks[name] for name, spectrum in spectra.items()}
    sizes = {ranks[name] for name in spectra}
    r = f"r = {min(sizes)}" if len(sizes) == 1 else f"their rank (r = {min(sizes)} to {max(sizes)})"
    little = sum(share < LITTLE for share in used.values())
    if little:
        use = f"{little} of {len(spectra)} adapters {'uses' if little == 1 else 'use'} less than a quarter of {r}"
    else:
        use = f"the adapters use {100 * min(used.values()):.0f} to {100 * max(used.values()):.0f} % of {r}"
    keeps = common_energy_rank(list(spectra.values()), ENERGY)
    following = _what_to_try(keeps, max(sizes), used.values(), lora if len(sizes) == 1 else None)
    return f"{use}; r = {keeps} keeps 99 % of the energy of all dW; {following}."


def _what_to_try(keeps: int, r: int, used: Collection[float], lora: LoraSettings | None) -> str:
    if keeps <= ENOUGH * r:
        return f"try {_options(keeps, lora)}"
    if min(used) > ENOUGH:
        return f"nothing is idle: if quality still matters more than size, try {_options(2 * r, lora)}"
    return f"r = {r} fits"


def _options(r: int, lora: LoraSettings | None) -> str:
    """The command line's options of another rank, at the same scaling."""
    if lora is None:
        return f"r = {r}, at the same scaling"
    share = r / lora.r
    alpha = lora.lora_alpha * (share**0.5 if lora.use_rslora else share)
    return f"--model.lora.r={r} --model.lora.lora_alpha={alpha:.4g}, which keeps the scaling"


def _odd(names: Collection[str], spectra: Mapping[str, Tensor], what: str) -> list[str]:
    return [f"{len(names)} of {len(spectra)} adapters {what}, {next(iter(names))} first."] if names else []
