"""Reads the claims of a study, and checks that it has what they need."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.statistics.claims import Claim, Quantity
from lora_lightning.studies.specification import COSTS, Study

Refuse = Callable[[str], NoReturn]
KEYS = ("claim", "source", "quantity", "between", "configurations", "against", "measurement")
MEASURED = (Quantity.EXPONENT, Quantity.DIFFERENCE_AT_EQUAL_LOSS)
OF_RATES = (Quantity.LEARNING_RATE_EXPONENT, Quantity.LEARNING_RATE_RATIO)
OF_RANKS = (Quantity.EXPONENT, Quantity.LEARNING_RATE_EXPONENT)
MEASUREMENTS = (  # beside the metrics of splits
    *("rank_utilization", "effective_rank", "stable_rank", "energy_rank_99"),
    *("total_parameters", "trainable_share", *COSTS),
)
EXAMPLE = "{claim: TEXT, source: TEXT, quantity: difference, between: [-0.5, 0.5]}"


def read_claims(content: object, refuse: Refuse) -> tuple[Claim, ...]:
    """Reads the claims of a study.

    Args:
        content: The value of `claims`.
        refuse: Raises the error with a message.

    Returns:
        The claims; empty if there are none.
    """
    if content is None:
        return ()
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        refuse(f"claims is {content!r}, but a list is needed, such as [{EXAMPLE}]")
    return tuple(_read_claim(each, refuse) for each in content)


def _read_claim(content: Mapping[str, Any], refuse: Refuse) -> Claim:
    if unknown := [key for key in content if key not in KEYS]:
        refuse(f"a claim has the unknown key {unknown[0]!r}; {suggest_names(str(unknown[0]), KEYS)}")
    for key in ("claim", "source", "quantity"):
        if not isinstance(content.get(key), str) or not content[key]:
            refuse(f"a claim has {key} {content.get(key)!r}, but a text is needed, as in {EXAMPLE}")
    name = content["claim"]
    if content["quantity"] not in [*Quantity]:
        allowed = suggest_names(content["quantity"], [*map(str, Quantity)])
        refuse(f"the claim {name!r} has the quantity {content['quantity']!r}; {allowed}")
    quantity = Quantity(content["quantity"])
    low, high = _read_range(content.get("between"), name, refuse)
    texts = {key: "" if content.get(key) is None else content[key] for key in ("against", "measurement")}
    for key, text in texts.items():
        if not isinstance(text, str):
            refuse(f"the claim {name!r} has {key} {text!r}, but a text is needed")
    if bool(texts["measurement"]) != (quantity in MEASURED):
        remedy = "add one, such as stable_rank" if quantity in MEASURED else "leave it out"
        refuse(f"the claim {name!r} on {quantity} has measurement {texts['measurement']!r}; {remedy}")
    if texts["against"] and quantity in OF_RANKS:
        refuse(f"the claim {name!r} on {quantity} compares nothing; leave out against")
    chosen = [] if content.get("configurations") is None else content["configurations"]
    if not isinstance(chosen, list) or not all(isinstance(each, str) for each in chosen):
        refuse(f"the claim {name!r} has configurations {chosen!r}, but a list of their names is needed")
    return Claim(name, content["source"], quantity, low, high, tuple(chosen), **texts)


def _read_range(content: object, name: str, refuse: Refuse) -> tuple[float, float]:
    wrong = (
        f"the claim {name!r} has between {content!r}, but two numbers are needed, the smaller one first, of which one "
    )
    wrong += "may be null, such as [-0.5, 0.5] or [0, null]"
    if not isinstance(content, list) or len(content) != 2:  # noqa: PLR2004  # two ends
        refuse(wrong)
    numbers = [math.copysign(math.inf, place - 0.5) if end is None else end for place, end in enumerate(content)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in numbers):
        refuse(wrong)
    try:
        low, high = map(float, numbers)
    except OverflowError:
        refuse(wrong)
    if math.isnan(low) or math.isnan(high):
        refuse(wrong)
    if low >= high or (math.isinf(low) and math.isinf(high)):
        refuse(wrong)
    return low, high


def truncated_name(configuration: str, r: int) -> str:
    """What a configuration is called after truncation to a rank, such as `r = 32 truncated to 8`."""
    return f"{configuration} truncated to {r}"


def read_truncations(content: object, refuse: Refuse) -> dict[str, tuple[int, ...]]:
    """Reads to which ranks the adapters of configurations are truncated.

    Args:
        content: The value of `truncations`.
        refuse: Raises the error with a message.

    Returns:
        Ranks by configuration; empty if there are none.
    """
    if content is None:
        return {}
    wrong = f"truncations is {content!r}, but ranks by configuration are needed, such as {{r = 32: [4, 8]}}"
    if not isinstance(content, dict):
        refuse(wrong)
    for ranks in content.values():
        if not isinstance(ranks, list) or not ranks or len({*map(str, ranks)}) < len(ranks):
            refuse(wrong)
        if not all(isinstance(r, int) and not isinstance(r, bool) and r > 0 for r in ranks):
            refuse(wrong)
    return {str(name): tuple(ranks) for name, ranks in content.items()}


def check_truncations(truncations: Mapping[str, Sequence[int]], ranks: Mapping[str, float | None]) -> None:
    """Checks truncations against the configurations of their study.

    Args:
        truncations: Ranks by configuration.
        ranks: Rank by configuration; `None` for one that sets none.

    Raises:
        ConfigurationError: If a configuration is unknown, or a rank is not below its own.
    """
    for name, truncated in truncations.items():
        if name not in ranks:
            msg = f"truncations names {name!r}, which is no configuration; {suggest_names(name, [*ranks])}"
            raise ConfigurationError(msg)
        own = ranks[name]
        if own is None or max(truncated) >= own:
            what = "sets no model.lora.r" if own is None else f"has rank {own:g}"
            msg = f"truncations has {max(truncated)} for {name!r}, which {what}; give ranks below its own"
            raise ConfigurationError(msg)


def check_claims(study: Study, ranks: Mapping[str, float | None], reference: str) -> None:
    """Checks the claims of a study against its configurations.

    Args:
        study: The study.
        ranks: Rank by configuration; `None` for one without.
        reference: Name of the reference.

    Raises:
        ConfigurationError: If a claim names an unknown configuration or measurement, or needs ranks or learning rates
            that the study does not vary.
    """
    for each in study.claims:
        _check_names(each, ranks, [truncated_name(name, r) for name, cut in study.truncations.items() for r in cut])
        _check_measurement(each, study.objective)
        if each.quantity not in OF_RANKS and (each.against or reference) in each.configurations:
            msg = f"the claim {each.claim!r} compares {each.against or reference!r} with itself; leave it out of "
            msg += "configurations, or name another one in against"
            raise ConfigurationError(msg)
        if each.quantity in OF_RATES and study.learning_rate is None:
            msg = (
                f"the claim {each.claim!r} is about learning rates, but the study tries none; add learning_rate, such "
            )
            msg += "as {values: [1.0e-3, 2.0e-3, 4.0e-3], seeds: [100, 101]}"
            raise ConfigurationError(msg)
        chosen = {ranks[name] for name in each.configurations or ranks} - {None} if each.quantity in OF_RANKS else ()
        if each.quantity in OF_RANKS and len(chosen) < 2:  # noqa: PLR2004  # a slope needs two
            msg = (
                f"the claim {each.claim!r} is about ranks, but its configurations have {len(chosen)} of them; give at "
            )
            msg += "least two configurations that set model.lora.r"
            raise ConfigurationError(msg)


def _check_names(claim: Claim, ranks: Mapping[str, float | None], truncated: Sequence[str]) -> None:
    for name in [*claim.configurations, *([claim.against] if claim.against else [])]:
        if name not in ranks and name not in truncated:
            msg = f"the claim {claim.claim!r} names {name!r}, which is no configuration; "
            raise ConfigurationError(msg + suggest_names(name, [*ranks, *truncated]))
        if name in truncated and claim.quantity is not Quantity.DIFFERENCE:
            msg = f"the claim {claim.claim!r} on {claim.quantity} names {name!r}, of which only differences of the "
            msg += "metric that decides are known; name a configuration that is trained"
            raise ConfigurationError(msg)
        if claim.quantity in OF_RANKS and ranks[name] is None:
            msg = f"the claim {claim.claim!r} is about ranks, but {name!r} sets no model.lora.r; leave it out of "
            msg += "configurations"
            raise ConfigurationError(msg)


def _check_measurement(claim: Claim, objective: str) -> None:
    """Refuses names that no run has; tags of splits and monitors are known to the task alone."""
    name = claim.measurement
    if claim.quantity is Quantity.EXPONENT and "/" not in name and name not in MEASUREMENTS:
        msg = f"the claim {claim.claim!r} has the measurement {name!r}; {suggest_names(name, MEASUREMENTS)}"
        raise ConfigurationError(msg)
    if claim.quantity is Quantity.EXPONENT and name.rpartition("/")[2] == objective.rpartition("/")[2]:
        msg = f"the claim {claim.claim!r} is about {name}, which is the objective; name another measurement, or let "
        msg += "another metric decide"
        raise ConfigurationError(msg)
    if claim.quantity is Quantity.DIFFERENCE_AT_EQUAL_LOSS and "/" not in name:
        msg = f"the claim {claim.claim!r} has the measurement {name!r}, but a curve is needed, such as "
        msg += "other_text/all/loss"
        raise ConfigurationError(msg)


def claims_as_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Returns claims as they are written in a study's YAML."""
    return [
        {
            "claim": each.claim,
            "source": each.source,
            "quantity": str(each.quantity),
            "between": [end if math.isfinite(end) else None for end in (each.low, each.high)],
            "configurations": list(each.configurations),
            "against": each.against,
            "measurement": each.measurement,
        }
        for each in claims
    ]


def claims_from_json(content: Sequence[Mapping[str, Any]]) -> tuple[Claim, ...]:
    """Reads what `claims_as_json` returned."""

    def refuse(message: str) -> NoReturn:
        raise ConfigurationError(message)

    return tuple(_read_claim(each, refuse) for each in content)
