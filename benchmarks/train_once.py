"""Train on CLINC150 through the command line's own code and print one JSON line: speed, memory, result.

Example:
    python benchmarks/train_once.py --data ../shared/data/clinc150 --max-steps 200 \
        --model.lora.target_modules=attention-qv
"""

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path

from lightning.pytorch.callbacks import Timer

from lora_lightning.cli import run

CONFIG = Path(__file__).parent.parent / "configs/clinc150/minilm_lora.yaml"


def main() -> None:
    """Parses the few options of its own, hands the rest to `lora-lightning fit`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--max-steps", type=int, default=None, help="train only, no validation and no test")
    options, rest = parser.parse_known_args()
    words = ["fit", "--config", str(CONFIG), "--data.data_dir", options.data, *rest]
    words += [
        "--trainer.callbacks+=Timer",
        "--trainer.callbacks.interval=step",
        "--trainer.logger.init_args.save_dir",
        tempfile.mkdtemp(),
    ]
    if options.max_steps:
        words += ["--trainer.max_steps", str(options.max_steps), "--trainer.limit_val_batches=0"]
        words += ["--test_after_fit=false"]
    cli = run(words)
    timer = next(c for c in cli.trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]
    seconds = timer.time_elapsed("train")
    rows = len(cli.datamodule.splits["train"])
    steps = cli.trainer.global_step
    samples = rows * steps / len(cli.datamodule.train_dataloader())
    result = {
        "train_samples_per_second": samples / seconds,
        "train_s": seconds,
        "steps": steps,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result), file=sys.stdout)


if __name__ == "__main__":
    main()
