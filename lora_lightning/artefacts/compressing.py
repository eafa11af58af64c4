"""Truncates a trained adapter to the least rank that is enough, and writes it so that every loader reads the same."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from lora_lightning.artefacts.compress_checks import Ranks, check_before_loading
from lora_lightning.artefacts.compress_job import CompressJob, CompressOptions
from lora_lightning.artefacts.compress_results import CompressResult, Layout
from lora_lightning.artefacts.finished_run import prepare_run
from lora_lightning.artefacts.loader_rules import check_target_names
from lora_lightning.artefacts.output_folder import ADAPTER, check_not_read, check_output
from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG
from lora_lightning.backbones.source import resolve_backbone
from lora_lightning.errors import CheckpointError, ConfigurationError, suggest_names
from lora_lightning.runs.layout import ADAPTER_FOLDER, CONFIG
from lora_lightning.training.api import Config, Options, config_arguments, option_arguments
from lora_lightning.training.commands import explain_errors


def compress(
    source: str | Path,
    output: str | Path,
    *,
    metric: str | None = None,
    margin: float | None = None,
    ranks: Sequence[int] | Literal["all"] | None = None,
    layout: Layout = "portable",
    trained_at_k: Sequence[str | Path] = (),
    check_targets: Sequence[str] = (),
    config: Config | Sequence[Config] = (),
    overrides: Options | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> CompressResult:
    """Writes a run's adapter at the least rank that is enough, like `lora-lightning compress`.

    Each update dW is truncated by its singular value decomposition, computed from its factors. On the validation split
    ranks are tested from the largest down, paired over examples, until one is not proven to be at most `margin` worse
    than the full adapter. The written folder is loaded again on a fresh base and tested on the test split. The verdict
    is about this adapter, not about training at that rank.

    Args:
        source: A run folder, whose best checkpoint is compressed.
        output: The adapter folder to write.
        metric: What decides; by default the metric that chose the best checkpoint.
        margin: The largest loss that does not matter: in points of a share such as accuracy (default 0.5), in percent
            of a perplexity (default 1), otherwise in the metric's unit.
        ranks: The ranks to test, in any order, or `all` below that of the adapter; by default 256, 128, 64, 32, 16, 8,
            6, 4, 3, 2 and 1, since a rank between two portable ones would save nothing.
        layout: `portable`: one rank for all layers, the least of 8, 16, 32, 64, 128 and 256 that is enough, padded with
            zeros; `exact`: one rank, without padding; `mixed`: as many parameters spread over the layers, which is
            right in PEFT only.
        trained_at_k: Runs that were trained at a lower rank, to compare with on the same examples.
        check_targets: Programs that have to load the folder right: `peft`, `vllm`, `llama.cpp`.
        config: A YAML file with `data` other than the run's own, or its content.
        overrides: Options of the data, named as on the command line: `{"data.data_dir": "DIR"}`, or pairs of them.
        overwrite: Replace an existing adapter folder, once the new one has passed.
        report: Is called with a line about each step; `None` for silence.

    Returns:
        What was written and measured.

    Raises:
        LoraLightningError: If an option, the run, its base or its data is wrong, or if the disk is full.
        VerificationError: If the written folder is not the model that was judged, if the test split shows that it is
            worse by more than the margin, if the adapter changes nothing, or if one of `check_targets` would not load
            it right. Nothing is written then.
    """
    source, output, report = Path(source), Path(output), report or _ignore
    check_layout(layout)
    check_target_names(check_targets)
    check_margin(margin)
    wanted = check_ranks(ranks)
    runs = [check_run(Path(folder)) for folder in (source, *trained_at_k)]
    check_output(output, source, overwrite=overwrite, marker=ADAPTER)
    for folder in runs:
        check_not_read(output, folder / ADAPTER_FOLDER)
    data = (*config_arguments(config), *option_arguments(overrides or {}))
    with explain_errors():
        run = prepare_run(runs[0], data, validates=False, needs_test=True)
        check_not_read(output, Path(resolve_backbone(run.task.backbone)))
        rivals = [prepare_run(folder, data, validates=False) for folder in runs[1:]]
        compared = check_before_loading(run, rivals, metric=metric, margin=margin, ranks=wanted, layout=layout)
        options = CompressOptions(compared, margin, wanted, layout, rivals, check_targets)
        report(f"loading {source}")
        return CompressJob(run, output, options, report, overwrite=overwrite).run()


def _ignore(line: str) -> None:
    del line


def check_layout(layout: str) -> None:
    """Refuses an unknown layout.

    Args:
        layout: As in `compress`.

    Raises:
        ConfigurationError: If it is unknown.
    """
    if layout not in get_args(Layout):
        msg = f"--layout is {layout!r}; {suggest_names(layout, get_args(Layout))}"
        raise ConfigurationError(msg)


def check_margin(margin: float | None) -> None:
    """Refuses a margin with which nothing can be proven, before anything is loaded.

    Args:
        margin: As in `compress`.

    Raises:
        ConfigurationError: If it is not a finite number above 0.
    """
    if margin is not None and not 0 < margin < math.inf:
        msg = f"--margin is {margin:g}, but it must be above 0 and finite; leave it out for the metric's usual margin."
        raise ConfigurationError(msg)


def check_ranks(ranks: Sequence[int] | str | None) -> Ranks:
    """Puts the ranks to test in order.

    Args:
        ranks: As in `compress`.

    Returns:
        From the largest down, each once; empty for the default; or `all`.

    Raises:
        ConfigurationError: If there is none, one is below 1, or a text is not `all`.
    """
    if ranks is None:
        return ()
    if isinstance(ranks, str):
        if ranks != "all":
            msg = f"--ranks is {ranks!r}, but it must be whole numbers such as 8, 4 and 2, or all."
            raise ConfigurationError(msg)
        return "all"
    if not ranks or min(ranks) < 1:
        given = ",".join(map(str, ranks)) or "empty"
        msg = f"--ranks is {given}, but each rank must be at least 1; give all, or leave it out for the usual ones."
        raise ConfigurationError(msg)
    return tuple(sorted(set(ranks), reverse=True))


def check_run(folder: Path) -> Path:
    """Refuses what is no run, with what to give instead.

    Args:
        folder: A run.

    Returns:
        The folder.

    Raises:
        CheckpointError: If it is something else.
    """
    if (folder / CONFIG).is_file():
        return folder
    if (folder / ADAPTER_CONFIG).is_file():
        msg = (
            f"{folder} is an adapter, but compress needs its run, which has the data to judge ranks on; give the run's "
            "folder, such as lightning_logs/quickstart/version_0."
        )
        raise CheckpointError(msg)
    problem = "is not a run folder" if folder.exists() else "does not exist"
    msg = f"{folder} {problem}; give a run such as lightning_logs/quickstart/version_0 (it has a {CONFIG})."
    raise CheckpointError(msg)
