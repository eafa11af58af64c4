"""What a study gained after its first results: adding seeds or values until a verdict pleases raises its error rate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_lightning.studies.plan import StudyPlan, seed_by_seed


@dataclass(frozen=True)
class AddedLater:
    """What was added after a tested run had finished.

    Attributes:
        seeds: Seeds of configurations that the study had before.
        configurations: Names of configurations that it did not have.
    """

    seeds: tuple[int, ...] = ()
    configurations: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What a report says about it; empty if nothing was added."""
        named = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}" if self.seeds else ""
        parts = [named, ", ".join(self.configurations)]
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
        )

    def as_json(self) -> dict[str, list[Any]]:
        """As plain values, for the study's file."""
        return {"seeds": list(self.seeds), "configurations": list(self.configurations)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "AddedLater":
        """Reads it from the study's file."""
        return cls(tuple(content.get("seeds", ())), tuple(content.get("configurations", ())))


def additions(former: StudyPlan, plan: StudyPlan) -> AddedLater:
    """Finds what a study has gained.

    Args:
        former: The study before.
        plan: The study now, which may only add.

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
    )
