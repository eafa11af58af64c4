"""Measures this project against its peers in turns (A B A B ...); writes results.json and report.html.

Ratios are taken within turns, and their median and range count. While a command runs, the load of other processes and
the time that other virtual machines took are noted. A row that is measured again replaces the one in results.json.
`benchmarks/peers/install.py` installs the peers.

Example:
    python benchmarks/run.py --data ../shared/data --peers ../peers --output ../performance
    python benchmarks/run.py --data ../shared/data --peers ../peers --output ../try --quick --rows clinc150_tuned help
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from comparison.machine import describe_machine
from comparison.page import write_comparison
from comparison.rows import ROWS
from comparison.settings import MissingError, Settings
from comparison.turns import CommandError, measure_row

RESULTS = "results.json"


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
    parser.add_argument("--turns", type=int, default=3, help="how often each side runs (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one turn of a few steps, to see that everything runs")
    parser.add_argument("--list", action="store_true", help="print the names of all rows, and measure nothing")
    return parser.parse_args()


def measure(name: str, settings: Settings, turns: int) -> dict[str, Any]:
    """Measures a row, or says in `error` why it cannot be measured."""
    print(name, file=sys.stderr, flush=True)
    try:
        found = measure_row(ROWS[name](settings), turns)
    except (MissingError, CommandError) as error:
        found = {"title": name, "error": str(error)}
    if "error" in found:
        print(f"  {found['error']}", file=sys.stderr, flush=True)
    measured = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {**found, "measured": measured, "quick": settings.quick, "machine": describe_machine()}


def main() -> None:
    """Measures the rows and writes the page after each of them."""
    options = parse_arguments()
    if options.list:
        print("\n".join(ROWS))
        return
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    settings = Settings(options.data.resolve(), options.peers.resolve(), output, options.quick)
    file = output / RESULTS
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in options.rows:
        results[name] = measure(name, settings, 1 if options.quick else options.turns)
        results = {known: results[known] for known in ROWS if known in results}
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        page = write_comparison(results, output)
    print(page)
    if failed := [name for name in options.rows if "error" in results[name]]:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
