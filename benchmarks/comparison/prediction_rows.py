"""Rows of prediction: `lora-lightning predict` against transformers.pipeline at its best batch size."""

from functools import partial
from pathlib import Path

from comparison.row import Row, Rows, Side, Value, samples_per_second, whole_seconds
from comparison.settings import Settings, program
from comparison.trained_run import merged_folder, query_file, trained_run
from comparison.training_rows import CLOCK

BATCH_SIZES = (8, 32, 128)


def our_prediction(settings: Settings, value: Value) -> Side:
    """`predict` with the adapter on the test queries."""
    run = trained_run(settings)
    words = ["predict", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/best.ckpt", CLOCK]
    words += [f"--data.predict_file={query_file(settings)}", "--predictions.file={scratch}/answers.csv"]
    return Side("ours", program(*words), value)


def pipelines(settings: Settings, model: Path, value: Value) -> tuple[Side, ...]:
    """transformers.pipeline on the same queries at several batch sizes.

    Args:
        settings: What the command line says.
        model: Folder of an adapter or of a merged model.
        value: The number that counts.
    """
    words = ("--model", model, "--texts", query_file(settings), "--output", "{scratch}/answers.csv", "--batch-size")
    return tuple(
        Side(f"pipeline, batch of {size}", settings.module("transformers", "pipeline_predict", *words, size), value)
        for size in BATCH_SIZES
    )


def whole(settings: Settings, *, merged: bool) -> Row:
    """From the start of the process to the written file."""
    model = merged_folder(settings) if merged else trained_run(settings) / "adapter"
    title = f"`predict` as a whole process, the pipeline {'with the merged model' if merged else 'with the adapter'}"
    goal = None if merged else 0.5
    return Row(
        title,
        "s",
        (our_prediction(settings, whole_seconds),),
        pipelines(settings, model, whole_seconds),
        goal,
    )


def steady(settings: Settings, *, merged: bool) -> Row:
    """Queries a second after the first batch."""
    model = merged_folder(settings) if merged else trained_run(settings) / "adapter"
    title = f"`predict` after the first batch, the pipeline {'with the merged model' if merged else 'with the adapter'}"
    ours = our_prediction(settings, samples_per_second)
    goal = None if merged else 2.5
    return Row(title, "queries/s", (ours,), pipelines(settings, model, samples_per_second), goal)


ROWS: Rows = {
    "predict": partial(whole, merged=False),
    "predict_merged": partial(whole, merged=True),
    "predict_steady": partial(steady, merged=False),
    "predict_steady_merged": partial(steady, merged=True),
}
