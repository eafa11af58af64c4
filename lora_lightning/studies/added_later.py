"""What a study gained after its first results: adding seeds or values until a verdict pleases raises its error rate."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_lightning.studies.plan import StudyPlan, seed_by_seed
from lora_lightning.studies.specification import Study


@dataclass(frozen=True)
class AddedLater:
    """What was added after a tested run had finished.

    Attributes:
        seeds: Seeds of configurations that the study had before.
        configurations: Names of configurations that it did not have.
        search: What lets a search try more, and its winner that was tested by then, in words.
    """

    seeds: tuple[int, ...] = ()
    configurations: tuple[str, ...] = ()
    search: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What a report says about it; empty if nothing was added."""
        named = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}" if self.seeds else ""
        parts = [named, ", ".join(self.configurations), *self.search]
        if not any(parts):
            return ""
        return (
            f"Added after tested runs had finished: {'; '.join(filter(None, parts))}. The error rate of 5 % holds for "
            "one look: if results had been seen before, confirm the answer in a study with another name and new seeds."
        )

    def joined(self, other: "AddedLater") -> "AddedLater":
        """Both, each seed and configuration once."""
        return AddedLater(
            tuple(dict.fromkeys([*self.seeds, *other.seeds])),
            tuple(dict.fromkeys([*self.configurations, *other.configurations])),
            tuple(dict.fromkeys([*self.search, *other.search])),
        )

    def as_json(self) -> dict[str, list[Any]]:
        """As plain values, for the study's file."""
        return {"seeds": list(self.seeds), "configurations": list(self.configurations), "search": list(self.search)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "AddedLater":
        """Reads it from the study's file."""
        return cls(*(tuple(content.get(key, ())) for key in ("seeds", "configurations", "search")))


def additions(former: StudyPlan, plan: StudyPlan, tested_winner: str = "", *, may_try_more: bool = False) -> AddedLater:
    """Finds what a study has gained.

    Args:
        former: The study before.
        plan: The study now, which may only add.
        tested_winner: The winner of a search of which a tested run has finished; empty without one.
        may_try_more: Whether the budget alone has ended the search before, so that a larger one continues it.

    Returns:
        What is new.
    """
    before = [(each.name, seed) for each, seed in seed_by_seed(former.study, former.configurations)]
    now = [(each.name, seed) for each, seed in seed_by_seed(plan.study, plan.configurations)]
    known = {name for name, _ in before}
    new = [pair for pair in now if pair not in before]
    return AddedLater(
        tuple(dict.fromkeys(seed for name, seed in new if name in known)),
        tuple(dict.fromkeys(name for name, _ in new if name not in known)),
        tuple(_growth_of_search(former.study, plan.study, tested_winner, may_try_more=may_try_more)),
    )


def _growth_of_search(former: Study, study: Study, tested_winner: str, *, may_try_more: bool) -> Iterator[str]:
    if former.search is None or study.search is None:
        return
    tested = f" (the winner that was tested by then is {tested_winner})" if tested_winner else ""
    if (before := former.search.trials) != (now := study.search.trials):
        yield f"search.trials {_shown(before)} -> {_shown(now)}{tested}"
    if may_try_more and _limit(former.budget) < _limit(study.budget):
        yield f"budget of the search {_shown(former.budget)} -> {_shown(study.budget)} hours{tested}"


def _limit(number: float | None) -> float:
    return math.inf if number is None else number


def _shown(number: float | None) -> str:
    return "without limit" if number is None else f"{number:g}"
