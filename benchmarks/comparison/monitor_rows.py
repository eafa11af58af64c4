"""Rows of what watching a run costs: all monitors beside none, and spectra from factors beside those of dense dW."""

import sys
from pathlib import Path

from comparison.row import Row, Rows, Side, logged, whole_seconds
from comparison.settings import CONFIGS, Settings, program
from comparison.training_rows import LOGS, QUICK_STEPS

SCRIPT = Path(__file__).with_name("spectra.py")


def monitors(settings: Settings) -> Row:
    """A whole `fit` on CLINC150, an epoch with validation and test, with and without all monitors."""
    words = ["fit", "--config", CONFIGS / "clinc150/minilm_lora.yaml"]
    more = [f"--data.data_dir={settings.data_folder('clinc150')}", "--trainer.enable_progress_bar=false", LOGS]
    more += ["--trainer.max_epochs=1"]
    if settings.quick:
        more += [f"--trainer.max_steps={QUICK_STEPS}"]
        more += ["--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    watched = program(*words, "--config", CONFIGS / "callbacks/all_monitors.yaml", *more)
    ours = Side("with all monitors", watched, whole_seconds)
    without = Side("without monitors", program(*words, *more), whole_seconds)
    return Row("`fit` on CLINC150 with all monitors, beside the same without", "s", (ours,), (without,))


def spectrum(settings: Settings) -> Row:
    """One measurement of rank utilization on SmolLM2-135M's shapes."""
    layers = ("--layers", "1") if settings.quick else ()
    ours, dense = (
        Side(name, (sys.executable, str(SCRIPT), how, *layers), logged("seconds"))
        for name, how in (("from the factors, float64", "factors"), ("SVD of each dense dW, float32", "dense"))
    )
    return Row(
        "rank utilization of 210 adapters with r = 16, from the factors beside dense SVDs", "s", (ours,), (dense,)
    )


ROWS: Rows = {"monitors": monitors, "spectrum": spectrum}
