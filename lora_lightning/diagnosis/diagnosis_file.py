"""Reads a diagnosis from its YAML. Every key is used or refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lora_lightning.configuration.yaml_files import check_config_file
from lora_lightning.diagnosis.reachable import unreachable_sentence, what_verdicts_lack
from lora_lightning.diagnosis.specification import (
    PRECISION_AXIS,
    QUANTIZATION_OPTION,
    RANK_AXIS,
    Diagnosis,
    Measuring,
    SkipProof,
    configuration_name,
)
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.studies.option_conflicts import parts_of
from lora_lightning.studies.other_base import OPTIONS_BY_DATA
from lora_lightning.studies.study_file import study_from_content
from lora_lightning.studies.study_yaml import read_yaml

OWN_KEYS = ("precisions", "ranks", "compare", "measure", "skip_modules", "require")
DECIDING_KEYS = ("objective", "margin", "direction")
STUDY_KEYS = ("name", "base", "options", OPTIONS_BY_DATA, "derived", "seeds", *DECIDING_KEYS, "storage", "budget")
COMPARE_KEYS = ("rank", "further_seeds", "other_seeds")
SKIP_KEYS = ("more_bytes", "bought_back", "random_lists", "seeds")
FEWEST_SEEDS = 2  # for an interval over seeds
COSTS = ["trainable_parameters", "peak_memory_bytes", "seconds_per_step", "wall_seconds"]
COSTS += [f"inference_ms_adapter_batch_{size}" for size in (1, 32)]
EXAMPLE = "precisions: {float32: {}, NF4: {model.quantization: {bits: 4}}}"


def read_diagnosis_file(
    path: Path,
    base: Sequence[Path] = (),
    settings: Sequence[str] = (),
    *,
    name: str | None = None,
    objective: str | None = None,
) -> Diagnosis:
    """Reads a diagnosis.

    Args:
        path: The YAML.
        base: Configs in place of those in the YAML.
        settings: Options of all runs, such as `"data.data_dir=FOLDER"`, which override those in the YAML.
        name: A name in place of that in the YAML, such as that of the file.
        objective: The metric that decides in place of that in the YAML.

    Returns:
        The diagnosis, whose options are not checked yet.

    Raises:
        ConfigurationError: If the file cannot be read, a key is unknown or missing, or a value is out of range.
    """
    check_config_file(path)
    return _Reader(path, read_yaml(path)).read(base, settings, name=name, objective=objective)


class _Reader:
    """Reads the keys of a diagnosis.

    Args:
        path: The file, for messages.
        content: The file's.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path, self.content = path, content

    def refuse(self, message: str) -> NoReturn:
        msg = f"the diagnosis {self.path}: {message}"
        raise ConfigurationError(msg)

    def read(self, base: Sequence[Path], settings: Sequence[str], **replaced: str | None) -> Diagnosis:
        keys = [*OWN_KEYS, *STUDY_KEYS]
        if unknown := [key for key in self.content if key not in keys]:
            self.refuse(f"the key {unknown[0]!r} is unknown; {suggest_names(str(unknown[0]), keys)}")
        precisions, ranks = self.precisions(), self.ranks()
        full, quantized = precisions
        compare = self.mapping("compare", COMPARE_KEYS)
        rank = compare.get("rank", ranks[-1])
        if not _is_count(rank) or rank not in ranks:
            self.refuse(f"compare.rank is {rank!r}, but it must be one of the ranks {', '.join(map(str, ranks))}")
        further, other = (self.seeds(compare.get(key), f"compare.{key}") for key in COMPARE_KEYS[1:])
        if both := sorted({*further} & {*other}):
            self.refuse(f"the seed {both[0]} is in compare.further_seeds and in compare.other_seeds; leave one out")
        further_seeds = {full: further, quantized: (*further, *other)}
        study = {
            **{key: value for key, value in self.content.items() if key in STUDY_KEYS},
            "axes": {PRECISION_AXIS: precisions, RANK_AXIS: list(ranks)},
            "reference": {PRECISION_AXIS: full, "r": ranks[-1]},
            "costs": COSTS,
            "further_seeds": {
                configuration_name(precision, rank): list(seeds) for precision, seeds in further_seeds.items() if seeds
            },
        }
        read = study_from_content(self.path, study, base, settings, **replaced)
        seeds = (*read.seeds, *further)
        found = Diagnosis(
            study=read,
            full=full,
            quantized=quantized,
            ranks=ranks,
            rank=rank,
            seeds=seeds,
            other_seeds=other,
            measuring=self.measuring(),
            proof=self.proof(seeds),
            require=self.require(),
        )
        if sentence := unreachable_sentence(found.require, what_verdicts_lack(found)):
            self.refuse(sentence)
        return found

    def precisions(self) -> dict[str, Mapping[str, Any]]:
        found = self.content.get("precisions")
        if not isinstance(found, dict) or not all(isinstance(options, dict) for options in found.values()):
            self.refuse(f"precisions is {found!r}, but options by name are needed, such as `{EXAMPLE}`")
        if len(found) != 2:  # noqa: PLR2004  # what is compared
            names = ", ".join(map(str, found)) or "none"
            self.refuse(
                f"precisions are {names}, but exactly two are compared, first the one that is not quantized; write "
                f"`{EXAMPLE}`"
            )
        is_quantized = [
            any(parts_of(option)[:2] == parts_of(QUANTIZATION_OPTION) and value for option, value in options.items())
            for options in found.values()
        ]
        if is_quantized != [False, True]:
            self.refuse(
                f"of the precisions {' and '.join(map(str, found))}, the first one must leave {QUANTIZATION_OPTION} "
                f"out and the second one must set it; write `{EXAMPLE}`"
            )
        return {str(name): options for name, options in found.items()}

    def ranks(self) -> tuple[int, ...]:
        found = self.content.get("ranks")
        if not isinstance(found, list) or not found or not all(_is_count(rank) for rank in found):
            self.refuse(f"ranks is {found!r}, but a list of integers above 0 is needed, such as [2, 4, 8, 16]")
        if len(set(found)) < len(found):
            self.refuse(f"ranks is {found}, but each rank may occur once; leave one out")
        return tuple(sorted(found))

    def seeds(self, found: Any, name: str) -> tuple[int, ...]:
        if found is None:
            return ()
        if not isinstance(found, list) or not all(_is_count(seed, least=0) for seed in found):
            self.refuse(f"{name} is {found!r}, but a list of integers is needed, such as [3, 4]")
        if len({*found}) < len(found):
            self.refuse(f"{name} is {found}, but each seed may occur once: equal runs are no further evidence")
        return tuple(found)

    def mapping(self, key: str, keys: Sequence[str]) -> Mapping[str, Any]:
        found = self.content.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self.refuse(f"{key} is {found!r}, but values by name are needed; the names are {', '.join(keys)}")
        if unknown := [name for name in found if name not in keys]:
            self.refuse(f"{key} has the unknown key {unknown[0]!r}; {suggest_names(str(unknown[0]), keys)}")
        return found

    def measuring(self) -> Measuring:
        found = self.mapping("measure", [*Measuring.__dataclass_fields__])
        for name, value in found.items():
            # A list is chosen among the modules that are quantized singly.
            is_chosen_from = name == "singles" and self.content.get("skip_modules") is not None
            least = 2 if name == "rows" else int(is_chosen_from)
            if not _is_count(value, least=least):
                why = " for the list of skip_modules, which is chosen among these modules" if is_chosen_from else ""
                self.refuse(f"measure.{name} is {value!r}, but an integer of at least {least} is needed{why}")
        return Measuring(**found)

    def proof(self, seeds: Sequence[int]) -> SkipProof | None:
        if self.content.get("skip_modules") is None:
            return None
        found = dict(self.mapping("skip_modules", SKIP_KEYS))
        for name in ("more_bytes", "bought_back"):
            value = found.get(name, 0.5)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                self.refuse(f"skip_modules.{name} is {value!r}, but a share above 0 and up to 1 is needed")
        if not _is_count(count := found.get("random_lists", 1)):
            self.refuse(f"skip_modules.random_lists is {count!r}, but an integer above 0 is needed")
        chosen = self.seeds(found.get("seeds"), "skip_modules.seeds") or tuple(seeds)
        if strange := [seed for seed in chosen if seed not in seeds]:
            self.refuse(
                f"skip_modules.seeds has {strange[0]}, with which the two precisions are not compared; choose from "
                f"{', '.join(map(str, seeds))}"
            )
        if len(chosen) < FEWEST_SEEDS:
            default = "" if found.get("seeds") else " (all that are compared)"
            self.refuse(
                f"skip_modules.seeds is {[*chosen]}{default}, but a list is proven over at least "
                f"{FEWEST_SEEDS} different seeds; add seeds of both precisions with "
                "compare.further_seeds, or leave skip_modules out"
            )
        return SkipProof(**{**found, "seeds": chosen})

    def require(self) -> tuple[str, ...]:
        found = self.content.get("require")
        if found is None:
            return ()
        if not isinstance(found, list):
            self.refuse(f"require is {found!r}, but a list of verdicts is needed, such as [{VerdictName.NOT_WORSE}]")
        for name in found:
            if name not in list(VerdictName):
                self.refuse(f"require names the verdict {name!r}; {suggest_names(str(name), map(str, VerdictName))}")
        return tuple(found)


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**32
