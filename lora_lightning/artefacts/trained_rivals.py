"""A run that was trained at a lower rank, beside the adapter that was truncated to one: on the same examples."""

from collections.abc import Callable
from typing import cast

from lora_lightning.artefacts.compress_results import RankMeasurement
from lora_lightning.artefacts.example_measuring import SplitExamples
from lora_lightning.artefacts.finished_run import PreparedRun
from lora_lightning.artefacts.observers import ValidationObserver
from lora_lightning.artefacts.plain_adapter import release_weights
from lora_lightning.artefacts.rank_trials import Comparison, RankChoice
from lora_lightning.lora.delta import adapter_deltas


def measure_trained_run(
    run: PreparedRun, split: str, comparison: Comparison, report: Callable[[str], None]
) -> RankMeasurement:
    """Measures the best checkpoint of another run on the same validation examples.

    Args:
        run: Has the validation examples of the compressed run.
        split: Of validation.
        comparison: With the full adapter on it.
        report: Is called with a line about the result.

    Returns:
        Its measurement, without a verdict.

    Raises:
        LoraLightningError: If the run cannot be opened.
    """
    opened = run.open()
    observer = cast("ValidationObserver", opened.observer)
    examples = SplitExamples(observer.task, observer.trainer, split)
    measured = examples.measure(opened.network, chooses_threshold=True)
    deltas = adapter_deltas(opened.network)
    ranks = {delta.module: delta.r for delta in deltas}
    parameters = sum(factor.numel() for delta in deltas for factor in (delta.A, delta.B))
    release_weights(opened.network)
    sizes = sorted(set(ranks.values()))
    name = f"trained at r = {sizes[0]}" if len(sizes) == 1 else f"trained at r = {sizes[0]} to {sizes[-1]}"
    choice = RankChoice(f"{name} ({run.record.folder.name})", "trained", None, ranks, parameters)
    found = comparison.compare(choice, measured, is_tested=False)
    report(f"{choice.name}: {comparison.shown(found)}")
    return found
