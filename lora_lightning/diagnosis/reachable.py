"""Which verdicts a diagnosis cannot reach, whatever its runs show, known before anything is trained."""

from collections.abc import Mapping

from lora_lightning.diagnosis.specification import FEWEST_MODULES, Diagnosis
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.permutation import LEAST_GROUP, number_of_splits

FEWEST_TESTED, FEWEST_FOR_NOISE = 2, 3  # seeds for an interval, and for one that leaves each seed out


def what_verdicts_lack(diagnosis: Diagnosis) -> dict[VerdictName, str]:
    """Finds the verdicts for which a diagnosis asks for too little.

    Args:
        diagnosis: The diagnosis.

    Returns:
        What is missing, by verdict; those that can be reached are left out.
    """
    noise = _lacks_seeds_of_their_own(diagnosis)
    one_rank = "ranks has one rank alone, and several are compared" if len(diagnosis.ranks) == 1 else ""
    of_ranks = _lacks_seeds(len(diagnosis.study.seeds), "seeds")
    is_largest = diagnosis.rank == diagnosis.ranks[-1]
    singles = diagnosis.measuring.singles
    found = {
        VerdictName.NOT_WORSE: _lacks_seeds(len(diagnosis.seeds), "seeds with compare.further_seeds"),
        VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED: noise,
        VerdictName.PRECISIONS_DIFFER: _lacks_splits(diagnosis),
        VerdictName.ENOUGH_RANK: one_rank or of_ranks,
        VerdictName.MORE_RANK: f"compare.rank is {diagnosis.rank}, the largest of ranks" if is_largest else of_ranks,
        VerdictName.SKIP_LIST_PROVEN: "" if diagnosis.proof else "skip_modules, which asks for the proof, is left out",
        VerdictName.HEALTHY: one_rank
        or of_ranks
        or noise
        or (f"measure.singles is {singles}, and at least {FEWEST_MODULES} are needed" * (singles < FEWEST_MODULES)),
    }
    return {name: reason for name, reason in found.items() if reason}


def unreachable_sentence(required: tuple[str, ...], lacking: Mapping[VerdictName, str]) -> str:
    """Says which required verdicts cannot be reached, and why; empty if all can.

    Args:
        required: Names of verdicts.
        lacking: What is missing, by verdict.
    """
    named = [f"{name} ({lacking[VerdictName(name)]})" for name in required if name in lacking]
    if not named:
        return ""
    return f"require names what cannot be reached: {'; '.join(named)}; change that, or leave it out of require"


def _lacks_seeds(count: int, where: str) -> str:
    if count >= FEWEST_TESTED:
        return ""
    return f"{where} has one seed, and a test needs at least {FEWEST_TESTED}"


def _lacks_seeds_of_their_own(diagnosis: Diagnosis) -> str:
    full, other = len(diagnosis.seeds), len(diagnosis.other_seeds)
    if min(full, other) >= FEWEST_FOR_NOISE:
        return ""
    return (
        f"at least {FEWEST_FOR_NOISE} seeds of both precisions and {FEWEST_FOR_NOISE} of compare.other_seeds are "
        f"needed, and there are {full} and {other}"
    )


def _lacks_splits(diagnosis: Diagnosis) -> str:
    full, other = len(diagnosis.seeds), len(diagnosis.other_seeds)
    if min(full, other) < LEAST_GROUP:
        return (
            f"at least {LEAST_GROUP} seeds of both precisions and {LEAST_GROUP} of compare.other_seeds are needed, and "
            f"there are {full} and {other}"
        )
    least = 1 / number_of_splits(full, other)
    if least <= ERROR_RATE:
        return ""
    return (
        f"with {full} seeds of both precisions and {other} of compare.other_seeds, p is at least {least:.2g}, and "
        f"{ERROR_RATE:g} is needed; {full} and {_enough_others(full)} reach it"
    )


def _enough_others(full: int) -> int:
    """The fewest further seeds of the quantized precision with which the test can tell the precisions apart."""
    other = LEAST_GROUP
    while 1 / number_of_splits(full, other) > ERROR_RATE:
        other += 1
    return other
