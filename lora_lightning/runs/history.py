"""Writes `run.json`, from the start of a run, and `summary.json`, when the run is finished."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lora_lightning.errors import UnreadableError
from lora_lightning.runs.files import save_text
from lora_lightning.runs.layout import RUN, SUMMARY

DATA, DATA_ROWS = "data", "data_rows"  # hashes of each split: by the definition of earlier releases, and by today's
SCHEMA_VERSION = 1  # of run.json and summary.json; to be raised if today's readers would misunderstand a new version
Ending = Literal["interrupted", "failed", "finished"]


def read_json(path: Path) -> dict[str, Any]:
    """Reads `run.json` or `summary.json`.

    Args:
        path: The file.

    Returns:
        The content; empty if the file does not exist or is damaged, because it will be written again.

    Raises:
        UnreadableError: If a newer release wrote the file in a format that this release does not know.
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
    """Writes `run.json` or `summary.json` atomically.

    Args:
        path: The file.
        content: The content, without the schema version.

    Raises:
        TrainingError: If the file cannot be written.
    """
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2, ensure_ascii=False)
    save_text(path, f"{text}\n")


class RunHistory:
    """Maintains `run.json`: the provenance of a run, and its sessions (each time a process trained in the folder).

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RUN
        self.content = read_json(self.path)
        self.content.pop("schema_version", None)

    def start(self, facts: Mapping[str, Any]) -> None:
        """Adds a session that starts now.

        Args:
            facts: Versions, data fingerprint and other values that JSON can represent. They replace those of the
                previous session.

        Raises:
            TrainingError: If the file cannot be written.
        """
        # A session may have had other data or another base model, if the user allowed it.
        own = {name: facts[name] for name in (DATA, DATA_ROWS, "base_model") if name in facts}
        sessions = self.content.get("sessions", [])
        self.content = {**facts, "sessions": [*sessions, {"started": _now(), **own}]}
        write_json(self.path, self.content)

    def end(self, ending: Ending, reason: str, **facts: Any) -> None:
        """Ends the current session.

        Args:
            ending: How it ended.
            reason: Why it ended, for example the error message.
            facts: More facts about the session, such as seconds and steps.

        Raises:
            TrainingError: If the file cannot be written.
        """
        self.content["sessions"][-1] |= {"ended": _now(), "ending": ending, "reason": reason, **facts}
        write_json(self.path, self.content)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json`, which marks a run as finished.

    Args:
        folder: The run folder.
        summary: The content that `RunRecord` reads.

    Raises:
        TrainingError: If the file cannot be written.
    """
    write_json(folder / SUMMARY, summary)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
