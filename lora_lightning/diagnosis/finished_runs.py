"""The finished runs of a diagnosis, and whether they can be compared."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lightning.backbones.adapter_config import read_json_file
from lora_lightning.backbones.adapter_labels import LABELS
from lora_lightning.diagnosis.reachable import unreachable_sentence
from lora_lightning.diagnosis.specification import PRECISION_AXIS, RANK_AXIS, Diagnosis
from lora_lightning.diagnosis.texts import check_new_tokens
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.errors import CheckpointError, ConfigurationError, DataError, LoraLightningError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.metrics.label_space import REGRESSION
from lora_lightning.runs.layout import CONFIG, SUMMARY
from lora_lightning.runs.record import RunRecord, comparable_fingerprints
from lora_lightning.runs.settings import settings_in
from lora_lightning.studies.journal import TrialStatus
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.same_inputs import Runs, base_identity, compare_facts
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_runs import base_configs, run_options
from lora_lightning.studies.trials import Trial, make_trial
from lora_lightning.tasks import AdaptationTask, SequenceClassificationTask
from lora_lightning.training.api import config_arguments, option_arguments
from lora_lightning.training.commands import explain_errors, prepare_command
from lora_lightning.training.fitting import TrainingRun

OF_THE_RUN = ("model.init_args.quantization", "seed_everything", "trainer.logger")  # what has to differ
# Which batches are left out, counted in batches of a size; 0.0 or `null` for none.
TRAINED, VALIDATED, TESTED = (f"trainer.limit_{kind}_batches" for kind in ("train", "val", "test"))
OVERFITTED = "trainer.overfit_batches"
COUNTED_IN = {
    "data.init_args.batch_size": (TRAINED, OVERFITTED),
    "data.init_args.eval_batch_size": (VALIDATED, TESTED, OVERFITTED),
}
LIMITS = (TRAINED, VALIDATED, TESTED, OVERFITTED)
OF_THE_TASK = {VerdictName.HEALTHY}  # which not every task can reach
STARTS = (True, "gaussian", "orthogonal")  # at dW = 0, from numbers that the seed draws
WHICH_MODULES = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",  # those get no adapter
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
)
# What may differ between the precisions, of options that decide on examples: how fast they are read, not which.
HOW_READ = ("batch_size", "eval_batch_size", "num_workers", "cache_dir", "predict_file")
OF_EXAMPLES = ("model.class_path", "model.init_args.backbone", "model.init_args.revision", *LIMITS)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of a diagnosis.

    Attributes:
        precision: Name of its precision.
        rank: r.
        seed: Its seed.
        trial: Its trial.
        record: Its folder's content.
    """

    precision: str
    rank: int
    seed: int
    trial: Trial
    record: RunRecord

    @property
    def title(self) -> str:
        """Such as `NF4, r = 8, seed 0`."""
        return self.trial.title

    @property
    def skipped(self) -> list[str]:
        """The modules that its options leave unquantized."""
        quantization = self.record.settings["model"]["init_args"].get("quantization") or {}
        return list(quantization.get("skip_modules") or [])

    @property
    def identity(self) -> str:
        """Changes when the run is trained again with another result."""
        path = self.record.folder / SUMMARY
        return f"{self.trial.id} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def finished_runs(study: OpenStudy) -> list[FinishedRun]:
    """Reads the finished runs of a diagnosis's study.

    Args:
        study: The study.

    Returns:
        The runs, in the order of the plan.

    Raises:
        LoraLightningError: If a run folder is damaged or gone, or runs cannot be compared.
    """
    plan = study.plan
    statuses: Mapping[str, TrialStatus] = study.journal.statuses(plan.trials)
    found = []
    for trial in plan.tested:
        if statuses[trial.id].state != "finished":
            continue
        configuration = plan.configuration(trial.configuration)
        path = study.folder.run(trial)
        if not path.exists():
            msg = f"the folder of the finished run {trial.title!r} is gone ({path}); restore it, or run the "
            msg += "diagnosis again"
            raise DataError(msg)
        record = RunRecord.load(path)
        if record.checkpoint is None or record.adapter is None:
            msg = f"the run {record.folder} ({trial.title}) has no checkpoint or no exported adapter any more; restore "
            msg += "it, or delete its folder and run the diagnosis again."
            raise CheckpointError(msg)
        rank = int(configuration.options[RANK_AXIS])
        found.append(FinishedRun(configuration.labels[PRECISION_AXIS], rank, trial.seed, trial, record))
    check_comparable([(run.trial, run.record) for run in found])
    return found


def check_comparable(runs: Runs) -> None:
    """Refuses runs of different data, base models or labels.

    Args:
        runs: Of all precisions, ranks and seeds, and with lists of modules to skip.

    Raises:
        DataError: Names two runs that differ.
    """
    fingerprint = comparable_fingerprints(record for _, record in runs)
    compare_facts(
        runs,
        {
            "trained, validated or tested on other rows": lambda record: dict(fingerprint(record)),
            "trained from another base model": base_identity,
            "trained on other labels": _labels,
        },
    )


def _labels(record: RunRecord) -> Any:
    path = None if record.adapter is None else record.adapter / LABELS
    saved = read_json_file(path) if path is not None and path.is_file() else {}
    return {name: saved[name] for name in ("names", "problem_type") if name in saved}  # thresholds may differ


def different_options(diagnosis: Diagnosis, runs: Sequence[FinishedRun]) -> dict[str, tuple[Any, Any]] | None:
    """Finds the options beside `model.quantization` that differ between the precisions, so that they are compared too.

    Args:
        diagnosis: The diagnosis.
        runs: Its finished runs.

    Returns:
        By dotted name: the values of the precision that is not quantized and of the other one, `None` for an option
        that a run does not have; `None` if no rank has runs of both.
    """
    first: dict[tuple[str, int], FinishedRun] = {}
    for run in runs:
        first.setdefault((run.precision, run.rank), run)
    for rank in (diagnosis.rank, *diagnosis.ranks):
        pair = [first.get((precision, rank)) for precision in diagnosis.precisions]
        if pair[0] is not None and pair[1] is not None:
            full, quantized = _with_later_options(pair[0], pair[1]), _with_later_options(pair[1], pair[0])
            return {
                name: (full.get(name), quantized.get(name))
                for name in sorted(full.keys() | quantized.keys())
                if full.get(name) != quantized.get(name) and not name.startswith(OF_THE_RUN)
            }
    return None


def _with_later_options(own: FinishedRun, other: FinishedRun) -> Mapping[str, Any]:
    """The options of a run; those that its release did not have yet count as their defaults, as in resuming."""
    known = own.record.flat_settings
    lacking = other.record.flat_settings.keys() - known.keys()
    if not lacking:
        return known
    words = [*config_arguments(own.record.folder / CONFIG), *option_arguments({"trainer.logger": False})]
    try:
        with explain_errors(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were printed when the run was trained
            filled = settings_in(prepare_command("fit", words).settings_text())
    except LoraLightningError:  # such as an option that no longer exists, or a device that is not here
        return known
    return {**known, **{name: filled[name] for name in lacking if name in filled}}


def check_precisions(diagnosis: Diagnosis, plan: StudyPlan, folder: StudyFolder) -> None:
    """Refuses what cannot be diagnosed, before anything is trained.

    Args:
        diagnosis: The diagnosis.
        plan: Its study, whose options are checked.
        folder: Its folder; nothing is written there.

    Raises:
        ConfigurationError: If the first precision is quantized or the second one is not, the adapters do not start as
            dW = 0 on linear layers alone, the same ones of the same ranks for both, or both do not get the same
            examples and the same base, or the task has nothing that a required verdict is reached from.
    """
    found: list[LoraSettings] = []
    settings: list[Mapping[str, Any]] = []
    for precision in diagnosis.precisions:
        configuration = plan.configuration(diagnosis.configuration(precision, diagnosis.rank))
        trial = make_trial(plan.study, configuration, plan.study.seeds[0])
        words = [*config_arguments(base_configs(plan)), *option_arguments(run_options(folder, trial))]
        with explain_errors():
            cli = prepare_command("fit", words)
        task = cli.model
        is_quantized = task.quantization is not None
        if is_quantized is not (precision == diagnosis.quantized):
            wanted = "must set" if not is_quantized else "must not set"
            msg = f"the precision {precision!r} of the diagnosis {wanted} model.quantization, but its configs say "
            msg += f"{task.quantization}; change the precision's options or the base config"
            raise ConfigurationError(msg)
        check_starts(task.adapter, precision)
        found.append(check_adapters(task.lora, precision))
        check_rank_axis(found[-1], diagnosis.ranks, precision)
        check_new_tokens(task, diagnosis.measuring)
        settings.append(settings_in(cli.settings_text()))
        if OF_THE_TASK & {*diagnosis.require}:
            with explain_errors():
                TrainingRun(cli).check_settings_and_data()  # with which the labels are known
            if sentence := unreachable_sentence(diagnosis.require, what_task_lacks(task)):
                msg = f"the diagnosis {plan.study.name}: {sentence}"
                raise ConfigurationError(msg)
    check_same_modules(*diagnosis.precisions, *found)
    check_same_examples(*diagnosis.precisions, *settings)


def check_rank_axis(lora: LoraSettings, ranks: Sequence[int], precision: str) -> None:
    """Refuses ranks of single modules where ranks are compared: such modules have the same one at every r.

    Args:
        lora: The settings of the adapters.
        ranks: Of the diagnosis.
        precision: Name of the precision, for messages.

    Raises:
        ConfigurationError: If there are several ranks, and `rank_pattern` sets some.
    """
    if lora.rank_pattern and len(ranks) > 1:
        msg = f"the diagnosis compares the ranks {', '.join(map(str, ranks))}, but model.lora.rank_pattern is "
        msg += (
            f"{lora.rank_pattern} for the precision {precision!r}: these modules would have that rank whatever r is; "
        )
        msg += "leave rank_pattern out of options and base configs, or give ranks a single one"
        raise ConfigurationError(msg)


def check_starts(adapter: str | None, precision: str) -> None:
    """Refuses to continue an adapter.

    Args:
        adapter: What `model.adapter` is.
        precision: Name of the precision, for messages.

    Raises:
        ConfigurationError: If there is one: all runs would have what it has learnt in common.
    """
    if adapter is not None:
        msg = f"model.adapter of the precision {precision!r} is {adapter}, but the adapters of a diagnosis start at "
        msg += "dW = 0: what an existing one has learnt would be alike in all runs, whatever precision and seed do; "
        msg += "leave model.adapter out"
        raise ConfigurationError(msg)


def what_task_lacks(task: AdaptationTask) -> dict[VerdictName, str]:
    """Finds what verdicts need and a task does not have.

    Args:
        task: Knows its labels.

    Returns:
        What is missing, by verdict.
    """
    if isinstance(task, SequenceClassificationTask) and task.labels.problem_type == REGRESSION:
        return {VerdictName.HEALTHY: "a regression has no KL divergence, so that no sensitive layer is looked for"}
    return {}


def check_same_examples(first: str, second: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuses options that would give the precisions other examples or another base: nothing could be compared.

    Args:
        first: Name of a precision.
        second: Name of the other one.
        own: The options of its runs by dotted name.
        other: Those of the other one's.

    Raises:
        ConfigurationError: Names the option that differs.
    """
    free = {f"data.init_args.{name}" for name in HOW_READ}
    for name in sorted(own.keys() | other.keys()):
        limits = [limit for limit in COUNTED_IN.get(name, ()) if _leaves_out(limit, own)]
        decides = name in OF_EXAMPLES or (name.startswith("data.") and (name not in free or limits))
        if decides and _meaning(name, own) != _meaning(name, other):
            msg = f"the precisions {first!r} and {second!r} of the diagnosis would not be compared on the same "
            msg += f"examples and base, because {name.replace('.init_args', '')} is {own.get(name)} and "
            msg += f"{other.get(name)}; set it to the same value for both "
            msg += f"(of data, only {', '.join(HOW_READ)} may differ"
            msg += f", and of these not {name.rpartition('.')[2]} where {limits[0]} is set)" if limits else ")"
            raise ConfigurationError(msg)


def _leaves_out(limit: str, settings: Mapping[str, Any]) -> bool:
    """Whether an option limits the batches; the integer 1 is one batch, and 1.0 all of them."""
    value = settings.get(limit)
    if limit == OVERFITTED:
        return bool(value)
    return value is not None and not (isinstance(value, float) and value == 1)


def _meaning(name: str, settings: Mapping[str, Any]) -> Any:
    """The value of an option; `None` for a limit that leaves nothing out, however it is written."""
    return None if name in LIMITS and not _leaves_out(name, settings) else settings.get(name)


def check_same_modules(first: str, second: str, lora: LoraSettings, other: LoraSettings) -> None:
    """Refuses adapters on different modules, or of different ranks, whose updates cannot be compared.

    Args:
        first: Name of a precision.
        second: Name of the other one.
        lora: The settings of its adapters.
        other: Those of the other one's.

    Raises:
        ConfigurationError: Names the option that differs.
    """
    for name in WHICH_MODULES:
        values = [getattr(settings, name) for settings in (lora, other)]
        one, two = (sorted(map(str, value)) if isinstance(value, list) else value for value in values)
        if one != two:
            what = "give modules different ranks" if name == "rank_pattern" else "adapt different modules"
            msg = f"the precisions {first!r} and {second!r} of the diagnosis may {what}, because "
            msg += f"model.lora.{name} is {values[0]} and {values[1]}; set it to the same value for both"
            raise ConfigurationError(msg)


def check_adapters(lora: LoraSettings | None, precision: str) -> LoraSettings:
    """Refuses adapters whose updates cannot be compared layer by layer.

    Args:
        lora: Their settings.
        precision: Name of the precision, for messages.

    Returns:
        The settings.

    Raises:
        ConfigurationError: If there are none, their ranks change, they are more than dW = scaling B A, they start at
            another update than 0 or from the data, or they are on experts.
    """
    is_plain = lora is not None and lora.adalora is None and not lora.use_dora and not lora.target_parameters
    if not is_plain or lora is None or lora.changes_base or lora.init_lora_weights not in STARTS:
        msg = f"the precision {precision!r} of the diagnosis has no adapters of a fixed rank on linear layers of a "
        msg += "base with frozen weights that start at dW = 0 with an A that the seed draws; LoRA and rsLoRA can be "
        msg += "compared, full fine-tuning, AdaLoRA, DoRA, EVA (whose ranks and starts follow from the data), LoftQ, "
        msg += "PiSSA, OLoRA and experts cannot"
        raise ConfigurationError(msg)
    return lora
