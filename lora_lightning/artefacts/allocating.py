"""Shares one budget of adapter parameters out over the layers, by what was measured, and writes a partial config."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from lora_lightning.analysis.rank_choices import Ranks, adapter_parameters, budget_ranks, uniform_ranks
from lora_lightning.artefacts.allocation import Allocation, LayerRank
from lora_lightning.artefacts.measured_layers import MeasuredLayers, measure_gradients, measure_run
from lora_lightning.errors import ConfigurationError, VerificationError
from lora_lightning.figures.allocation import rank_map_figure
from lora_lightning.figures.png import png_bytes
from lora_lightning.lora.rank_patterns import layer_scaling, scaling_divisor
from lora_lightning.runs.files import atomic_file, write_text_atomically
from lora_lightning.training.api import Config, Options, config_arguments, option_arguments
from lora_lightning.training.commands import explain_errors

BATCHES = 8
MOST = 4  # times the uniform rank of the budget: the most that a layer gets by its gradients
UNIFORM = "r="


def allocate(
    run: str | Path | None = None,
    *,
    budget: int | str,
    output: str | Path,
    config: Config | Sequence[Config] = (),
    overrides: Options | None = None,
    batches: int | None = None,
    shuffled: int | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Allocation:
    """Chooses the rank of each layer under a budget, like `lora-lightning allocate`.

    Every layer gets rank 1; then the direction with the largest squared singular value per parameter gets the next
    rank, until no further rank fits. The singular values are those of a run's updates dW, or, before training, those of
    the gradients with respect to the frozen weights.

    Args:
        run: A run folder whose adapter is measured. Either this or `config` is needed.
        budget: Trainable adapter parameters, or `r=8` for as many as rank 8 takes in all layers.
        output: The YAML file to write; a picture goes beside it, with the suffix `.png`.
        config: Config of `fit` whose gradients are measured: a YAML file, its content, or several of them.
        overrides: Options that override the config, named as on the command line; by name, or pairs.
        batches: Training batches to measure gradients on; by default 8.
        shuffled: A seed: shuffle the ranks over layers of the same shape, as a control of the choice.
        overwrite: Replace existing files.
        report: Is called with a line about each step; `None` for silence.

    Returns:
        The ranks.

    Raises:
        LoraLightningError: If an option, the run, the config or the budget is wrong, or the file cannot be written.
        VerificationError: If all that was measured is zero.
    """
    output, report = Path(output), report or _ignore
    configs = config_arguments(config)
    _check_source(run, configs, overrides or {}, batches, shuffled)
    read_budget(budget, uniform_parameters=0)
    check_output_file(output, configs, None if run is None else Path(run), overwrite=overwrite)
    with explain_errors():
        if run is not None:
            measured = measure_run(Path(run))
        else:
            words = [*configs, *option_arguments(overrides or {})]
            count = BATCHES if batches is None else batches
            measured = measure_gradients(words, count, lambda known: _largest_ranks(known, budget), report)
    allocation = _choose(measured, budget, output, shuffled)
    _write(allocation)
    return allocation


def _ignore(line: str) -> None:
    del line


def _check_source(
    run: str | Path | None,
    configs: Sequence[str],
    overrides: Options,
    batches: int | None,
    shuffled: int | None,
) -> None:
    if (run is None) != bool(configs):
        given = "neither" if run is None else "both"
        msg = f"{given} RUN and --config are given; give a trained run, or a config to measure gradients of."
        raise ConfigurationError(msg if run is not None else msg.replace("neither RUN and", "neither RUN nor"))
    if run is not None and (batches is not None or overrides):
        name = "batches" if batches is not None else option_arguments(overrides)[0].partition("=")[0].removeprefix("--")
        msg = f"--{name} applies to gradients, but the adapter of a run is measured; leave it out, or give --config."
        raise ConfigurationError(msg)
    if batches is not None and batches < 1:
        msg = f"--batches is {batches}, but at least 1 batch is needed to measure gradients."
        raise ConfigurationError(msg)
    if shuffled is not None and shuffled < 0:
        msg = f"--shuffled is {shuffled}, but a seed must be at least 0."
        raise ConfigurationError(msg)


def read_budget(budget: int | str, uniform_parameters: int, fixed: int = 0) -> int:
    """Reads `--budget`.

    Args:
        budget: A number of parameters, or `r=8`.
        uniform_parameters: Parameters of rank 1 in all layers.
        fixed: Parameters that do not depend on ranks.

    Returns:
        The number of parameters.

    Raises:
        ConfigurationError: If it is something else, or not above 0.
    """
    text = str(budget).strip().replace(" ", "")
    number = text.removeprefix(UNIFORM).replace("_", "")
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        msg = (
            f"--budget is {str(budget)!r}, but it must be a number of trainable adapter parameters above 0, such as "
            "300000, or r=8 for as many as rank 8 takes in all layers."
        )
        raise ConfigurationError(msg)
    return int(number) * uniform_parameters + fixed if text.startswith(UNIFORM) else int(number)


def check_output_file(output: Path, configs: Sequence[str], run: Path | None, *, overwrite: bool) -> None:
    """Refuses an output file before any work is done.

    Args:
        output: The YAML file to write.
        configs: `--config=...` that are read.
        run: The run that is read; `None` for none.
        overwrite: Whether existing files may be replaced.

    Raises:
        ConfigurationError: If it is no YAML by its name, exists and may not be replaced, is read, or cannot be written.
    """
    if output.suffix not in (".yaml", ".yml"):
        msg = f"--output is {output}, but a config ends in .yaml (the picture beside it in .png); choose such a name."
        raise ConfigurationError(msg)
    for path in (output, output.with_suffix(".png")):
        if path.exists() and not path.is_file():
            msg = f"--output would write {path}, which is not a file; choose another name."
            raise ConfigurationError(msg)
        if path.exists() and run is not None and run.resolve() in path.resolve().parents:
            msg = f"--output would replace {path}, a file of the run that is read; choose another name."
            raise ConfigurationError(msg)
        if path.exists() and not overwrite:
            msg = f"--output would replace {path}; choose another name, or replace it with --overwrite."
            raise ConfigurationError(msg)
    if any(_is_same_file(word.partition("=")[2], output) for word in configs):
        msg = f"--output {output} is the config that is read; choose another name."
        raise ConfigurationError(msg)
    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        msg = f"--output {output} cannot be written, because {folder} is not a writable folder; create it first."
        raise ConfigurationError(msg)


def _is_same_file(config: str, output: Path) -> bool:
    return "\n" not in config and Path(config).is_file() and output.exists() and output.samefile(config)


def _check_budget(measured: MeasuredLayers, budget: int, largest: Ranks, reason: str) -> None:
    least = adapter_parameters(dict.fromkeys(measured.sides, 1), measured.costs) + measured.fixed
    most = adapter_parameters(largest, measured.costs) + measured.fixed
    if not least <= budget <= most:
        problem = (
            f"below {least:,}, which rank 1 in every layer takes; raise it, or adapt fewer modules"
            if budget < least
            else f"above {most:,}, which {reason} take; lower it"
        )
        msg = f"--budget is {budget:,} trainable adapter parameters, {problem}."
        raise ConfigurationError(msg)


def _budget_of(measured: MeasuredLayers, budget: int | str) -> int:
    return read_budget(budget, sum(measured.costs.values()), measured.fixed)


def _largest_ranks(known: MeasuredLayers, budget: int | str) -> Ranks:
    """The most that each layer may get by its gradients, whose further singular values are not measured."""
    parameters = _budget_of(known, budget)
    full = {name: min(sides) for name, sides in known.sides.items()}
    _check_budget(known, parameters, full, "full ranks")
    return _at_most(full, MOST * _uniform_rank(full, known.costs, parameters - known.fixed))


def _uniform_rank(limits: Ranks, costs: Mapping[str, int], parameters: int) -> int:
    """The largest rank for all layers that fits, not in layers that have fewer."""
    rank = 1
    while rank < max(limits.values()) and adapter_parameters(_at_most(limits, rank + 1), costs) <= parameters:
        rank += 1
    return rank


def _at_most(ranks: Ranks, rank: int) -> Ranks:
    return {name: min(own, rank) for name, own in ranks.items()}


def _choose(measured: MeasuredLayers, budget: int | str, output: Path, shuffled: int | None) -> Allocation:
    parameters, spectra = _budget_of(measured, budget), measured.spectra
    if not any(spectrum.any() for spectrum in spectra.values()):
        msg = f"the {measured.measured_by} are all zero, so they cannot choose ranks; nothing was written."
        raise VerificationError(msg)
    limits = {name: len(spectrum) for name, spectrum in spectra.items()}
    reason = "the ranks of the run (no direction beyond them was measured)"
    _check_budget(measured, parameters, limits, reason)
    ranks = budget_ranks(spectra, measured.costs, parameters - measured.fixed)
    if shuffled is not None:
        ranks = shuffle_ranks(ranks, measured.sides, shuffled)
    uniform = _uniform_rank(limits, measured.costs, parameters - measured.fixed)
    return Allocation(
        output=output,
        measured_by=measured.measured_by,
        shuffled=shuffled,
        budget=parameters,
        parameters=adapter_parameters(ranks, measured.costs) + measured.fixed,
        layers=tuple(_layer(name, rank, measured) for name, rank in ranks.items()),
        kept=_kept(spectra, ranks),
        uniform=uniform,
        uniform_kept=_kept(spectra, uniform_ranks(spectra, uniform)),
        lora=measured.lora,
        lorafa=measured.lorafa,
    )


def _layer(name: str, rank: int, measured: MeasuredLayers) -> LayerRank:
    alpha = float(f"{layer_scaling(name, measured.lora) * scaling_divisor(rank, measured.lora):.12g}")
    kept = _kept({name: measured.spectra[name]}, {name: rank})
    return LayerRank(name, rank, alpha, rank * measured.costs[name], kept)


def _kept(spectra: Mapping[str, Tensor], ranks: Ranks) -> float:
    total = sum(float(spectrum.double().square().sum()) for spectrum in spectra.values())
    kept = sum(float(spectrum[: ranks[name]].double().square().sum()) for name, spectrum in spectra.items())
    return kept / total if total else 1.0


def shuffle_ranks(ranks: Ranks, sides: Mapping[str, tuple[int, int]], seed: int) -> Ranks:
    """Shuffles ranks over layers of the same shape, so that the number of parameters stays the same.

    Args:
        ranks: By layer.
        sides: (in_features, out_features) by layer.
        seed: Of the shuffling.

    Returns:
        By layer, in the same order; not the same ranks.

    Raises:
        ConfigurationError: If no two layers of the same shape have different ranks.
    """
    groups = [[name for name in ranks if sides[name] == shape] for shape in dict.fromkeys(sides.values())]
    if all(len({ranks[name] for name in group}) == 1 for group in groups):
        msg = (
            "--shuffled has nothing to shuffle, because layers of the same shape all have the same rank; leave it out."
        )
        raise ConfigurationError(msg)
    generator, found = np.random.default_rng(seed), dict(ranks)
    while found == ranks:
        for group in groups:
            order = generator.permutation(len(group))
            found |= {name: ranks[group[place]] for name, place in zip(group, order, strict=True)}
    return found


def _write(allocation: Allocation) -> None:
    content = png_bytes(rank_map_figure(allocation.ranks))
    try:
        with atomic_file(allocation.picture) as file:
            file.write(content)
            file.flush()  # a full disk must not leave the ranks beside the picture of others
            write_text_atomically(allocation.output, allocation.config())
    except OSError as error:
        msg = (
            f"--output {allocation.output} cannot be written ({(error.strerror or str(error)).lower()}); free some "
            "space, or choose another folder."
        )
        raise ConfigurationError(msg) from error
