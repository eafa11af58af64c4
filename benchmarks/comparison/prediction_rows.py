"""Rows of prediction: `lora-lightning predict` against transformers.pipeline at its best batch size."""

from functools import partial
from pathlib import Path

from comparison.row import Row, Rows, Side, Value, per_second_of_the_rest, whole_seconds
from comparison.settings import Settings, program
from comparison.trained_run import count_lines, merged_folder, query_file, trained_run
from comparison.training_rows import CLOCK

BATCH_SIZES = (8, 32, 128)
TIMES = 5  # the test queries in a long prediction
QUICK_TIMES = 11  # so that a few queries take longer than a start varies


def our_prediction(settings: Settings, value: Value, file: Path, less: Path | None = None) -> Side:
    """`predict` with the adapter.

    Args:
        settings: What the command line says.
        value: The number that counts.
        file: The queries.
        less: Fewer of them, for a run before.
    """
    run = trained_run(settings)
    words = ["predict", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints/best.ckpt", CLOCK]
    words += ["--predictions.file={scratch}/answers.csv"]
    few = program(*words, f"--data.predict_file={less}") if less else ()
    return Side("ours", program(*words, f"--data.predict_file={file}"), value, less=few)


def pipelines(settings: Settings, model: Path, value: Value, file: Path, less: Path | None = None) -> tuple[Side, ...]:
    """transformers.pipeline on the same queries at several batch sizes.

    Args:
        settings: What the command line says.
        model: Folder of an adapter or of a merged model.
        value: The number that counts.
        file: The queries.
        less: Fewer of them, for a run before.
    """

    def command(queries: Path, size: int) -> tuple[str, ...]:
        words = ("--model", model, "--texts", queries, "--output", "{scratch}/answers.csv", "--batch-size", size)
        return settings.module("transformers", "pipeline_predict", *words)

    return tuple(
        Side(f"pipeline, batch of {size}", command(file, size), value, less=command(less, size) if less else ())
        for size in BATCH_SIZES
    )


def whole(settings: Settings, *, merged: bool) -> Row:
    """From the start of the process to the written file."""
    title = f"`predict` as a whole process, the pipeline {'with the merged model' if merged else 'with the adapter'}"
    file = query_file(settings)
    model = merged_folder(settings) if merged else trained_run(settings) / "adapter"
    ours, peers = our_prediction(settings, whole_seconds, file), pipelines(settings, model, whole_seconds, file)
    return Row(title, "s", (ours,), peers, None if merged else 0.5, chooses_peer=True)


def steady(settings: Settings, *, merged: bool) -> Row:
    """Queries a second beyond those of a short process: tokens, labels and the file are in both sides' time."""
    times = QUICK_TIMES if settings.quick else TIMES
    few, many = query_file(settings), query_file(settings, times)
    value = per_second_of_the_rest(count_lines(many) - count_lines(few))
    model = merged_folder(settings) if merged else trained_run(settings) / "adapter"
    title = f"`predict` beyond its start, the pipeline {'with the merged model' if merged else 'with the adapter'}"
    ours, peers = our_prediction(settings, value, many, few), pipelines(settings, model, value, many, few)
    return Row(title, "queries/s", (ours,), peers, None if merged else 2.5, chooses_peer=True)


ROWS: Rows = {
    "predict": partial(whole, merged=False),
    "predict_merged": partial(whole, merged=True),
    "predict_steady": partial(steady, merged=False),
    "predict_steady_merged": partial(steady, merged=True),
}
