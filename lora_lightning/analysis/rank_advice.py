"""What the spectra of a trained model tell its user to do about r, in one paragraph."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lora_lightning.analysis.spectrum import common_energy_rank, effective_rank, energy_rank
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.variants.adalora import AdaLoraSettings

LITTLE = 0.25  # of r; an adapter that uses less of its rank is named in the advice
ENERGY = 0.99
ENOUGH = 0.75  # of r; a lower rank than this is worth a try


def rank_advice(spectra: Mapping[str, Tensor], ranks: Mapping[str, int], lora: LoraSettings | None = None) -> str:
    """Says how much of their rank the adapters use, and which r to try next.

    Args:
        spectra: Singular values of dW, by module, each (n,), descending.
        ranks: The rank that dW can have, by module, at least one: r; under PiSSA and OLoRA 2 r; under AdaLoRA the
            directions that are left, which may be none.
        lora: What the adapters were made with, to name the options of another r; `None` if that is not known.

    Returns:
        One to three sentences.
    """
    finite = {name: spectrum for name, spectrum in spectra.items() if spectrum.isfinite().all()}
    left = {name: spectrum for name, spectrum in finite.items() if ranks[name]}
    trained = {name: spectrum for name, spectrum in left.items() if spectrum.any()}
    sentences = [f"{_use(trained, ranks, lora)}; {_advice(trained, ranks, lora)}."] if trained else []
    sentences += _odd([name for name in spectra if name not in finite], spectra, "hold NaN or infinity")
    sentences += _odd([name for name in finite if name not in left], spectra, "have no rank left")
    sentences += _odd([name for name in left if name not in trained], spectra, "have not moved from dW = 0")
    return " ".join(sentences)


def _use(spectra: Mapping[str, Tensor], ranks: Mapping[str, int], lora: LoraSettings | None) -> str:
    used = _shares(spectra, ranks)
    r = _their_rank({ranks[name] for name in spectra}, lora)
    if little := sum(share < LITTLE for share in used):
        return f"{little} of {len(spectra)} adapters {'uses' if little == 1 else 'use'} less than a quarter of {r}"
    return f"the adapters use {100 * min(used):.0f} to {100 * max(used):.0f} % of {r}"


def _shares(spectra: Mapping[str, Tensor], ranks: Mapping[str, int]) -> list[float]:
    return [float(effective_rank(spectrum)) / ranks[name] for name, spectrum in spectra.items()]


def _their_rank(sizes: Collection[int], lora: LoraSettings | None) -> str:
    smallest, largest = min(sizes), max(sizes)
    if lora is not None and lora.adalora is not None:
        return f"the ranks that AdaLoRA left them ({smallest} to {largest}, of adalora.init_r = {lora.adalora.init_r})"
    r = "2 r" if lora is not None and lora.changes_base else "r"
    return f"{r} = {smallest}" if smallest == largest else f"their rank ({r} = {smallest} to {largest})"


def _advice(spectra: Mapping[str, Tensor], ranks: Mapping[str, int], lora: LoraSettings | None) -> str:
    least_used = min(_shares(spectra, ranks))
    if lora is not None and lora.adalora is not None:
        # Shared out as AdaLoRA does it, to the directions that matter most anywhere.
        together = torch.cat(list(spectra.values())).sort(descending=True).values
        average = math.ceil(float(energy_rank(together, ENERGY)) / len(ranks))
        following = _target_to_try(average, least_used, lora, lora.adalora)
        return f"an average rank of {average} keeps 99 % of the energy of all dW; {following}"
    keeps = common_energy_rank(list(spectra.values()), ENERGY)
    if lora is not None and lora.changes_base:
        return (
            f"plain LoRA of r = {keeps} would keep 99 % of the energy of all dW, but as dW is what {_start(lora)} "
            "learnt less what it started with, that does not tell which r to train; compare runs with another r"
        )
    sizes = {ranks[name] for name in spectra}
    following = _r_to_try(keeps, max(sizes), least_used, lora if lora is not None and sizes == {lora.r} else None)
    return f"r = {keeps} keeps 99 % of the energy of all dW; {following}"


def _start(lora: LoraSettings) -> str:
    return "OLoRA" if lora.init_lora_weights == "olora" else "PiSSA"


def _r_to_try(keeps: int, r: int, least_used: float, lora: LoraSettings | None) -> str:
    if keeps <= ENOUGH * r:
        return f"try {_options(keeps, lora)}"
    if least_used > ENOUGH:
        return f"nothing is idle: if quality still matters more than size, try {_options(2 * r, lora)}"
    return f"r = {r} fits"


def _options(r: int, lora: LoraSettings | None) -> str:
    """The command line's options of another rank, at the same scaling."""
    if lora is None:
        return f"r = {r}, at the same scaling"
    share = r / lora.r
    alpha = lora.lora_alpha * (share**0.5 if lora.use_rslora else share)
    return f"--model.lora.r={r} --model.lora.lora_alpha={alpha:.4g}, which keeps the scaling"


def _target_to_try(average: int, least_used: float, lora: LoraSettings, budget: AdaLoraSettings) -> str:
    if average <= ENOUGH * budget.target_r:
        return f"try {_budget_options(average, lora, budget)}"
    if least_used > ENOUGH:
        options = _budget_options(2 * budget.target_r, lora, budget)
        return f"nothing is idle: if quality still matters more than size, try {options}"
    return f"adalora.target_r = {budget.target_r} fits"


def _budget_options(target_r: int, lora: LoraSettings, budget: AdaLoraSettings) -> str:
    """The command line's options of another budget; AdaLoRA scales by lora_alpha / init_r, whatever ranks are left."""
    init_r = max(target_r + 1, round(target_r * budget.init_r / budget.target_r))
    alpha = lora.lora_alpha * init_r / budget.init_r
    return (
        f"--model.lora.adalora.target_r={target_r} --model.lora.adalora.init_r={init_r} "
        f"--model.lora.lora_alpha={alpha:.4g}, which keeps the scaling"
    )


def _odd(names: Collection[str], spectra: Mapping[str, Tensor], what: str) -> list[str]:
    return [f"{len(names)} of {len(spectra)} adapters {what}, {next(iter(names))} first."] if names else []
