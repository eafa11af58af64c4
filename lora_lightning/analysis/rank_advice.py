"""Advice about r from the spectra of a trained adapter, in one paragraph."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from lora_lightning.analysis.spectrum import common_energy_rank, effective_rank, energy_rank
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.variants.adalora import AdaLoraSettings

LITTLE = 0.25  # of r; an adapter that uses less of its rank is named in the advice
ENERGY = 0.99
ENOUGH = 0.75  # of r; a lower rank than this is worth a try


@dataclass(frozen=True)
class Validation:
    """The validation metric of an adapter, of its truncation, and of a constant answer.

    Attributes:
        metric: The monitored metric, such as `val/accuracy`.
        value: Of the adapter as it is.
        constant: Of the best answer that is the same for every example.
        is_better: Whether the adapter is clearly better than that.
        examples: How many were validated.
        r: The rank that it was truncated to; `None` if it was not.
        truncated: The metric of the truncated adapter; NaN if it was not truncated.
        is_worse: Whether the truncated adapter is clearly worse.
    """

    metric: str
    value: float
    constant: float
    is_better: bool
    examples: int
    r: int | None = None
    truncated: float = float("nan")
    is_worse: bool = False


def rank_advice(
    spectra: Mapping[str, Tensor],
    ranks: Mapping[str, int],
    lora: LoraSettings | None = None,
    validation: Validation | None = None,
) -> str:
    """Tells how much of their rank the adapters use, and which r to try next.

    Args:
        spectra: Singular values of dW, by module, each (n,), descending.
        ranks: The rank that dW can have, by module, at least one: r; under PiSSA and OLoRA 2 r; under AdaLoRA the
            directions that are left, which may be none.
        lora: The settings of the adapters, to name the options of another r; `None` if they are unknown.
        validation: Of the adapter, truncated to `rank_to_truncate_to`; `None` if nothing was validated.

    Returns:
        One to three sentences; nothing about ranks if the adapter is no better than a constant answer.
    """
    finite = {name: spectrum for name, spectrum in spectra.items() if spectrum.isfinite().all()}
    left = {name: spectrum for name, spectrum in finite.items() if ranks[name]}
    trained = {name: spectrum for name, spectrum in left.items() if spectrum.any()}
    sentences = []
    if validation is not None and not validation.is_better:
        sentences = [_no_advice(validation)]
    elif trained:
        sentences = [f"{_use(trained, ranks, lora)}; {_advice(trained, ranks, lora, validation)}."]
    sentences += _odd([name for name in spectra if name not in finite], spectra, "hold NaN or infinity")
    sentences += _odd([name for name in finite if name not in left], spectra, "have no rank left")
    sentences += _odd([name for name in left if name not in trained], spectra, "have not moved from dW = 0")
    return " ".join(sentences)


def rank_to_truncate_to(
    spectra: Mapping[str, Tensor], ranks: Mapping[str, int], lora: LoraSettings | None = None
) -> int | None:
    """The rank whose truncation is worth a validation.

    Args:
        spectra: As in `rank_advice`.
        ranks: As in `rank_advice`.
        lora: As in `rank_advice`.

    Returns:
        The rank that the advice names; `None` if it names none, or if truncation would not change the adapter.
    """
    if lora is not None and (lora.adalora is not None or lora.changes_base):
        return None
    keeps = common_energy_rank([spectrum for spectrum in spectra.values() if spectrum.isfinite().all()], ENERGY)
    return keeps if 0 < keeps < max(ranks.values(), default=0) else None


def _no_advice(validation: Validation) -> str:
    return (
        f"no advice: {validation.metric} is {validation.value:.4g}, not clearly better than the "
        f"{validation.constant:.4g} of a constant answer ({validation.examples} validation examples), so the spectra "
        "cannot show which r to use."
    )


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


def _advice(
    spectra: Mapping[str, Tensor], ranks: Mapping[str, int], lora: LoraSettings | None, validation: Validation | None
) -> str:
    least_used = min(_shares(spectra, ranks))
    if lora is not None and lora.adalora is not None:
        energy_ranks = [float(energy_rank(spectrum, ENERGY)) for spectrum in spectra.values()]
        average = math.ceil(sum(energy_ranks) / len(ranks))
        following = _target_to_try(average, least_used, lora, lora.adalora)
        return f"an average rank of {average} keeps 99 % of the energy of each dW; {following}"
    keeps = common_energy_rank(list(spectra.values()), ENERGY)
    kept = _kept(spectra, keeps)
    if lora is not None and lora.changes_base:
        return (
            f"plain LoRA of r = {keeps} would keep 99 % of the energy of {kept}, but as dW is what {_start(lora)} "
            "learnt less what it started with, that does not tell which r to train; compare runs with another r"
        )
    sizes = {ranks[name] for name in spectra}
    lora = lora if lora is not None and sizes == {lora.r} else None
    text = f"r = {keeps} keeps 99 % of the energy of {kept}"
    if validation is not None and validation.r == keeps:
        text += (
            f", and truncated to it, this adapter has {validation.metric} {validation.truncated:.4g} instead of "
            f"{validation.value:.4g} ({validation.examples} validation examples)"
        )
        if validation.is_worse:
            return f"{text}: what it leaves out matters, so keep r = {max(sizes)}"
    return f"{text}; {_r_to_try(keeps, max(sizes), least_used, lora)}"


def _kept(spectra: Mapping[str, Tensor], r: int) -> str:
    """How many adapters keep their energy in a rank."""
    count = sum(int(energy_rank(spectrum, ENERGY)) <= r for spectrum in spectra.values())
    return "every dW of this adapter" if count == len(spectra) else f"{count} of the {len(spectra)} dW of this adapter"


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
