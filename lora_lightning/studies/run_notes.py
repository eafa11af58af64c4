"""What runs of a study say about themselves that bears on their comparison: early ends, and rows left out."""

from collections.abc import Sequence

from lora_lightning.studies.same_inputs import Runs
from lora_lightning.training.scored_rows import in_words


def notes_on_runs(runs: Runs) -> list[str]:
    """Says which runs ended early, were not validated at their end, or were scored on some of their rows.

    Args:
        runs: The finished and tested runs.

    Returns:
        Sentences; empty for runs that did all they were asked to.
    """
    ended = [(trial.title, record.reason) for trial, record in runs if record.reason]
    unvalidated = [(trial.title, record.not_validated) for trial, record in runs if record.not_validated]
    limited = [(trial.title, in_words(record.scored_rows)) for trial, record in runs if record.scored_rows]
    notes = (
        ("ended early, so that configurations may be compared after unequal training", ended),
        ("went on after their last validation, which the metric of the best checkpoint does not know", unvalidated),
        ("scored only a part of their rows, on which verdicts are based", limited),
    )
    return [f"{_count(found, len(runs))} {what}: {_example(found)}." for what, found in notes if found]


def _count(found: Sequence[tuple[str, str]], runs: int) -> str:
    return f"All {runs} runs" if len(found) == runs else f"{len(found)} of {runs} runs"


def _example(found: Sequence[tuple[str, str]]) -> str:
    title, reason = found[0]
    return f"{'such as ' if len(found) > 1 else ''}{title} ({reason})"
