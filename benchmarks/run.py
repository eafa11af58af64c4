"""Measures this project against its peers in turns (A B B A ...); writes results.json and report.html.

Ratios are taken within turns, and their median and range count. While a command runs, the load of other processes and
the time that other virtual machines took are noted; a turn that they disturbed is measured again. Every turn is saved
at once, and a row that is measured again replaces the one in results.json when all its turns are there.
`benchmarks/peers/install.py` installs the peers.

Example:
    python benchmarks/run.py --data ../shared/data --peers ../peers --output ../performance
    python benchmarks/run.py --data ../shared/data --peers ../peers --output ../performance --missing --turns 5
    python benchmarks/run.py --data ../shared/data --peers ../peers --output ../try --quick --rows clinc150_tuned help
"""

import argparse
import compileall
import signal
import sys
import time
from pathlib import Path
from typing import Any

from comparison.machine import REPOSITORY, describe_machine
from comparison.page import write_comparison
from comparison.results import Record, Results, ResultsError, has_turns, is_same
from comparison.row import Row
from comparison.rows import ROWS
from comparison.same_work import CommandError
from comparison.settings import MissingError, Settings
from comparison.turns import RETRIES, TIMEOUT, add_turns, describe

INTERRUPTED = 130


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with clinc150 and text")
    parser.add_argument("--peers", type=Path, default=Path("../peers"), help="folder that peers/install.py filled")
    parser.add_argument(
        "--output", type=Path, default=Path("../performance"), metavar="DIR", help="folder for the results"
    )
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME", help="default: all"
    )
    parser.add_argument("--turns", type=_positive, default=3, help="how often each side runs (default: 3)")
    parser.add_argument(
        "--missing",
        action="store_true",
        help="measure only turns that results.json lacks; rows of another machine, code or command are measured anew",
    )
    parser.add_argument(
        "--retries", type=int, default=RETRIES, help=f"of a turn that others disturbed (default: {RETRIES})"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="S", help=f"seconds of a command (default: {TIMEOUT:.0f})"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one turn of a few steps into DIR/quick, to see that everything runs"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all rows, and measure nothing")
    return parser.parse_args()


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        msg = f"{text} is not at least 1"
        raise argparse.ArgumentTypeError(msg)
    return number


def measure(name: str, settings: Settings, options: argparse.Namespace, results: Results) -> None:
    """Measures a row as far as that is possible; what fails is noted, and costs no other row.

    Args:
        name: Of the row.
        settings: Where everything is.
        options: The command line.
        results: Gets the turns.
    """
    print(name, file=sys.stderr, flush=True)
    empty = stamped({"title": name}, settings)
    try:
        row = ROWS[name](settings)
        fresh = stamped(describe(row), settings)
        wanted = 1 if settings.quick else max(options.turns, row.fewest_turns)
        if options.missing and (old := results.rows.get(name)) and is_same(old, fresh) and has_turns(old, wanted):
            print("  is there", file=sys.stderr, flush=True)
            return
        fill(name, row, fresh, wanted, options, results)
    except (MissingError, CommandError) as error:
        results.fail(name, empty, str(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, hours of other rows follow
        results.fail(name, empty, f"{type(error).__name__}: {error}")


def fill(name: str, row: Row, fresh: Record, wanted: int, options: argparse.Namespace, results: Results) -> None:
    """Adds the turns that are wanted to the record of a row."""
    record = results.begin(name, fresh, missing=options.missing)
    retries = 0 if options.quick else options.retries
    add_turns(row, record, wanted, results.save, retries=retries, timeout=options.timeout)
    results.end(name, record)


def stamped(record: dict[str, Any], settings: Settings) -> Record:
    """Adds when and where."""
    measured = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {**record, "measured": measured, "quick": settings.quick, "machine": describe_machine()}


def compile_code() -> None:
    """Writes the byte code of both sides' sources, which an installed package has, too."""
    for folder in ("lora_lightning", "benchmarks/comparison", "benchmarks/peers"):
        compileall.compile_dir(REPOSITORY / folder, quiet=2)


def main() -> None:
    """Measures the rows and writes the page after each of them."""
    options = parse_arguments()
    if options.list:
        print("\n".join(ROWS))
        return
    output = options.output.resolve() / ("quick" if options.quick else "")
    output.mkdir(parents=True, exist_ok=True)
    try:
        results = Results(output)
    except (ResultsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for number in (signal.SIGTERM, signal.SIGHUP):  # commands end with this one
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    settings = Settings(options.data.resolve(), options.peers.resolve(), output, options.quick)
    compile_code()
    try:
        for name in options.rows:
            measure(name, settings, options, results)
            if reason := results.rows[name].get("failed"):
                print(f"  {reason}", file=sys.stderr, flush=True)
            page = write_comparison(results.rows, output)
    except KeyboardInterrupt:
        print("stopped; --missing continues", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(page)
    if failed := [name for name in options.rows if "failed" in results.rows[name]]:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
