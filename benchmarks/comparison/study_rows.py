"""A row of studies: 16 trials in one study against one process a trial, both two at a time with one thread each."""

import sys

import yaml

from comparison.row import Row, Rows, Side, per_hour
from comparison.settings import CONFIGS, Settings, program

AT_ONCE = 2
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def study(settings: Settings) -> Row:
    """Trials of the quickstart, without its monitors, two epochs each."""
    config, trials = CONFIGS / "quickstart.yaml", 2 if settings.quick else 16
    option, amount = ("trainer.max_steps", 3) if settings.quick else ("trainer.max_epochs", 2)
    content = {
        "base": str(config),
        "options": {option: amount, "trainer.callbacks": None},
        "axes": {"model.lora.r": [8]},
        "seeds": list(range(trials)),
        "objective": "in_scope_accuracy",
        "reference": {"r": 8},
    }
    file = settings.work / "trials.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    run = program("study", "run", file, "--workers", AT_ONCE, "--save_dir={scratch}/studies")
    words = ["--trials", str(trials), "--at-once", str(AT_ONCE), "--config", str(config)]
    words += [f"--{option}={amount}", "--trainer.callbacks=null"]
    words += ["--trainer.logger.init_args.save_dir={scratch}/logs"]
    separate = (sys.executable, "-m", "comparison.separate_trials", *words)
    ours = Side("one study", run, per_hour(trials), ONE_THREAD)
    peer = Side("one process a trial", separate, per_hour(trials), ONE_THREAD)
    title = f"{trials} trials of the quickstart, {AT_ONCE} at a time with one thread each"
    return Row(title, "trials/h", (ours,), (peer,), 1.5)


ROWS: Rows = {"study": study}
