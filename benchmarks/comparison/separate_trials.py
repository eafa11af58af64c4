"""Trains trials as one process each, some of them at a time, as a loop in a shell would; stops at the first failure."""

import argparse
import subprocess
import sys
from multiprocessing.pool import ThreadPool

from comparison.settings import program


def main() -> None:
    """Trains all trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    options, words = parser.parse_known_args()

    def train(seed: int) -> int:
        command = program("fit", *words, f"--seed_everything={seed}")
        return subprocess.run(command, check=False, stdout=sys.stderr).returncode  # noqa: S603  # our own

    with ThreadPool(options.at_once) as pool:
        for status in pool.imap_unordered(train, range(options.trials)):
            if status:
                sys.exit(status)


if __name__ == "__main__":
    main()
