"""The folder of a study: its files, its lock, and that it belongs to this study and no other."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.files import save_text, write_error
from lora_lightning.runs.save_dirs import STUDIES
from lora_lightning.runs.settings import NOT_SET, flatten, list_differences
from lora_lightning.studies.added_later import AddedLater
from lora_lightning.studies.claim_settings import claims_as_json, claims_from_json
from lora_lightning.studies.plan import StudyPlan, plan_study, seed_by_seed
from lora_lightning.studies.specification import SEED_OPTION, Axis, LearningRates, Range, Search, Study
from lora_lightning.studies.study_yaml import as_number, read_yaml
from lora_lightning.studies.trials import Trial, make_trial

STUDY, JOURNAL, LOCK, CLAIMS, REPORT = "study.json", "journal.jsonl", "study.lock", ".claims", "report"
DIAGNOSIS, REPORT_BESIDE_DIAGNOSIS = "diagnosis_settings.json", "study_report"  # whose own report is in `report`
TAG, VALIDATION_TAG, CLAIMED, TRUNCATED = "tag", "validation_tag", "claims", "truncations"  # in the study's file
FURTHER_SEEDS, ADDED = "further_seeds", "added_after_results"
RECOMMENDED = "recommended.yaml"
SCHEMA_VERSION = 1
DECIDED_BEFOREHAND = ("objective", "direction", "margin", "reference", "costs", "sequence", "full_fine_tuning")
# What every trial replaces (`run_options` in trial_runs.py), so that it may differ in the base.
REPLACED = (SEED_OPTION, "test_after_fit", "trainer.logger", "trainer.enable_progress_bar")
MOST_NAMED = 3
REMEDY = "restore the YAML, --base, --objective and --set, or give the study another name, such as with --name"


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study, in which each trial has a run folder.

    Attributes:
        path: `<save_dir>/<name of the study>`.
    """

    path: Path

    @property
    def journal(self) -> Path:
        """What has happened to each trial."""
        return self.path / JOURNAL

    @property
    def is_of_diagnosis(self) -> bool:
        """Whether it is the folder of a diagnosis, too."""
        return (self.path / DIAGNOSIS).exists()

    @property
    def report(self) -> Path:
        """Where its report is written; in the folder of a diagnosis beside the diagnosis's own."""
        return self.path / (REPORT_BESIDE_DIAGNOSIS if self.is_of_diagnosis else REPORT)

    def run(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.path / trial.id

    def claim(self, trial: Trial) -> Path:
        """The lock that the worker of a trial holds; the system releases it when the worker is killed."""
        return self.path / CLAIMS / f"{trial.id}.lock"

    def progress(self, trial: Trial) -> Path:
        """How far a running trial is."""
        return self.path / CLAIMS / f"{trial.id}.json"

    def progress_times(self) -> dict[str, float]:
        """When each trial last wrote how far it is, in seconds since 1970, by id."""
        return {path.stem: path.stat().st_mtime for path in (self.path / CLAIMS).glob("*.json")}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one process at a time change what the study consists of."""
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / CLAIMS).mkdir(exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise write_error(self.path / LOCK, error) from error
        try:
            yield
        finally:
            lock.release()

    def check(self, plan: StudyPlan) -> None:
        """Checks that a study only adds to the study that the folder has, if it has one.

        Args:
            plan: The study.

        Raises:
            ConfigurationError: If the folder belongs to another study, or the study has lost or changed something.
        """
        if (self.path / STUDY).exists():
            check_only_adds(load_plan(self.path), plan, self.path)

    def save(self, plan: StudyPlan, tag: str, validation_tag: str, added: AddedLater | None = None) -> None:
        """Writes the study. To be called while the folder is locked.

        Args:
            plan: The study.
            tag: The metric that decides, with its split.
            validation_tag: The metric that chooses learning rates, with its split.
            added: What the study gains now, after its first results, beside what the folder says of that already.

        Raises:
            ConfigurationError: If the folder belongs to another study, or the study has lost or changed something.
            TrainingError: If the file cannot be written.
        """
        self.check(plan)
        content = study_as_json(plan.study) | {TAG: tag, VALIDATION_TAG: validation_tag}
        known = load_added(self.path) if (self.path / STUDY).exists() else AddedLater()
        content[ADDED] = known.joined(added or AddedLater()).as_json()
        save_text(self.path / STUDY, json.dumps(content, indent=2) + "\n")


def _rates_as_json(rates: LearningRates | None) -> dict[str, Any] | None:
    return None if rates is None else {**asdict(rates), "values": list(rates.values), "seeds": list(rates.seeds)}


def _axis_as_json(axis: Axis) -> dict[str, Any]:
    content = {"name": axis.name, "values": axis.values, "is_named": axis.is_named}
    return content if axis.range is None else content | {"range": asdict(axis.range)}


def _axis_from_json(content: Mapping[str, Any]) -> Axis:
    drawn_from = content.get("range")
    return Axis(**{**content, "range": None if drawn_from is None else Range(**drawn_from)})


def _search_from_json(content: Mapping[str, Any] | None) -> Search | None:
    return None if content is None else Search(**{**content, "seeds": tuple(content["seeds"])})


def study_as_json(study: Study) -> dict[str, Any]:
    """Returns a study as plain values, with the content of its base configs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": study.name,
        "base": base_contents(study),
        "axes": [_axis_as_json(axis) for axis in study.axes],
        "seeds": list(study.seeds),
        "options": study.options,
        "derived": study.derived,
        "learning_rate": _rates_as_json(study.learning_rate),
        "search": None if study.search is None else {**asdict(study.search), "seeds": list(study.search.seeds)},
        "budget": study.budget,
        "storage": study.storage,
        CLAIMED: claims_as_json(study.claims),
        TRUNCATED: {name: list(ranks) for name, ranks in study.truncations.items()},
        FURTHER_SEEDS: {name: list(seeds) for name, seeds in study.further_seeds.items()},
        **{key: getattr(study, key) for key in DECIDED_BEFOREHAND},
    }


def base_contents(study: Study) -> list[Mapping[str, Any]]:
    """Reads the base configs of a study."""
    return [read_yaml(base) if isinstance(base, Path) else base for base in study.base]


def load_plan(path: Path) -> StudyPlan:
    """Reads the study of a folder.

    Args:
        path: The folder.

    Returns:
        Its plan; its base configs are those of the time when it was written.

    Raises:
        ConfigurationError: If the folder has no study, or a newer release wrote it.
    """
    content = _read_study(path)
    try:
        study = _study_from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    return plan_study(study)


def _study_from_json(content: Mapping[str, Any]) -> Study:
    lists = {key: tuple(content[key]) for key in ("costs", "sequence") if content[key] is not None}
    return Study(
        name=content["name"],
        base=tuple(content["base"]),
        axes=tuple(map(_axis_from_json, content["axes"])),
        seeds=tuple(content["seeds"]),
        options=content["options"],
        derived=content["derived"],
        learning_rate=_rates_from_json(content["learning_rate"]),
        search=_search_from_json(content.get("search")),
        budget=content.get("budget"),
        storage=content.get("storage"),
        claims=claims_from_json(content.get(CLAIMED, [])),
        truncations={name: tuple(ranks) for name, ranks in content.get(TRUNCATED, {}).items()},
        further_seeds={name: tuple(seeds) for name, seeds in content.get(FURTHER_SEEDS, {}).items()},
        **{key: content[key] for key in DECIDED_BEFOREHAND} | lists,
    )


def _damaged(path: Path, error: Exception) -> ConfigurationError:
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return ConfigurationError(f"{path / STUDY} is damaged ({reason}); restore it, or give the study another name")


def _rates_from_json(content: Mapping[str, Any] | None) -> LearningRates | None:
    if content is None:
        return None
    return LearningRates(tuple(content["values"]), tuple(content["seeds"]), content["shared"], content.get("extend", 0))


def load_tags(path: Path) -> tuple[str, str]:
    """Reads the metric that decides, with its split, and the one that chooses learning rates, from a study's folder."""
    content = _read_study(path)
    try:
        return content[TAG], content[VALIDATION_TAG]
    except KeyError as error:
        raise _damaged(path, error) from error


def load_added(path: Path) -> AddedLater:
    """Reads from a study's folder what was added after its first results; nothing if an earlier release wrote it."""
    return AddedLater.from_json(_read_study(path).get(ADDED, {}))


def _read_study(path: Path) -> dict[str, Any]:
    file = path / STUDY
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} is not the folder of a study, because {file} cannot be read; give a folder such as "
        msg += f"{STUDIES}/NAME"
        raise ConfigurationError(msg) from error
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
        raise _damaged(path, KeyError("schema_version"))
    if content["schema_version"] > SCHEMA_VERSION:
        msg = f"{file} has schema version {content['schema_version']}, but this release reads {SCHEMA_VERSION}; "
        msg += "install the release that wrote it, or a newer one"
        raise ConfigurationError(msg)
    return content


def check_only_adds(former: StudyPlan, plan: StudyPlan, path: Path) -> None:
    """Refuses a study that contradicts the one in its folder: it may only add values and seeds.

    Args:
        former: The study in the folder.
        plan: The study now.
        path: The folder, for messages.

    Raises:
        ConfigurationError: If they contradict each other.
    """
    old, new = study_as_json(former.study), study_as_json(plan.study)
    if old["name"] != new["name"]:  # the journal knows its trials by it, and would start again
        msg = f"the folder {path} has the study {old['name']!r}, and not {new['name']!r}: a folder that was renamed or "
        msg += f"copied cannot go on under another name. Name the folder {old['name']} again, in another --save_dir if "
        msg += "need be, or give the study a name that has no folder yet"
        raise ConfigurationError(msg)
    kept = (*DECIDED_BEFOREHAND, CLAIMED, TRUNCATED)
    here, there = ({key: json.loads(json.dumps(each[key])) for key in kept} for each in (new, old))
    changed = [
        # A null is not what is left out: `model.lora: null` is full fine-tuning, and LoRA is the default.
        *list_differences(_base_settings(new["base"]), _base_settings(old["base"]), "there", NOT_SET),
        *list_differences(here, there, "there"),
    ]
    if changed:
        msg = f"the folder {path} has a study with other settings: {'; '.join(changed[:MOST_NAMED])}; {REMEDY}"
        raise ConfigurationError(msg)
    if old["storage"] != new["storage"]:
        _check_storage(old["storage"], new["storage"], path)
    _check_rates(former, plan, path)
    _check_search(old, new, path)
    ids = {trial.id for trial in (*plan.trials, *_without_rates(plan))}
    if lost := [trial.title for trial in (*former.trials, *_without_rates(former)) if trial.id not in ids]:
        named = "; ".join(lost[:MOST_NAMED]) + (
            f"; and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
        )
        msg = f"the folder {path} has {len(lost)} runs that the study no longer contains ({named}); a study may only "
        msg += f"gain values and seeds: {REMEDY}"
        raise ConfigurationError(msg)
    _check_derived(former, plan, path)
    _check_sequence(former, plan, path)


def _check_storage(old: str | None, new: str | None, path: Path) -> None:
    from lora_lightning.studies.storage import is_same_storage, shown_url  # noqa: PLC0415  # which imports this module

    if not is_same_storage(old, new):
        now, before = ("its journal file" if url is None else shown_url(url) for url in (new, old))
        msg = f"the folder {path} has a study whose trials are in {before}, and not in {now}; {REMEDY}"
        raise ConfigurationError(msg)


def _check_derived(former: StudyPlan, plan: StudyPlan, path: Path) -> None:
    """Refuses other expressions: those that agree on the runs so far may not do so on what a study or search adds."""
    here, there = (
        {name: "".join(text.split()) for name, text in each.study.derived.items()} for each in (plan, former)
    )
    if changed := list_differences(here, there, "there", NOT_SET):
        msg = f"the folder {path} has a study with other derived values: {'; '.join(changed[:MOST_NAMED])}; {REMEDY}"
        raise ConfigurationError(msg)


def _check_sequence(former: StudyPlan, plan: StudyPlan, path: Path) -> None:
    """Refuses another order of tests; a rank above the reference would end the fixed sequence of a study of ranks."""
    if tuple(name for name in plan.sequence if name in former.sequence) != former.sequence:
        kept = list(former.sequence)
        msg = (
            f"the folder {path} has a study that tests its configurations in the fixed sequence {kept}, but with what "
        )
        msg += f"it gains now, the sequence is {list(plan.sequence)}, so that verdicts would change after results were "
        msg += "seen. Add no rank above the reference, or give the study another name"
        raise ConfigurationError(msg)


def _check_rates(former: StudyPlan, plan: StudyPlan, path: Path) -> None:
    """Refuses other learning rates once they have chosen one; a better one among them would change finished runs."""
    old, new = former.study.learning_rate, plan.study.learning_rate
    if old != new:
        msg = f"the folder {path} has a study whose learning_rate is {_rates_as_json(old)}, and not "
        msg += f"{_rates_as_json(new)}; {REMEDY}"
        raise ConfigurationError(msg)


def _check_search(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Refuses another search; it may only try more configurations."""
    if old["search"] is None and new["search"] is None:
        return
    here, there = (_search_settings(each) for each in (new, old))
    now, before = (settings.pop("search.trials", None) for settings in (here, there))
    changed = list_differences(here, there, "there", NOT_SET)
    if not changed and (math.inf if now is None else now) < (math.inf if before is None else before):
        limit = "as many as the budget allows" if before is None else before
        changed = [f"search.trials is {now} here and {limit} there"]
    if changed:
        msg = f"the folder {path} has a study with another search ({'; '.join(changed[:MOST_NAMED])}), which may only "
        msg += f"gain trials; {REMEDY}"
        raise ConfigurationError(msg)


def _search_settings(study: Mapping[str, Any]) -> dict[str, Any]:
    """What a study searches, and how, by dotted name."""
    axes = {axis["name"]: axis.get("range") or axis["values"] for axis in study["axes"]}
    found = {"search": study["search"] or {"sampler": None}, "axes": axes}
    return flatten(json.loads(json.dumps(found)))


def _without_rates(plan: StudyPlan) -> list[Trial]:
    """The tested runs of a study that chooses learning rates, before it has done so."""
    if plan.study.learning_rate is None:
        return []
    return [make_trial(plan.study, each, seed) for each, seed in seed_by_seed(plan.study, plan.configurations)]


def _base_settings(configs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of the base configs by dotted name, without those that every trial replaces."""
    settings: dict[str, Any] = {}
    for number, config in enumerate(configs, start=1):
        place = f"base {number}." if len(configs) > 1 else ""
        # A former release read a quoted `1e-3` as a number, too, and saved that.
        kept = {name: as_number(value) for name, value in flatten(config).items() if not _is_replaced(name)}
        settings |= {f"{place}{name}": value for name, value in kept.items()}
    return settings


def _is_replaced(name: str) -> bool:
    return any(f"{name}.".startswith(f"{option}.") for option in REPLACED)
