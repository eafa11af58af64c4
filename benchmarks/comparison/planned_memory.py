"""One run of `plan_memory.py`: the peak memory that `plan` predicts, or that of the run itself; for `planning_rows`."""

import json
import os
import sys
import tempfile
from pathlib import Path

from peers.step_log import FILE
from plan_memory import MEBIBYTE, NAMES, RUNS, in_process, make_files, tensors_of, words_of

from lora_lightning.compat.glibc import restart_with_tunables
from lora_lightning.planning.overhead import overhead_of


def main() -> None:
    """Predicts or measures the run with the given name, in MiB."""
    restart_with_tunables()  # as `fit` does
    step, name = sys.argv[1:]
    import lora_lightning.cli.commands  # noqa: PLC0415  # what a command imports
    import lora_lightning.training.fitting  # noqa: F401, PLC0415  # before the process is forked

    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        found = in_process(step, words_of(*RUNS[NAMES.index(name)], Path(folder)))
    if step == "predict":
        found["peak"] = tensors_of(found) + overhead_of("cpu", is_quantized="QLoRA" in name)
    Path(os.environ[FILE]).write_text(json.dumps({"mib": found["peak"] / MEBIBYTE}), encoding="utf-8")


if __name__ == "__main__":
    main()
