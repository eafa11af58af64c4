"""Latency and throughput of a run's adapter beside its base and of the merged folder; prints JSON.

Batches of 1 and of 32 test rows, as in `study run --timings`. Rounds with the adapter and with the merged model take
turns, so that other work on the machine slows both alike; medians over the rounds count.

Example:
    lora-lightning merge RUN --output merged
    OMP_NUM_THREADS=1 python benchmarks/merged_speed.py RUN merged
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from lightning import Callback, LightningModule, Trainer

from lora_lightning.artefacts.plain_model import load_merged
from lora_lightning.backbones.model_card import auto_class_of
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.trial_timings import BATCHES, round_seconds, run_batch, spread_batches
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.api import run_arguments
from lora_lightning.training.commands import prepare_command
from lora_lightning.training.evaluation import score_split


class BothTimed(Callback):
    """Times the adapter and the merged model before the test of a run.

    Args:
        merged: The merged folder.
    """

    def __init__(self, merged: str) -> None:
        self.merged = merged
        self.seconds: dict[str, dict[int, list[float]]] = {"adapter": {}, "merged": {}}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Times both on the same batches."""
        task = cast("AdaptationTask", pl_module)
        device, adapted = trainer.strategy.root_device, task.network
        auto_class: Any = getattr(transformers, str(auto_class_of(task.transformers_model)))
        networks = {"adapter": adapted, "merged": load_merged(Path(self.merged), auto_class, device)}

        def run_with(name: str) -> Any:
            def run(batch: Any) -> None:
                task.network = networks[name]
                run_batch(task, batch)

            return run

        for size, count in BATCHES.items():
            batches = spread_batches(trainer, size, count)
            rounds = {name: round_seconds(run_with(name), batches, device) for name in networks}
            for both in zip(*rounds.values(), strict=True):
                for name, seconds in zip(rounds, both, strict=True):
                    self.seconds[name].setdefault(size, []).append(seconds / (size * len(batches)))
        task.network = adapted


def main() -> None:
    """Measures both and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run folder")
    parser.add_argument("merged", help="what `lora-lightning merge` wrote for it")
    options = parser.parse_args()
    timed = BothTimed(options.merged)
    overrides = {"trainer.logger": False, "trainer.limit_test_batches": 1, "trainer.enable_progress_bar": False}
    cli = prepare_command("test", run_arguments(RunRecord.load(options.run), overrides))
    cli.trainer.callbacks.append(timed)  # type: ignore[attr-defined]
    score_split(cli, "test")
    report: dict[str, Any] = {"threads": torch.get_num_threads()}
    for size in BATCHES:
        times = {name: statistics.median(found[size]) for name, found in timed.seconds.items()}
        report[f"batch of {size}"] = {
            **{f"{name}: milliseconds a sample": 1000 * seconds for name, seconds in times.items()},
            **{f"{name}: samples a second": 1 / seconds for name, seconds in times.items()},
            "ratio of the times, adapter to merged": times["adapter"] / times["merged"],
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
