"""`study compare`: two configurations of two studies, paired by seed and test example, or refused in a sentence."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from scipy import stats

from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.comparison import _check_same_metric
from lora_lightning.studies.open_study import open_study
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.study_run import judge_study
from tests.cli.test_study_run import run
from tests.studies.small_study import BASE, save_study

OTHER_DATA = {**BASE["data"]["init_args"], "eval_rows": 100}


def compare(*words: str) -> int:
    return main(["study", "compare", *words])


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four studies: ranks, the same on other seeds and a larger learning rate, on other data, with another margin."""
    place = tmp_path_factory.mktemp("studies")
    small: dict[str, Any] = {"axes": {"model.lora.r": [2, 4]}, "seeds": [0, 1, 2]}
    faster = {"options": {"model.optimization.learning_rate": 0.05}, "seeds": [1, 2, 3]}
    data = {"base": BASE | {"data": BASE["data"] | {"init_args": OTHER_DATA}}, "seeds": [0]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
        for name, changes in {
            "ranks": {},
            "faster": faster,
            "data": data,
            "margin": {"margin": 0.25, "seeds": [0]},
        }.items():
            assert run(save_study(place, **small | changes | {"name": name}), "--save_dir=.") == 0
    return place


def test_two_studies_are_paired_by_seed_and_example(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(studies / "ranks"), str(studies / "faster"), "--configurations", "r = 4", "r = 2"]
    assert compare(*words, "--json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["reference"] == "ranks: r = 4"
    (comparison,) = found["analysis"]["comparisons"]
    assert comparison["name"] == "faster: r = 2"
    assert (comparison["difference"]["seeds"], comparison["difference"]["examples"]) == (2, 256)
    assert "1 configuration has other seeds than the reference 'ranks: r = 4'" in printed.err
    one, two = (judge_study(open_study(studies / name)).results for name in ("ranks", "faster"))
    values = [
        [each.values[seed] for seed in (1, 2)] for each in (two.configuration("r = 2"), one.configuration("r = 4"))
    ]
    expected = stats.ttest_rel(values[1], values[0])  # a lower loss is better
    assert comparison["difference"]["interval"]["value"] == pytest.approx(sum(values[1]) / 2 - sum(values[0]) / 2)
    low = expected.confidence_interval(0.95).low
    assert comparison["difference"]["interval"]["low"] <= low + 1e-9  # the wider of it and the two-way interval
    assert compare(*words) == 0
    assert "faster: r = 2" in capsys.readouterr().out
    assert compare(*words, "--margin=20") == 0
    assert "The margin is 20: a configuration that is worse by almost as much" in "".join(capsys.readouterr())


def test_without_names_the_references_are_compared(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(str(studies / "ranks"), str(studies / "faster")) == 0
    printed = capsys.readouterr().out
    assert "ranks: r = 4" in printed
    assert "faster: r = 4" in printed


def test_two_configurations_of_one_study(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(studies / "ranks")
    assert compare(folder, folder, "--configurations", "r = 4", "r = 2", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["analysis"]["comparisons"]
    expected = judge_study(open_study(studies / "ranks")).analysis.comparisons[0]
    assert found["difference"]["interval"]["value"] == pytest.approx(expected.difference.interval.value)
    assert found["difference"]["interval"]["low"] == pytest.approx(expected.difference.interval.low)


def test_studies_of_the_same_name_are_told_apart_by_their_folders(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(studies)
    shutil.copytree("ranks", "copy/ranks")
    assert compare("ranks", "copy/ranks", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "ranks: r = 4"
    (comparison,) = found["analysis"]["comparisons"]
    assert (comparison["name"], comparison["verdict"]) == ("copy/ranks: r = 4", "not enough evidence")
    assert "identical on this test set" in comparison["sentence"]  # of too few examples for a proof


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ranks", "ranks"], "both sides are 'ranks: r = 4'; name two configurations"),
        (["ranks", "data"], "were tested on other rows in the split 'test'"),
        (["ranks", "margin"], "margins of the studies differ (0.5 and 0.25); choose one with --margin"),
        (["ranks", "faster", "--margin=0"], "the margin is 0, but it must be above 0"),
        (["ranks", "faster", "--configurations", "r = 4", "r = 8"], "faster has no configuration 'r = 8'"),
        (["ranks", "nowhere"], "nowhere is not the folder of a study"),
        (["ranks"], "required: B"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(
    words: list[str], message: str, studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(studies)
    assert compare(*words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_opposite_directions_are_refused() -> None:
    """Of a metric whose name does not say its direction, each study says its own."""
    one, other = (
        Mock(tag="test/score", higher_is_better=higher, folder=StudyFolder(Path(name)))
        for name, higher in (("one", False), ("other", True))
    )
    _check_same_metric(one, one)
    with pytest.raises(
        ConfigurationError, match="the study other a higher test/score is better, and in one a lower one"
    ):
        _check_same_metric(one, other)


def test_notes_of_both_studies_and_on_both_together(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A seed that was added after results, and two devices of which each study has one."""
    monkeypatch.chdir(studies)
    shutil.copytree("faster", "other_gpu")
    content = json.loads(Path("other_gpu/study.json").read_text())
    added = {"added_after_results": {"seeds": [3], "configurations": []}}
    costs = {"costs": ["seconds_per_step", "trainable_parameters"]}
    Path("other_gpu/study.json").write_text(json.dumps(content | added | costs))
    for file in Path("other_gpu").glob("*/run.json"):
        written = json.loads(file.read_text())
        versions = written["versions"] | {"torch": "1.0"}
        file.write_text(json.dumps(written | {"device": "cuda", "device_name": "NVIDIA H200", "versions": versions}))
    assert compare("other_gpu", "ranks", "--json") == 0
    printed = capsys.readouterr()
    for note in (
        "Added after tested runs had finished: seed 3",
        "The runs used different versions of torch (1.0, ",
        "Runs were trained on different devices (NVIDIA H200, cpu)",
        "Costs that were measured on different devices (NVIDIA H200, cpu) are not compared: ",
    ):
        assert note in printed.err
    found = json.loads(printed.out)
    assert not any("seconds_per_step" in each["measurements"] for each in found["configurations"])
    assert found["analysis"]["pareto"]["seconds_per_step"] == []
    assert compare("other_gpu", "other_gpu", "--configurations", "r = 4", "r = 2") == 0
    assert "different devices" not in capsys.readouterr().err


def test_other_metrics_are_refused(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(studies)
    content = json.loads((studies / "margin/study.json").read_text())
    (studies / "margin/study.json").write_text(json.dumps(content | {"tag": "test/relative_error"}))
    assert compare("ranks", "margin") == 2
    assert "different metrics, test/loss and test/relative_error" in capsys.readouterr().err
    (studies / "margin/study.json").write_text(json.dumps(content))
