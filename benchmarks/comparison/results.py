"""The file with all results: written at once or not at all, and nothing measured in it is lost to a later failure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.rows import ROWS

FILE = "results.json"
SCHEMA = 2
Record = dict[str, Any]


class ResultsError(Exception):
    """The file cannot be continued; the text says why, and what to do."""


class Results:
    """The measured rows by name.

    A new measurement of a row stays beside the old one, as `unfinished`, until it has all its turns; if it fails, the
    reason is `failed`.

    Args:
        folder: Where the file is, or will be.

    Raises:
        ResultsError: If there is a file of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self.rows: dict[str, Record] = {}
        if self.file.is_file():
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content.get("schema") != SCHEMA:
                msg = f"{self.file} has no `schema` {SCHEMA}, so an earlier version wrote it; choose another --output"
                raise ResultsError(msg)
            self.rows = content["rows"]

    def begin(self, name: str, fresh: Record, *, missing: bool) -> Record:
        """The record to which turns are added.

        Args:
            name: Of the row.
            fresh: A new record, without turns.
            missing: Whether to continue what is there, if it is of the same machine, code and commands.
        """
        old = self.rows.get(name)
        known = [each for each in ((old or {}).get("unfinished"), old) if each is not None]
        if missing and (same := [each for each in known if continues(each, fresh)]):
            return same[0]
        if old is not None and old.get("turns"):
            old["unfinished"] = fresh
        else:
            self.rows[name] = fresh
        return fresh

    def end(self, name: str, record: Record) -> None:
        """Has a record that has all its turns take the place of an older one."""
        record.pop("failed", None)
        record.pop("unfinished", None)
        self.rows[name] = record
        self.save()

    def fail(self, name: str, fallback: Record, reason: str) -> None:
        """Notes why a row could not be measured to its end; what is known of it stays.

        Args:
            name: Of the row.
            fallback: Taken if nothing is known.
            reason: A sentence.
        """
        self.rows.setdefault(name, fallback)["failed"] = reason
        self.save()

    def save(self) -> None:
        """Writes the file: whoever ends this process leaves the old or the new one."""
        self.rows = {name: self.rows[name] for name in sorted(self.rows, key=_place)}
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"schema": SCHEMA, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        new.replace(self.file)


def continues(known: Record, fresh: Record) -> bool:
    """Whether turns of both may be in one record: machine, code, scripts and commands are the same."""
    scripts = known["machine"].get("scripts") == fresh["machine"].get("scripts")
    return scripts and is_same(known, fresh)


def is_same(known: Record, fresh: Record) -> bool:
    """Whether machine, code and commands are the same; the commit may differ, as by a change of the documentation."""
    other = {"commit", "scripts"}
    machines = [
        {name: value for name, value in each["machine"].items() if name not in other} for each in (known, fresh)
    ]
    return machines[0] == machines[1] and known.get("commands") == fresh.get("commands")


def has_turns(known: Mapping[str, Any], wanted: int) -> bool:
    """Whether a record has so many turns, and did not fail."""
    return len({turn["number"] for turn in known.get("turns", ())}) >= wanted


def _place(name: str) -> int:
    names = list(ROWS)
    return names.index(name) if name in names else len(names)
