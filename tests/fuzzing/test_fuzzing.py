"""A slice of `benchmarks/fuzz.py`: changed input is refused in a sentence, or runs."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from lora_lightning.diagnosis.diagnosis_file import read_diagnosis_file
from lora_lightning.errors import LoraLightningError
from lora_lightning.studies.plan import plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import study_as_json
from tests.conftest import TinyBackbone
from tests.fuzzing.configs import changed_config, config_cases
from tests.fuzzing.data_files import FORMATS, data_cases
from tests.fuzzing.meanings import chat_cases, damage_cases, label_cases, validation_cases, vocabulary_cases
from tests.fuzzing.model_files import backbone_cases, checkpoint_cases, prediction_cases
from tests.fuzzing.outcome import FAILED, LATE, RAN, REFUSED, Case, judged, outcome_of
from tests.test_configs import CONFIGS, DIAGNOSES, OF_FIT, STUDIES, by_path


def check(case: Case) -> None:
    outcome = outcome_of(case)
    assert outcome.kind != FAILED, f"{case.source}, {case.mutation}: {' '.join(case.words)}\n{outcome.message}"


# A third of the configs, half of the formats: `benchmarks/fuzz.py` takes all of them.
@by_path(OF_FIT[::3])
def test_changed_configs(path: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    for case in config_cases(path, tmp_path, tiny_backbone, count=1):
        check(case)


@by_path(STUDIES.rglob("*.yaml"))
def test_changed_studies(path: Path, tmp_path: Path) -> None:
    """Reading and planning alone: `study run` then checks each configuration as `fit` does."""
    file = tmp_path / "study.yaml"
    for number in range(60):
        content = yaml.safe_load(path.read_text()) | {"base": str(CONFIGS / "quickstart.yaml")}
        mutation, changed = changed_config(content, np.random.default_rng([zlib.crc32(path.name.encode()), number]))
        file.write_bytes(changed)
        try:
            study_as_json(plan_study(read_study_file(file)).study)
        except LoraLightningError:
            continue
        except Exception as error:
            error.add_note(mutation)
            raise


@by_path(DIAGNOSES.glob("*.yaml"))
def test_changed_diagnoses(path: Path, tmp_path: Path) -> None:
    """Reading and planning alone, as of studies."""
    file = tmp_path / "diagnosis.yaml"
    for number in range(40):
        content = yaml.safe_load(path.read_text()) | {"base": str(CONFIGS / "quickstart.yaml")}
        mutation, changed = changed_config(content, np.random.default_rng([zlib.crc32(path.name.encode()), number]))
        file.write_bytes(changed)
        try:
            plan_study(read_diagnosis_file(file).study)
        except LoraLightningError:
            continue
        except Exception as error:
            error.add_note(mutation)
            raise


@pytest.mark.parametrize("name", list(FORMATS)[::2])
def test_changed_data(name: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    for case in data_cases(name, tmp_path, tiny_backbone, count=1):
        check(case)


@pytest.mark.parametrize("cases", [backbone_cases, checkpoint_cases, prediction_cases])
def test_changed_models(cases: type, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    for case in cases(tmp_path, tiny_backbone, count=3):
        check(case)


@pytest.mark.parametrize("cases", [chat_cases, label_cases, vocabulary_cases, damage_cases, validation_cases])
def test_odd_meanings(cases: type, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    for case in cases(tmp_path, tiny_backbone, count=3):
        check(case)


def test_a_run_with_a_wrong_result_fails(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    (case,) = label_cases(tmp_path, tiny_backbone, count=1)
    outcome = outcome_of(replace(case, check=lambda _: "it is wrong"))
    assert (outcome.kind, "exit status 0, but it is wrong" in outcome.message) == (FAILED, True)


def test_the_same_seed_gives_the_same_cases(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    def files(seed: int) -> list[bytes]:
        cases = config_cases(CONFIGS / "quickstart.yaml", tmp_path, tiny_backbone, count=20, seed=seed)
        return [Path(case.words[-1].partition("=")[2]).read_bytes() for case in cases]

    first = files(0)
    assert files(0) == first
    assert len(set(first)) > 15
    assert files(1) != first


@pytest.mark.parametrize(
    ("status", "said", "late", "kind"),
    [
        (0, "", True, RAN),
        (2, "lora-lightning: warning: x\nlora-lightning: error: r is 0.\n", False, REFUSED),
        (2, "lora-lightning: error: r is 0.\n", True, LATE),
        (1, "lora-lightning: error: r is 0.\n", False, FAILED),
        (2, "usage: lora-lightning\n", False, FAILED),
        (2, "lora-lightning: error: one.\nand two.\n", False, FAILED),
        (2, "lora-lightning: error: Subtypes: [<class 'int'>]\n", False, FAILED),
        (2, f"lora-lightning: error: {'a' * 2000}\n", False, FAILED),
        (0, "Traceback (most recent call last):\n", False, FAILED),
    ],
)
def test_the_judge(status: int, said: str, late: bool, kind: str) -> None:
    assert judged(status, said, late).kind == kind
