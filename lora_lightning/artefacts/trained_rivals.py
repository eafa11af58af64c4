"""A run that was trained at a lower rank, beside the adapter that was truncated to one: on the same examples."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from lora_lightning.artefacts.compress_results import RankMeasurement
from lora_lightning.artefacts.example_measuring import SplitExamples
from lora_lightning.artefacts.finished_run import open_run
from lora_lightning.artefacts.observers import ValidationObserver
from lora_lightning.artefacts.rank_trials import Comparison, RankChoice
from lora_lightning.errors import DataError
from lora_lightning.lora.compression import decompose_adapters


def measure_trained_run(
    folder: Path,
    data: Sequence[str],
    examples: SplitExamples,
    comparison: Comparison,
    report: Callable[[str], None],
) -> RankMeasurement:
    """Measures the best checkpoint of another run on the same validation examples.

    Args:
        folder: The run.
        data: Options of the data, as for the compressed run.
        examples: The validation split of the compressed run.
        comparison: With the full adapter on it.
        report: Is called with a line about the result.

    Returns:
        Its measurement, without a verdict.

    Raises:
        LoraLightningError: If the run cannot be opened.
        DataError: If its examples are others.
    """
    opened = open_run(folder, data, validates=False)
    observer = cast("ValidationObserver", opened.observer)
    own = SplitExamples(observer.task, observer.trainer, "val")
    _check_same_examples(folder, examples, own)
    measured = own.measure(opened.network)
    layers = decompose_adapters(opened.network)
    ranks = {name: len(layer.spectrum) for name, layer in layers.items()}
    parameters = sum(rank * layers[name].parameters for name, rank in ranks.items())
    sizes = sorted(set(ranks.values()))
    name = f"trained at r = {sizes[0]}" if len(sizes) == 1 else f"trained at r = {sizes[0]} to {sizes[-1]}"
    choice = RankChoice(f"{name} ({folder.name})", "trained", None, ranks, parameters)
    found = comparison.compare(choice, measured, is_tested=False)
    report(f"{choice.name}: {comparison.shown(found)}")
    return found


def _check_same_examples(folder: Path, own: SplitExamples, other: SplitExamples) -> None:
    if own.fingerprint != other.fingerprint:
        msg = (
            f"the run {folder} was validated on other examples than the compressed one, so they cannot be paired; give "
            "both the same data with --data.* options, or leave it out of --trained_at_k."
        )
        raise DataError(msg)
