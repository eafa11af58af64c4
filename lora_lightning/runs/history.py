"""What a run writes about itself: `run.json` from its first moment on, `summary.json` once it is finished."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lora_lightning.errors import UnreadableError
from lora_lightning.runs.files import cannot_be_written, write_text_atomically
from lora_lightning.runs.layout import RUN, SUMMARY

SCHEMA_VERSION = 1  # of run.json and summary.json; raise it when a reader of today would misunderstand them
Ending = Literal["interrupted", "failed", "finished"]


def read_json(path: Path) -> dict[str, Any]:
    """Reads one of the two files.

    Args:
        path: The file.

    Returns:
        Its content; empty if there is no such file, or if it is damaged: it will be written again.

    Raises:
        UnreadableError: If a newer release wrote it, whose words may mean something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    found = content.get("schema_version", 0)  # older releases wrote none
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        msg = (
            f"{path} has schema version {found!r}, but this release of lora_lightning reads versions up to "
            f"{SCHEMA_VERSION}; install the release that wrote it, or a newer one."
        )
        raise UnreadableError(msg)
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes one of the two files atomically.

    Args:
        path: The file.
        content: Without the schema version.

    Raises:
        TrainingError: If it cannot be written.
    """
    try:
        text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2, ensure_ascii=False)
        write_text_atomically(path, f"{text}\n")
    except OSError as error:
        raise cannot_be_written(path, error) from error


class RunHistory:
    """Keeps `run.json`: where the run comes from, and each time that a process trained in it.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RUN
        self.content = read_json(self.path)
        self.content.pop("schema_version", None)

    def start(self, facts: Mapping[str, Any]) -> None:
        """Adds a session that starts now.

        Args:
            facts: Versions, data fingerprint and the like, as JSON can hold them; of the newest session.

        Raises:
            TrainingError: If the file cannot be written.
        """
        sessions = self.content.get("sessions", [])
        self.content = {**facts, "sessions": [*sessions, {"started": _now()}]}
        write_json(self.path, self.content)

    def end(self, ending: Ending, reason: str, **facts: Any) -> None:
        """Ends the session that runs.

        Args:
            ending: How.
            reason: In words, such as the error's sentence.
            facts: More about the session, such as seconds and steps.

        Raises:
            TrainingError: If the file cannot be written.
        """
        self.content["sessions"][-1] |= {"ended": _now(), "ending": ending, "reason": reason, **facts}
        write_json(self.path, self.content)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json`, with which a run is finished.

    Args:
        folder: The run's.
        summary: As `RunRecord` reads it.

    Raises:
        TrainingError: If it cannot be written.
    """
    write_json(folder / SUMMARY, summary)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
