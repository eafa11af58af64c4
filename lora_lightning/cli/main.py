"""The program `lora-lightning`: runs a command, and reports a user's mistake in one line.

Nothing heavy is imported here, so that `--help` answers immediately.
"""

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO, cast

from lora_lightning import __version__
from lora_lightning.cli.output import STANDARD_ERROR, TolerantStream
from lora_lightning.cli.sentence_parser import SentenceParser
from lora_lightning.compat.glibc import restart_with_tunables
from lora_lightning.errors import (
    DEBUG,
    ConfigurationError,
    ExitStatus,
    LoraLightningError,
    RunFinished,
    TrainingStopped,
    exit_status,
)
from lora_lightning.runs.signals import (
    ending_on_signals,
    ignore_lost_processes,
    raise_training_stopped,
    set_stop_handler,
)

TRAINING = ("fit", "study", "diagnose")  # commands that a signal stops after the current step
COMMANDS = {
    "plan": "show trainable parameters, adapter size and peak memory of a training before any weights load",
    "fit": "train from a YAML config, then test the best checkpoint",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "classify, answer or continue the texts in a file with a checkpoint",
    "merge": "merge an adapter into its base, check the result, and write it for plain transformers",
    "compress": "truncate an adapter to the least rank that is enough, and write it for every loader",
    "export": "copy an adapter into a folder that names its base model by an id on the hub",
    "allocate": "choose the rank of each layer under a budget, by measurement",
    "study": "compare configurations over seeds, and say which differences are noise",
    "configs": "list the YAML files that come with this package, or copy one to edit it",
    "diagnose": "compare LoRA with QLoRA: what quantizing the base changes, what it costs, and when it pays",
}

EPILOG = """\
examples:
  lora-lightning plan --config configs/quickstart.yaml --memory 4GiB
  lora-lightning fit --config configs/quickstart.yaml
  lora-lightning fit --config configs/quickstart.yaml --model.lora.r 4 --trainer.max_epochs 2
  lora-lightning fit --config configs/quickstart.yaml --resume auto    (repeat until it exits with 0)
  lora-lightning test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  lora-lightning predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt \\
      --data.predict_file queries.txt --predictions.file answers.csv
  lora-lightning merge RUN --output merged
  lora-lightning compress RUN --output compressed
  lora-lightning export RUN --output adapter --base_model_id org/name
  lora-lightning allocate --config FIT.yaml --budget r=8 --output ranks.yaml
  lora-lightning study run STUDY.yaml
  lora-lightning study audit results.csv --reference "r = 64"
  lora-lightning configs --copy quickstart    (into the current folder, to edit it)
  lora-lightning diagnose run DIAGNOSIS.yaml

all options of a command:    lora-lightning fit --help
options of a class:          lora-lightning fit --model.help SequenceClassificationTask
                             lora-lightning fit --data.help Clinc150DataModule
traceback of an error:       lora-lightning fit --config FILE --debug    (--debug works with every command)

exit status of every command:
  0    done
  1    a bug in this program, printed with its traceback
  2    wrong input, explained in one sentence
  3    the trained model failed a check, such as the merge check, some trials of a study failed or exceed its budget, or
       a verdict that a diagnosis requires is not reached
  75   stopped by SIGTERM or SIGUSR1; the same command resumes (fit: with --resume auto)
  130  stopped by Ctrl-C
"""


def build_parser() -> argparse.ArgumentParser:
    """Returns the top-level parser. It does not know the options of a command; Lightning's parser reads them."""
    parser = SentenceParser(
        prog="lora-lightning",
        description="Train, measure and export LoRA adapters with PyTorch Lightning.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lora-lightning {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def print_warning(message: Warning | str, *_where: object) -> None:
    """Prints a warning without the line of code that caused it, which does not help a user.

    Args:
        message: The warning.
        _where: The category, file and line that Python passes to `warnings.showwarning`. They are not printed.
    """
    print(f"lora-lightning: warning: {printable_line(str(message))}", file=sys.stderr)


def printable_line(text: str) -> str:
    """Makes a message safe to print: text from a file could control the terminal or flood it.

    Args:
        text: A message that may quote the user's data.

    Returns:
        One line of at most 1,000 characters, with unprintable characters escaped.
    """
    text = "".join(letter if letter.isprintable() else f"{letter!a}"[1:-1] for letter in " ".join(text.split()))
    return text if len(text) <= 1000 else f"{text[:600]} ... {text[-350:]}"  # noqa: PLR2004


def import_program() -> Callable[[Sequence[str]], object]:
    """Imports the function that runs a command, which takes seconds."""
    # Otherwise PyTorch prints its C++ stack whenever another process closes a connection.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # bitsandbytes warns on import that an optional kernel is missing. It is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from lora_lightning.cli.commands import run_command  # noqa: PLC0415

    return run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        arguments: The command and its options; taken from `sys.argv` if not given.

    Returns:
        An `ExitStatus`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    without_debug = [argument for argument in given if argument != DEBUG]
    try:
        build_parser().parse_args(without_debug[:1] or ["--help"])
    except ConfigurationError as error:
        report_error(error, debug=DEBUG in given)
        return exit_status(error)
    with ending_on_signals(without_debug[0] in TRAINING):
        return run_and_report(without_debug, debug=DEBUG in given)


def run_and_report(arguments: Sequence[str], *, debug: bool) -> ExitStatus:
    """Runs a command and reports how it ended.

    Args:
        arguments: The command and its options, without `--debug`.
        debug: Whether to print the traceback of every error.

    Returns:
        The exit status.
    """
    try:
        with warnings.catch_warnings():
            run_command = import_program()
            warnings.showwarning = print_warning  # type: ignore[assignment]  # takes any arguments
            if arguments[0] in TRAINING:
                set_stop_handler(raise_training_stopped)
            # Processes that Lightning starts get the same arguments.
            run_command([*arguments, DEBUG] if debug else arguments)
    except (Exception, TrainingStopped, KeyboardInterrupt) as error:  # noqa: BLE001  # the end of the program
        ignore_lost_processes()
        report_error(error, debug=debug)
        return exit_status(error)
    return ExitStatus.DONE


def report_error(error: BaseException, *, debug: bool) -> None:
    """Prints why a command ended.

    Args:
        error: The exception that ended it.
        debug: Whether to print the traceback of every error. The traceback of a bug is always printed.
    """
    if debug or exit_status(error) == ExitStatus.INTERNAL_ERROR:
        traceback.print_exception(error)
    if isinstance(error, RunFinished):
        print(error)
    elif isinstance(error, TrainingStopped):
        if error.main_process:
            print(f"lora-lightning: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        hint = f"; {printable_line(str(error))}" if str(error) else ""
        print(f"lora-lightning: interrupted{hint}", file=sys.stderr)
    elif isinstance(error, LoraLightningError):
        print(f"lora-lightning: error: {printable_line(str(error))}", file=sys.stderr)


def program() -> NoReturn:
    """Runs the program and exits with its status, even if more signals arrive."""
    if sys.argv[1:2] and sys.argv[1] in TRAINING:
        restart_with_tunables()
    sys.stdout = cast("TextIO", TolerantStream(sys.stdout))
    sys.stderr = cast("TextIO", TolerantStream(sys.stderr, STANDARD_ERROR))
    if not sys.flags.safe_path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # finds a user's own classes, as `python -m` does; last, to hide no package
    status = main()
    set_stop_handler(signal.SIG_IGN)
    sys.exit(status)
