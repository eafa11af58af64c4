"""Runs one command of the program and judges how it ended: well, refused in a sentence, or badly."""

import functools
import io
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from lightning import Trainer

from lora_lightning.cli.main import main
from lora_lightning.compat.lightning import HookedScriptLauncher
from lora_lightning.errors import ExitStatus
from lora_lightning.tasks import AdaptationTask

RAN, REFUSED, LATE, FAILED = "ran", "refused", "refused late", "failed"
ERROR = "lora-lightning: error: "
LONGEST = 1000  # characters of a sentence
# What a sentence must not show: types and objects as Python prints them, or a traceback.
MACHINE_WORDS = re.compile(r"Traceback \(most|<class '|<[\w.]+ object at 0x|Error\(|Namespace\(|\n")


@dataclass(frozen=True)
class Case:
    """A command on changed input.

    Attributes:
        source: What was changed: a config's path, or a data format.
        mutation: How, for a reader.
        words: The command; its files are written.
        folder: Where relative paths lead to.
        check: Gets standard error of a command that ended with 0; says what is wrong with its result, or nothing.
    """

    source: str
    mutation: str
    words: tuple[str, ...]
    folder: Path
    check: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        kind: `ran`; `refused` in a sentence before any weights loaded, or `refused late`; `failed`.
        message: The sentence, or what was bad about it, or the traceback.
    """

    kind: str
    message: str = ""


class ProcessesAsked(BaseException):
    """Training would have started further processes."""


@contextmanager
def stopped_early() -> Iterator[list[str]]:
    """Ends training after one optimizer step, and instead of starting further processes.

    Everything else is real: parsing, reading and tokenizing data, loading weights, validation, checkpoints, the test.

    Yields:
        A list that has an entry once a task has begun to load its weights.
    """
    loaded: list[str] = []
    fit, configure = Trainer.fit, AdaptationTask.configure_model

    @functools.wraps(fit)  # whose arguments are options of the command
    def short_fit(self: Trainer, *arguments: Any, **options: Any) -> None:
        self.fit_loop.epoch_loop.max_steps = 1
        fit(self, *arguments, **options)

    def noted_configure(self: AdaptationTask) -> None:
        loaded.append(self.backbone)
        configure(self)

    def no_processes(*_arguments: Any, **_options: Any) -> None:
        raise ProcessesAsked

    with (
        mock.patch.object(Trainer, "fit", short_fit),
        mock.patch.object(AdaptationTask, "configure_model", noted_configure),
        mock.patch.object(HookedScriptLauncher, "start_processes", no_processes),
    ):
        yield loaded


def outcome_of(case: Case) -> Outcome:
    """Runs a case in this process.

    Args:
        case: The command and its folder.

    Returns:
        How it ended.
    """
    said, printed = io.StringIO(), io.StringIO()
    environment, wrong = dict(os.environ), ""
    with chdir(case.folder), stopped_early() as loaded, warnings.catch_warnings():
        try:
            with redirect_stderr(said), redirect_stdout(printed):
                status: Any = main(case.words)
                wrong = case.check(said.getvalue()) if case.check is not None and status == 0 else ""
        except ProcessesAsked:
            return Outcome(RAN, "up to the start of further processes")
        except SystemExit as end:
            status = end.code
        except BaseException:  # noqa: BLE001  # whatever it was, it is what we look for
            return Outcome(FAILED, traceback.format_exc())
        finally:
            os.environ.clear()
            os.environ.update(environment)
    if wrong:
        return Outcome(FAILED, f"exit status 0, but {wrong}; said: {said.getvalue()[-1000:]}")
    return judged(status, said.getvalue(), late=bool(loaded))


def judged(status: Any, said: str, late: bool) -> Outcome:
    """Judges an exit status and what was printed to standard error.

    Args:
        status: 0 or 2 are right ones.
        said: Standard error.
        late: Whether weights had begun to load.

    Returns:
        `failed` unless the status is 0, or 2 with one sentence.
    """
    if "Traceback (most recent call last)" in said:
        return Outcome(FAILED, said)
    if status == 0:
        return Outcome(RAN)
    _, found, sentence = said.rpartition(ERROR)
    sentence = sentence.removesuffix("\n")
    if status != ExitStatus.WRONG_INPUT or not found:
        return Outcome(FAILED, f"exit status {status!r}, and said: {said[-2000:]}")
    if len(sentence) > LONGEST or MACHINE_WORDS.search(sentence):
        return Outcome(FAILED, f"no clear sentence: {sentence}")
    return Outcome(LATE if late else REFUSED, sentence)
