"""The folder of a diagnosis: that of its study, with what was measured on its runs beside them."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lora_lightning.diagnosis.specification import Diagnosis, Measuring, SkipProof
from lora_lightning.diagnosis.stored import as_json, from_json
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.runs.files import save_text, write_error
from lora_lightning.runs.save_dirs import DIAGNOSES
from lora_lightning.studies.study_folder import DIAGNOSIS as SETTINGS
from lora_lightning.studies.study_folder import STUDY, StudyFolder, load_plan

MEASUREMENTS, PROOF = "measurements", "skip_modules"
FINDINGS, SKIP_LIST = "diagnosis.json", "skip_modules.yaml"
SCHEMA_VERSION = 7
# What was decided before results were seen, by its name in the YAML.
FIXED = {"full": "the first of the precisions", "quantized": "the second of the precisions", "rank": "compare.rank"}
FIXED_WITH_LISTS = {  # which modules are chosen, and what the list has to reach
    "measuring": ("measure", ("rows", "singles")),
    "proof": ("skip_modules", ("more_bytes", "bought_back", "random_lists")),
}
REMEDY = "restore the YAML, or give the diagnosis another name"
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Timed:
    """That something was measured.

    Attributes:
        identity: Of what it was measured on.
        seconds: That it took.
    """

    identity: str
    seconds: float


@dataclass(frozen=True)
class DiagnosisFolder:
    """The folder of a diagnosis.

    Attributes:
        path: `<save_dir>/<name>`, the folder of its study.
    """

    path: Path

    @property
    def study(self) -> StudyFolder:
        """The study of precision x rank x seed, whose files lie in the same folder."""
        return StudyFolder(self.path)

    def proof(self, lists: Sequence[Sequence[str]]) -> StudyFolder:
        """The study of lists of modules to skip; other lists have another folder.

        Args:
            lists: The list and the random ones.
        """
        return StudyFolder(self.path / PROOF / _identity({"lists": [list(each) for each in lists]})[:8])

    @property
    def proofs(self) -> list[Path]:
        """The folders of all studies of lists, of former choices too."""
        return sorted(path.parent for path in (self.path / PROOF).glob(f"*/{STUDY}"))

    def save(self, diagnosis: Diagnosis) -> None:
        """Writes what the study's own file does not have. The folder must exist.

        Raises:
            ConfigurationError: If the folder has another diagnosis.
            TrainingError: If the file cannot be written.
        """
        self.check(diagnosis)
        _write(self.path / SETTINGS, _settings(diagnosis))

    def check(self, diagnosis: Diagnosis) -> None:
        """Refuses a diagnosis that contradicts the one in the folder, which may not exist; nothing is written.

        Raises:
            ConfigurationError: Names what has changed.
        """
        if not (self.path / SETTINGS).exists():
            return
        former, now = _read(self.path / SETTINGS), _settings(diagnosis)
        for name, shown in FIXED.items():
            if former.get(name) != now[name]:
                msg = f"the folder {self.path} has a diagnosis in which {shown} is {former.get(name)}, and not "
                msg += f"{now[name]}; {REMEDY}"
                raise ConfigurationError(msg)
        if moved := [seed for seed in former.get("other_seeds", ()) if seed not in now["other_seeds"]]:
            msg = f"the folder {self.path} has a diagnosis whose compare.other_seeds has {moved[0]}, and not only "
            msg += f"{now['other_seeds']}: which seeds the verdicts on adapters take is decided before results are "
            msg += f"seen, and more may be added; {REMEDY}"
            raise ConfigurationError(msg)
        if self.proofs and former.get("proof") is not None:
            self._check_proof(former, now)

    def _check_proof(self, former: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuses to change what a list of modules has to reach, or over which seeds, once runs with lists exist."""
        changed = [
            f"{section}.{name} is {old.get(name)}, and not {new.get(name)}"
            for key, (section, names) in FIXED_WITH_LISTS.items()
            for old, new in [(former.get(key) or {}, now[key] or {})]
            for name in names
            if old.get(name) != new.get(name)
        ]
        if now["proof"] is None:
            changed = ["skip_modules is set, and not left out"]
        elif lost := [seed for seed in former["proof"].get("seeds", ()) if seed not in now["proof"]["seeds"]]:
            changed.append(f"skip_modules.seeds has {lost[0]}")
        if changed:
            msg = f"the folder {self.path} has runs with lists of modules to skip, for which {changed[0]}: what has to "
            msg += f"be proven is decided before results are seen; {REMEDY}"
            raise ConfigurationError(msg)

    def load(self) -> Diagnosis:
        """Reads the diagnosis, with the base configs of the time when it was started.

        Raises:
            ConfigurationError: If the folder has no diagnosis.
        """
        path = self.path / SETTINGS
        if not path.is_file():
            msg = f"{self.path} is not the folder of a diagnosis, because it has no {SETTINGS}; give a folder such as "
            msg += f"{DIAGNOSES}/NAME"
            raise ConfigurationError(msg)
        content = _read(path)
        try:
            return self._from_settings(content)
        except (KeyError, TypeError) as error:
            msg = f"{path} is damaged or of another release ({type(error).__name__}); restore it, or start the "
            msg += "diagnosis under another name"
            raise DataError(msg) from error

    def _from_settings(self, content: Mapping[str, Any]) -> Diagnosis:
        proof = content["proof"]
        return Diagnosis(
            study=load_plan(self.path).study,
            full=content["full"],
            quantized=content["quantized"],
            ranks=tuple(content["ranks"]),
            rank=content["rank"],
            seeds=tuple(content["seeds"]),
            other_seeds=tuple(content["other_seeds"]),
            measuring=from_json(Measuring, content["measuring"]),
            proof=None if proof is None else from_json(SkipProof, proof),
            require=tuple(content["require"]),
        )

    def measure(
        self, name: str, kind: type[Measured], inputs: Mapping[str, Any], compute: Callable[[], Measured]
    ) -> Measured:
        """Measures something unless that was done before on the same inputs.

        Args:
            name: Of its file.
            kind: The dataclass that `compute` returns.
            inputs: What the result depends on, as JSON.
            compute: Measures it.

        Returns:
            The result.

        Raises:
            LoraLightningError: If it cannot be measured, or the file cannot be written.
        """
        identity = _identity(inputs)
        if not self.is_measured(name, inputs):
            start = time.monotonic()
            found = compute()
            seconds = time.monotonic() - start
            path = self._measurement(name)
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise write_error(path, error) from error
            content = {"schema_version": SCHEMA_VERSION, "identity": identity, "seconds": seconds}
            _write(path, {**content, "content": as_json(found)})
        return self.stored(name, kind)  # type: ignore[return-value]  # it was written

    def stored(self, name: str, kind: type[Measured], inputs: Mapping[str, Any] | None = None) -> Measured | None:
        """Reads what was measured; `None` if it was not.

        Args:
            name: Of its file.
            kind: The dataclass that was measured.
            inputs: As in `measure`; a result of other inputs does not count. `None` for any.

        Raises:
            DataError: If the file is damaged.
        """
        path = self._measurement(name)
        if not path.is_file():
            return None
        if inputs is not None and not self.is_measured(name, inputs):
            return None
        try:
            found: Measured = from_json(kind, _read(path)["content"])
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path} is damaged or of another release ({type(error).__name__}); delete it, and run the diagnosis "
            msg += "again"
            raise DataError(msg) from error
        return found

    def is_measured(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether something was measured on these inputs."""
        known = self.timed(name)
        return known is not None and known.identity == _identity(inputs)

    def has_measurement(self, name: str) -> bool:
        """Whether there is a file of a measurement, be it of other inputs or by another release."""
        return self._measurement(name).is_file()

    def timed(self, name: str) -> Timed | None:
        """When and on what something was measured; `None` if it was not, or by a release with another schema."""
        path = self._measurement(name)
        if not path.is_file():
            return None
        content = _read(path)
        if content.get("schema_version") != SCHEMA_VERSION:
            return None
        if not {"identity", "seconds"} <= content.keys():
            msg = f"{path} is damaged; delete it, and run the diagnosis again"
            raise DataError(msg)
        return Timed(content["identity"], content["seconds"])

    @property
    def measured_seconds(self) -> float:
        """What all measurements of this release's schema took."""
        known = (self.timed(path.stem) for path in (self.path / MEASUREMENTS).glob("*.json"))
        return float(sum(each.seconds for each in known if each is not None))

    def _measurement(self, name: str) -> Path:
        return self.path / MEASUREMENTS / f"{name}.json"


def _settings(diagnosis: Diagnosis) -> dict[str, Any]:
    """What the study's own file does not have."""
    return {"schema_version": SCHEMA_VERSION, **as_json(replace(diagnosis, study=None))}  # type: ignore[arg-type]


def _identity(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} is damaged ({str(error).splitlines()[0]}); delete it, and run the diagnosis again"
        raise DataError(msg) from error
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    save_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
