"""Whether both sides of a turn did the same work: same builds, as many trained parameters, as many tokens a step."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comparison.row import Row

Work = Mapping[str, Any]
OF_PYTORCH = ("torch", "torch_build", "threads")
OF_TRANSFORMERS = ("transformers", "peft", "tokenizers", "accelerate", "bitsandbytes")
FEWEST_STEPS = 10  # of which a mean says something
MOST_DIFFERENCE = 0.15  # between the tokens a step of both sides


class CommandError(Exception):
    """A command of a row failed, or what it did cannot be compared."""


def work_of(log: Mapping[str, Any]) -> dict[str, Any]:
    """What a command did, ready for JSON.

    Args:
        log: As `StepLog` writes it.

    Returns:
        `environment`, `trainable` (parameters, if it trained), `steps`, mean `tokens` and `labels` (of language models)
        a step, and `loss`, the mean of the last quarter of the steps.
    """
    found = {"environment": log["environment"], "trainable": log.get("trainable"), "steps": len(log["ends"])}
    found |= {name: statistics.mean(log[name]) for name in ("tokens", "labels") if log[name]}
    if losses := log["losses"]:
        found["loss"] = statistics.mean(losses[-max(1, len(losses) // 4) :])
        found["is_finite"] = all(map(math.isfinite, losses))
    return found


def check_same_work(row: Row, work: Mapping[str, Work]) -> None:
    """Refuses a turn whose sides cannot be compared.

    Args:
        row: The row.
        work: From `work_of`, by the name of the side; sides that wrote no log are not checked.

    Raises:
        CommandError: With what differs.
    """
    for name, found in work.items():
        if not found.get("is_finite", True):
            msg = f"{name} had a loss that is not a finite number"
            raise CommandError(msg)
    ours, peers = ([side.name for side in sides if side.name in work] for sides in (row.ours, row.peers))
    for own in ours:
        for other in peers:
            if differences := "; ".join(_differences(row, work[own], work[other])):
                msg = f"{own} and {other} cannot be compared: {differences}"
                raise CommandError(msg)


def _differences(row: Row, ours: Work, peer: Work) -> Iterator[str]:
    here, there = ours["environment"], peer["environment"]
    names: Sequence[str] = OF_PYTORCH
    if "transformers" in here and "transformers" in there:
        names = (*OF_PYTORCH, *(name for name in OF_TRANSFORMERS if name in here and name in there))
    yield from (f"{name} is {here[name]}, the peer's {there[name]}" for name in names if here[name] != there[name])
    counts = ours["trainable"], peer["trainable"]
    if row.same_model and None not in counts and counts[0] != counts[1]:
        yield f"{counts[0]:,} trained parameters, the peer's {counts[1]:,}"
    if min(ours["steps"], peer["steps"]) < FEWEST_STEPS:
        return
    for name in ("tokens", "labels"):
        if name in ours and name in peer and abs(ours[name] / peer[name] - 1) > MOST_DIFFERENCE:
            yield f"{ours[name]:.0f} {name} a step, the peer's {peer[name]:.0f}"
