"""The program `lora-lightning`: picks a command and prints a user's mistake as one line.

Nothing heavy is imported here, so `--help` answers at once.
"""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from lora_lightning import __version__
from lora_lightning.errors import (
    INTERRUPTED,
    PREEMPTED,
    USER_ERROR,
    LoraLightningError,
    RunFinished,
    TrainingStopped,
)
from lora_lightning.runs.signals import ending_at_once, handle_by, stop_now

COMMANDS = {
    "fit": "train from a YAML config, then test the best checkpoint",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split",
    "predict": "classify, answer or continue the lines of a text file with a checkpoint",
}

EPILOG = """\
examples:
  lora-lightning fit --config configs/quickstart.yaml
  lora-lightning fit --config configs/quickstart.yaml --model.lora.r 4 --trainer.max_epochs 2
  lora-lightning fit --config configs/quickstart.yaml --resume auto    (again, until it exits with 0)
  lora-lightning test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  lora-lightning predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt \\
      --data.predict_file queries.txt --predictions.file answers.csv

every option of a command:   lora-lightning fit --help
options of a class:          lora-lightning fit --model.help SequenceClassificationTask
                             lora-lightning fit --data.help Clinc150DataModule
"""


def build_parser() -> argparse.ArgumentParser:
    """The top-level parser: the command's own options are left to Lightning's parser."""
    parser = argparse.ArgumentParser(
        prog="lora-lightning",
        description="Train, measure and hand over LoRA adapters with PyTorch Lightning.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lora-lightning {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def print_warning(message: Warning | str, *_where: object) -> None:
    """Prints a warning without the line of code that it comes from, which is no use to a user.

    Args:
        message: What to say.
        _where: Category, file and so on, as Python gives them to `warnings.showwarning`.
    """
    print(f"lora-lightning: warning: {one_line(str(message))}", file=sys.stderr)


def one_line(text: str) -> str:
    """What came from a file must neither move a terminal's cursor nor fill it.

    Args:
        text: A message, perhaps with parts of the user's data in it.

    Returns:
        One line of at most 1,000 characters; characters that no terminal shows are escaped.
    """
    text = "".join(letter if letter.isprintable() else f"{letter!a}"[1:-1] for letter in " ".join(text.split()))
    return text if len(text) <= 1000 else f"{text[:600]} ... {text[-350:]}"  # noqa: PLR2004


def import_program() -> Callable[[Sequence[str]], object]:
    """Imports what runs a command, which takes seconds."""
    # PyTorch would print its own stack for each connection that another process ends.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # While PEFT imports it, bitsandbytes warns that an optional kernel is missing; nobody here needs it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from lora_lightning.cli.lightning_cli import run  # noqa: PLC0415

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        arguments: Words after the program's name; `sys.argv` if not given.

    Returns:
        The exit status: 0, or 2 where the input was wrong, 130 after Ctrl-C, or 75 after SIGTERM or SIGUSR1.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    build_parser().parse_known_args(words[:1] or ["--help"])
    with ending_at_once(words[0] == "fit"):
        return status_of(words)


def status_of(words: Sequence[str]) -> int:
    """Runs a command and says how it ended.

    Args:
        words: Of the command line.

    Returns:
        The exit status.
    """
    try:
        with warnings.catch_warnings():
            run = import_program()
            warnings.showwarning = print_warning  # type: ignore[assignment]  # takes all that Python gives
            if words[0] == "fit":
                handle_by(stop_now)
            run(words)
    except LoraLightningError as error:
        print(f"lora-lightning: error: {one_line(str(error))}", file=sys.stderr)
        return USER_ERROR
    except RunFinished as finished:
        print(finished)
        return 0
    except TrainingStopped as stop:
        if stop.main_process:
            print(f"lora-lightning: {stop}", file=sys.stderr)
        elif not stop.alone:
            return 0  # the main process's status counts; another one would call for its end
        return INTERRUPTED if stop.asked == signal.SIGINT else PREEMPTED
    except KeyboardInterrupt as error:
        hint = f"; {one_line(str(error))}" if str(error) else ""
        print(f"lora-lightning: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    return 0


def program() -> NoReturn:
    """Runs the program and ends the process with its status, whatever signals still come."""
    status = main()
    handle_by(signal.SIG_IGN)
    sys.exit(status)
