"""Tested adapters are tested once more after truncation, and claims compare that with training at the lower rank."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.truncation import truncate_factors
from lora_lightning.studies.open_study import open_study
from lora_lightning.studies.plan import plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_run import judge_study
from lora_lightning.studies.truncated_trials import METRICS, truncated_metric
from tests.studies.small_study import save_study

CLAIM = {
    "claim": "truncating is as good",
    "source": "someone",
    "quantity": "difference",
    "configurations": ["r = 4 truncated to 2"],
    "against": "r = 2",
    "between": [-0.5, None],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    file = save_study(path, truncations={"r = 4": [1, 2, 3]}, claims=[CLAIM])
    assert main(["study", "run", str(file), f"--save_dir={path}"]) == 0
    return path / "small"


def test_a_truncated_adapter_is_tested_like_any_other(folder: Path) -> None:
    """The reference truncates the exported factors by itself, and runs the planted problem with them."""
    study = open_study(folder)
    trial = next(trial for trial in study.plan.tested if trial.configuration == "r = 4")
    run = folder / trial.id
    full = study.statuses()[trial.id].value
    losses = [truncated_metric(run, r, "test/loss") for r in (1, 2, 3)]
    assert losses[0] > losses[1] * 1.001
    assert full is not None
    assert losses[2] == pytest.approx(full, rel=0.2)
    results = judge_study(study).results
    assert [each.name for each in results.truncated] == [f"r = 4 truncated to {r}" for r in (1, 2, 3)]
    found = results.configuration("r = 4 truncated to 2")
    assert found.values[trial.seed] == pytest.approx(losses[1])
    assert np.mean(found.outcomes[trial.seed]) == pytest.approx(losses[1], rel=1e-5)
    assert found.outcomes.keys() == {0, 1}


def test_the_claim_is_about_the_truncated_adapters(folder: Path) -> None:
    audit = judge_study(open_study(folder))
    finding = audit.analysis.claims[0]
    assert finding.intervals.keys() == {"r = 4 truncated to 2"}
    first, second = (audit.results.configuration(name).values for name in ("r = 4 truncated to 2", "r = 2"))
    assert finding.intervals["r = 4 truncated to 2"].value == pytest.approx(
        np.mean([second[s] - first[s] for s in (0, 1)])
    )
    assert "r = 4 truncated to 2" not in [each.name for each in audit.analysis.comparisons]


def test_training_and_export_are_those_without_truncation(folder: Path, tmp_path: Path) -> None:
    assert main(["study", "run", str(save_study(tmp_path, seeds=[0])), f"--save_dir={tmp_path}"]) == 0
    study = open_study(tmp_path / "small")
    for trial in study.plan.tested:
        files = [each / trial.id / "adapter" / "adapter_model.safetensors" for each in (folder, tmp_path / "small")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert study.statuses()[trial.id].value == open_study(folder).statuses()[trial.id].value


def test_truncation_is_that_of_the_singular_values() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 8), torch.randn(6, 4)
    new_a, new_b = truncate_factors(a, b, 2)
    u, s, vt = np.linalg.svd((b @ a).double().numpy())
    np.testing.assert_allclose((new_b @ new_a).numpy(), u[:, :2] * s[:2] @ vt[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truncations": {"r = 4": [4]}}, "truncations has 4 for 'r = 4', which has rank 4"),
        ({"truncations": {"r = 3": [1]}}, "truncations names 'r = 3', which is no configuration"),
        ({"truncations": {"r = 4": []}}, "ranks by configuration are needed"),
        ({"truncations": {"r = 4": [0]}}, "ranks by configuration are needed"),
        ({"truncations": {"r = 4": [2, 2]}}, "ranks by configuration are needed"),
        ({"truncations": [2]}, "ranks by configuration are needed"),
        ({"claims": [CLAIM]}, "names 'r = 4 truncated to 2', which is no configuration"),
    ],
)
def test_a_wrong_truncation_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_study(read_study_file(save_study(tmp_path, **change)))


def test_adapters_that_are_no_plain_product_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_study(tmp_path, truncations={"r = 4": [2]}, options={"model.lora.init_lora_weights": "pissa"})
    assert main(["study", "run", str(file), f"--save_dir={tmp_path}"]) == 2
    assert "truncations" in capsys.readouterr().err


def test_batch_limits_of_the_test_count_after_truncation_too(tmp_path: Path) -> None:
    options = {"trainer.limit_test_batches": 1, "data.eval_batch_size": 16}
    file = save_study(tmp_path, truncations={"r = 4": [2]}, claims=[CLAIM], options=options)
    assert main(["study", "run", str(file), f"--save_dir={tmp_path}"]) == 0
    results = judge_study(open_study(tmp_path / "small")).results
    sizes = {len(rows) for each in (*results.configurations, *results.truncated) for rows in each.outcomes.values()}
    assert sizes == {16}


def test_a_truncated_metric_that_is_undefined_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small"
    shutil.copytree(folder, copy)
    study = open_study(copy)
    trial = next(trial for trial in study.plan.tested if trial.configuration == "r = 4")
    path = copy / trial.id / METRICS
    path.write_text(
        json.dumps({r: dict.fromkeys(found, math.nan) for r, found in json.loads(path.read_text()).items()})
    )
    audit = judge_study(study)
    assert audit.results.configuration("r = 4 truncated to 2").values.keys() == {0, 1} - {trial.seed}
    assert audit.results.configuration("r = 4 truncated to 2").failed_seeds == [trial.seed]
    assert any("not finite and left out after truncation" in note for note in audit.notes)
