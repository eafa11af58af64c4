"""Reads a study's YAML: what is varied, over which seeds, and what decides. Every key is used or refused."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

from lora_lightning.configuration.yaml_files import check_config_file, check_config_form
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.studies.claim_settings import read_claims, read_truncations
from lora_lightning.studies.other_base import OPTIONS_BY_DATA, data_module_of, options_of_data, with_objective
from lora_lightning.studies.search_settings import (
    SEARCH_KEYS,
    check_search,
    is_finite_number,
    is_range,
    read_budget,
    read_range,
    read_search,
)
from lora_lightning.studies.specification import (
    COSTS,
    FACTS_OF_TRIALS,
    RATE_OPTION,
    SEED_OPTION,
    Axis,
    LearningRates,
    Search,
    Study,
    label_of,
)
from lora_lightning.studies.study_yaml import plain_values, read_alike, read_yaml, typed_value

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DIRECTIONS = ("higher", "lower")
RATE_KEYS = {"values", "seeds", "shared", "extend"}
MOST_FURTHER = 10  # learning rates beyond those of the study
OPTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# What the study sets itself.
OWN_OPTIONS = (SEED_OPTION, "trainer.logger", "resume", "ckpt_path", "test_after_fit", "config")


Settings = Sequence[str] | Mapping[str, Any]  # as after --set, or values by option


def read_study_file(
    path: Path,
    base: Sequence[Path] = (),
    settings: Settings = (),
    *,
    name: str | None = None,
    objective: str | None = None,
) -> Study:
    """Reads a study.

    Args:
        path: The YAML.
        base: Configs in place of those in the YAML.
        settings: Options of all runs, such as `"data.data_dir=FOLDER"`, or their values by name. They override those
            in the YAML.
        name: A name in place of that in the YAML, such as that of the file.
        objective: The metric that decides in place of that in the YAML.

    Returns:
        The study, whose options are not checked yet.

    Raises:
        ConfigurationError: If the file cannot be read, a key is unknown or missing, or a value is out of range.
    """
    check_config_file(path)
    return study_from_content(path, read_yaml(path), base, settings, name=name, objective=objective)


def study_from_content(
    path: Path,
    content: Mapping[str, Any],
    base: Sequence[Path] = (),
    settings: Settings = (),
    *,
    name: str | None = None,
    objective: str | None = None,
) -> Study:
    """Reads a study from the content of a file.

    Args:
        path: The file, for messages, and because paths in it are relative to its folder.
        content: Values by key.
        base: As in `read_study_file`.
        settings: As in `read_study_file`.
        name: As in `read_study_file`.
        objective: As in `read_study_file`.

    Returns:
        The study, whose options are not checked yet.

    Raises:
        ConfigurationError: As `read_study_file` does.
    """
    keys = [*Study.__dataclass_fields__, OPTIONS_BY_DATA]
    if misplaced := [key for key in content if key in SEARCH_KEYS and key not in keys]:
        msg = (
            f"the study {path} has {misplaced[0]} beside its axes, but it belongs into search: a study without search "
        )
        msg += "trains every configuration to its end"
        raise ConfigurationError(msg)
    if unknown := [key for key in content if key not in keys]:
        msg = f"the study {path} has the unknown key {unknown[0]!r}; {suggest_names(unknown[0], keys)}"
        raise ConfigurationError(msg)
    reader = _Reader(path, content if name is None else {**content, "name": name})
    if objective is not None:
        reader.content = with_objective(reader.content, objective, reader.refuse)
    reader.check_search()
    configs = reader.base(base)
    return Study(
        name=reader.name(),
        base=configs,
        axes=reader.axes(),
        seeds=reader.seeds(),
        objective=reader.text("objective"),
        reference=reader.reference(),
        options=reader.all_options(data_module_of(configs), is_other_base=bool(base)) | reader.settings(settings),
        derived={name: str(text) for name, text in reader.options("derived").items()},
        margin=reader.margin(),
        direction=reader.direction(),
        costs=reader.costs(),
        sequence=reader.sequence(),
        full_fine_tuning=None if content.get("full_fine_tuning") is None else reader.text("full_fine_tuning"),
        learning_rate=reader.learning_rate(),
        search=reader.search(),
        budget=read_budget(content.get("budget"), reader.refuse),
        storage=reader.storage(),
        claims=read_claims(content.get("claims"), reader.refuse),
        truncations=read_truncations(content.get("truncations"), reader.refuse),
        further_seeds=reader.further_seeds(),
    )


class _Reader:
    """Reads the keys of a study.

    Args:
        path: The file, for messages, and because paths in it are relative to its folder.
        content: The file's.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path, self.content = path, content

    def refuse(self, message: str) -> NoReturn:
        msg = f"the study {self.path}: {message}"
        raise ConfigurationError(msg)

    def needed(self, key: str, example: str) -> Any:
        if self.content.get(key) is None:
            self.refuse(f"{key} is missing; add it, such as `{key}: {example}`")
        return self.content[key]

    def text(self, key: str) -> str:
        value = self.needed(key, {"objective": "accuracy"}.get(key, "NAME"))
        if not isinstance(value, str) or not value:
            self.refuse(f"{key} is {value!r}, but a text is needed")
        return value

    def name(self) -> str:
        name = self.content.get("name", self.path.stem)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            remedy = "write" if "name" in self.content else "the file is called so; rename it, or add"
            self.refuse(
                f"the name {name!r} must be up to 100 letters, digits, dots, dashes and underscores, the first one no "
                f"dot or dash; {remedy} a name in the study, such as `name: ranks`"
            )
        return name

    def base(self, replacement: Sequence[Path]) -> tuple[Path | Mapping[str, Any], ...]:
        found = None if replacement else self.needed("base", "../quickstart.yaml")
        if isinstance(found, dict):
            check_config_form(found, f"base of {self.path}")
            return (found,)
        paths = replacement or self.base_files(found)
        if missing := [path for path in paths if not path.is_file()]:
            where = "check the path of --base" if replacement else "paths are relative to the study, or use --base"
            self.refuse(f"there is no base config {missing[0]}; {where}")
        for path in paths:
            check_config_file(path)
        return tuple(paths)

    def base_files(self, found: Any) -> list[Path]:
        files = found if isinstance(found, list) else [found]
        if not files or not all(isinstance(file, str) for file in files):
            self.refuse(f"base is {found!r}, but a config, a list of configs or their options are needed")
        return [self.path.parent / Path(file).expanduser() for file in files]

    def all_options(self, module: str, *, is_other_base: bool) -> dict[str, Any]:
        """The options of all runs, with those that are for the base's data module."""
        found, by_module = self.options("options"), self.content.get(OPTIONS_BY_DATA) or {}
        if not isinstance(by_module, dict):
            self.refuse(
                f"{OPTIONS_BY_DATA} is {by_module!r}, but options by data module are needed, such as "
                "`Clinc150DataModule: {data.variant: small}`"
            )
        checked = {name: self.checked_options(each, f"{OPTIONS_BY_DATA} of {name}") for name, each in by_module.items()}
        of_data = options_of_data(checked, module, self.refuse, is_other_base=is_other_base)
        if both := [name for name in of_data if name in found]:
            self.refuse(f"{both[0]} is in options and in {OPTIONS_BY_DATA}; leave one of both out")
        return {**of_data, **found}

    def options(self, key: str) -> dict[str, Any]:
        return self.checked_options(self.content.get(key) or {}, key)

    def checked_options(self, found: Any, key: str) -> dict[str, Any]:
        if not isinstance(found, dict):
            self.refuse(f"{key} is {found!r}, but values by option are needed, such as `trainer.max_epochs: 2`")
        for name in found:
            self.check_option(name, key)
        return found

    def settings(self, given: Settings) -> dict[str, Any]:
        if isinstance(given, Mapping):
            found: dict[str, Any] = plain_values(given, "settings")
            for name in found:
                self.check_option(name, "settings")
            return found
        pairs = [self.setting(words) for words in given]
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            self.refuse(f"--set gives {twice[0]} {names.count(twice[0])} times; leave out all but one")
        return dict(pairs)

    def setting(self, words: str) -> tuple[str, Any]:
        name, equals, value = words.partition("=")
        if not equals or not value.strip():
            self.refuse(
                f"--set {words!r} has no value; write OPTION=VALUE, such as data.data_dir=FOLDER, or OPTION=null for "
                "none (a variable of the shell that is not set is empty)"
            )
        self.check_option(name, "--set")
        return name, typed_value(value)

    def check_option(self, name: str, where: str) -> None:
        if not OPTION.fullmatch(name):
            self.refuse(f"{name!r} in {where} is no option; write its dotted name, such as model.lora.r")
        if own := [each for each in OWN_OPTIONS if name == each or name.startswith(f"{each}.")]:
            remedy = "give seeds" if own[0] == SEED_OPTION else "leave it out"
            self.refuse(f"{where} sets {name}, which the study sets for each run; {remedy}")

    def axes(self) -> tuple[Axis, ...]:
        found = self.needed("axes", "{model.lora.r: [4, 8, 16]}")
        if not isinstance(found, dict) or not found:
            self.refuse(f"axes is {found!r}, but lists of values by option are needed")
        axes = tuple(self.axis(name, values) for name, values in found.items())
        names = [axis.short_name for axis in axes]
        if twice := [name for name in names if names.count(name) > 1]:
            self.refuse(f"two axes end in {twice[0]!r}; vary one of them by named values under another name")
        return axes

    def axis(self, name: str, values: Any) -> Axis:
        if is_range(values):
            self.check_option(name, "axes")
            return Axis(name, {}, is_named=False, range=read_range(name, values, self.refuse))
        if isinstance(values, dict) and values and all(isinstance(options, dict) for options in values.values()):
            for label, options in values.items():
                for option in options:
                    self.check_option(option, f"the value {label!r} of the axis {name}")
            if name in FACTS_OF_TRIALS:
                self.refuse(f"the axis {name} is called like a column of results.csv; give it another name")
            self.check_different(name, values)
            return Axis(name, values, is_named=True)
        self.check_option(name, "axes")
        if not isinstance(values, list) or not values:
            self.refuse(
                f"the axis {name} is {values!r}, but a list of values is needed, or a mapping of options by name"
            )
        labels = [label_of(value) for value in values]
        if twice := [label for label in labels if labels.count(label) > 1]:
            self.refuse(f"the axis {name} has the value {twice[0]} twice; leave one out")
        self.check_different(name, dict(zip(labels, values, strict=True)))
        return Axis(name, dict(zip(labels, values, strict=True)), is_named=False)

    def check_different(self, axis: str, values: Mapping[str, Any]) -> None:
        for one, other in combinations(values, 2):
            if read_alike(values[one], values[other]):
                self.refuse(f"{one!r} and {other!r} are the same for fit, in the axis {axis}; leave one of them out")

    def storage(self) -> str | None:
        if self.content.get("storage") is None:
            return None
        from lora_lightning.studies.storage import check_storage_url  # noqa: PLC0415  # a second, rarely needed

        check_storage_url(self.text("storage"))
        return self.text("storage")

    def search(self) -> Search | None:
        return read_search(self.content.get("search"), self.seeds_in, self.refuse)

    def check_search(self) -> None:
        search, budget = self.search(), read_budget(self.content.get("budget"), self.refuse)
        check_search(search, self.axes(), self.seeds(), budget, self.refuse)
        for key in (
            ("learning_rate", "sequence", "full_fine_tuning", "claims", "truncations", "further_seeds")
            if search is not None
            else ()
        ):
            if self.content.get(key) is not None:
                self.refuse(f"{key} and search cannot be used together; leave out one of both")

    def learning_rate(self) -> LearningRates | None:
        found = self.content.get("learning_rate")
        if found is None:
            return None
        if not isinstance(found, dict) or not {"values", "seeds"} <= found.keys() <= RATE_KEYS:
            self.refuse(
                f"learning_rate is {found!r}, but `values` and `seeds` are needed, and maybe `shared: true`, or "
                f"`extend: 3`; for a single rate, set {RATE_OPTION} in options"
            )
        rates = found["values"]
        if not isinstance(rates, list) or not rates or not all(_is_positive(rate) for rate in rates):
            self.refuse(f"learning_rate.values is {rates!r}, but a list of numbers above 0 is needed")
        if len(set(map(float, rates))) < len(rates):
            self.refuse(f"learning_rate.values is {rates!r}, but each learning rate may occur once; leave one out")
        if not isinstance(shared := found.get("shared", False), bool):
            self.refuse(f"learning_rate.shared is {shared!r}, but it must be true or false")
        extend = found.get("extend", 0)
        if isinstance(extend, bool) or not isinstance(extend, int) or not 0 <= extend <= MOST_FURTHER:
            self.refuse(f"learning_rate.extend is {extend!r}, but an integer from 0 to {MOST_FURTHER} is needed")
        if extend and (shared or len(rates) < 2):  # noqa: PLR2004  # two have a distance
            self.refuse(
                f"learning_rate.extend is {extend}, but only the rates of each configuration can be extended, and two "
                "values are needed for their distance; leave out extend or shared, or give more values"
            )
        seeds = self.seeds_in(found["seeds"], "learning_rate.seeds")
        further = [seed for each in self.further_seeds().values() for seed in each]
        if both := sorted({*seeds} & {*self.seeds(), *further}):
            self.refuse(
                f"the seed {both[0]} is tested and in learning_rate.seeds, but runs that chose a learning rate favor "
                "it; give other seeds"
            )
        return LearningRates(tuple(map(float, rates)), seeds, shared, extend)

    def seeds(self) -> tuple[int, ...]:
        return self.seeds_in(self.needed("seeds", "[0, 1, 2]"), "seeds")

    def further_seeds(self) -> dict[str, tuple[int, ...]]:
        found = self.content.get("further_seeds")
        if found is None:
            return {}
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            self.refuse(f"further_seeds is {found!r}, but lists of seeds by configuration are needed")
        seeds = {name: self.seeds_in(each, f"further_seeds of {name}") for name, each in found.items()}
        for name, each in seeds.items():
            if both := sorted({*each} & {*self.seeds()}):
                self.refuse(f"the seed {both[0]} is in seeds and in further_seeds of {name}; leave one out")
        return seeds

    def seeds_in(self, found: Any, name: str) -> tuple[int, ...]:
        if not isinstance(found, list) or not found:
            self.refuse(f"{name} is {found!r}, but a list of integers is needed, such as [0, 1, 2]")
        for seed in found:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
                self.refuse(f"the seed {seed!r} must be an integer in [0, {2**32})")
        if len(set(found)) < len(found):
            self.refuse(f"{name} is {found}, but each seed may occur once: equal runs are no further evidence")
        return tuple(found)

    def margin(self) -> float | None:
        margin = self.content.get("margin")
        if margin is None:
            return None
        if not _is_positive(margin):
            self.refuse(
                f"the margin is {margin!r}, but it must be a number above 0, or no finite study proves anything"
            )
        return float(margin)

    def reference(self) -> str | Mapping[str, Any]:
        found = self.needed("reference", "{r: 16}")
        if not isinstance(found, str | dict):
            self.refuse(f"reference is {found!r}, but the name of a configuration or its values are needed")
        return found

    def direction(self) -> str | None:
        found = self.content.get("direction")
        if found is not None and found not in DIRECTIONS:
            self.refuse(f"direction is {found!r}; {suggest_names(str(found), DIRECTIONS)}")
        return found

    def costs(self) -> tuple[str, ...]:
        found = self.content.get("costs", [COSTS[0]])
        if not isinstance(found, list) or not found:
            self.refuse(f"costs is {found!r}, but a list is needed, such as [trainable_parameters]")
        for cost in found:
            if cost not in COSTS:
                self.refuse(f"there is no cost {cost!r}; {suggest_names(str(cost), COSTS)}")
        return tuple(found)

    def sequence(self) -> tuple[str, ...] | None:
        found = self.content.get("sequence")
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            self.refuse(f"sequence is {found!r}, but a list of names of configurations is needed")
        return tuple(found)


def _is_positive(value: Any) -> bool:
    return is_finite_number(value) and value > 0
