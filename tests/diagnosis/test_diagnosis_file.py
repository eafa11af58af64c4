"""A diagnosis's YAML: what it becomes as a study, and that every mistake is a sentence."""

import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.cli.diagnose_run import EPILOG, print_measuring
from lora_lightning.cli.main import main
from lora_lightning.diagnosis.diagnosis_file import read_diagnosis_file
from lora_lightning.diagnosis.finished_runs import what_task_lacks
from lora_lightning.diagnosis.specification import Diagnosis, Measuring, SkipProof
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.label_space import REGRESSION, SINGLE_LABEL, LabelSpace
from lora_lightning.studies.plan import plan_study
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from tests.diagnosis import planted
from tests.diagnosis.small_diagnosis import save_diagnosis
from tests.studies.small_study import BASE

COMPARE = {"rank": 4, "further_seeds": [1, 2], "other_seeds": [7, 8]}


def read(folder: Path, **changes: Any) -> Diagnosis:
    return read_diagnosis_file(save_diagnosis(folder, BASE, **changes))


def test_it_is_a_study_of_precision_rank_and_seed(tmp_path: Path) -> None:
    found = read(tmp_path, ranks=[8, 2, 4], compare=COMPARE)
    assert found.precisions == ("float32", "NF4")
    assert (found.ranks, found.rank, found.seeds, found.other_seeds) == ((2, 4, 8), 4, (0, 1, 2), (7, 8))
    plan = plan_study(found.study)
    assert plan.reference == "float32, r = 8"
    assert {each.name for each in plan.configurations} == {
        found.configuration(precision, rank) for precision in found.precisions for rank in found.ranks
    }
    seeds: dict[str, list[int]] = {}
    for trial in plan.trials:
        seeds.setdefault(trial.configuration, []).append(trial.seed)
    assert seeds["float32, r = 4"] == [0, 1, 2]
    assert seeds["NF4, r = 4"] == [0, 1, 2, 7, 8]
    assert seeds["NF4, r = 8"] == [0]
    options = plan.configuration("NF4, r = 4").options
    assert options["model.quantization"]["bits"] == 4
    assert options["model.lora.lora_alpha"] == 8


def test_defaults_compare_the_largest_rank_and_prove_no_list(tmp_path: Path) -> None:
    found = read(tmp_path, measure=None, seeds=[3, 5])
    assert (found.rank, found.seeds, found.other_seeds) == (4, (3, 5), ())
    assert (found.measuring, found.proof, found.require) == (Measuring(), None, ())
    proof = read(tmp_path, seeds=[3, 5], skip_modules={"random_lists": 2}).proof
    assert proof == SkipProof(random_lists=2, seeds=(3, 5))
    proof = read(tmp_path, seeds=[0, 1, 2], skip_modules={"more_bytes": 0.3, "seeds": [0, 2]}).proof
    assert proof == SkipProof(more_bytes=0.3, seeds=(0, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisons": {}}, "the key 'precisons' is unknown; did you mean 'precisions'"),
        ({"axes": {}}, "the key 'axes' is unknown"),
        ({"precisions": {"float32": {}}}, "precisions are float32, but exactly two are compared"),
        ({"precisions": None}, "precisions is None, but options by name are needed"),
        ({"precisions": {"a": {}, "b": {}}}, "the second one must set it"),
        (
            {"precisions": {"NF4": {"model.quantization": {"bits": 4}}, "float32": {}}},
            "of the precisions NF4 and float32, the first one must leave model.quantization out",
        ),
        ({"ranks": [0, 4]}, "ranks is [0, 4], but a list of integers above 0"),
        ({"ranks": [4, 4]}, "each rank may occur once"),
        ({"ranks": 8}, "ranks is 8, but"),
        ({"compare": {"rank": 3}}, "compare.rank is 3, but it must be one of the ranks 2, 4"),
        ({"compare": {"rank": 4.0}}, "compare.rank is 4.0, but it must be one of the ranks 2, 4"),
        ({"compare": 0}, "compare is 0, but values by name are needed"),
        ({"measure": False}, "measure is False, but values by name are needed"),
        ({"skip_modules": False}, "skip_modules is False, but values by name are needed"),
        ({"require": ""}, "require is '', but a list of verdicts"),
        ({"compare": {"seed": 3}}, "compare has the unknown key 'seed'"),
        ({"compare": [3]}, "compare is [3], but values by name are needed"),
        ({"compare": {"further_seeds": [0]}}, "the seed 0 is in seeds and in further_seeds of float32, r = 4"),
        ({"compare": {"other_seeds": ["a"]}}, "compare.other_seeds is ['a'], but a list of integers"),
        ({"compare": {"further_seeds": [1], "other_seeds": [1]}}, "the seed 1 is in compare.further_seeds and in"),
        ({"measure": {"rows": 1}}, "measure.rows is 1, but an integer of at least 2"),
        ({"measure": {"row": 1}}, "measure has the unknown key 'row'; did you mean 'rows'"),
        ({"skip_modules": {"more_bytes": 0}}, "skip_modules.more_bytes is 0, but a share above 0"),
        ({"skip_modules": {"random_lists": 0}}, "skip_modules.random_lists is 0, but an integer above 0"),
        ({"skip_modules": {"seeds": [9]}}, "skip_modules.seeds has 9, with which the two precisions are not compared"),
        (
            {"seeds": [0, 1], "skip_modules": {"seeds": [0]}},
            "skip_modules.seeds is [0], but a list is proven over at least 2 different seeds",
        ),
        (
            {"skip_modules": {}},
            "skip_modules.seeds is [0] (all that are compared), but a list is proven over at least 2 different seeds",
        ),
        ({"skip_modules": {"seeds": [0, 0]}}, "skip_modules.seeds is [0, 0], but each seed may occur once"),
        ({"compare": {"other_seeds": [7, 7]}}, "compare.other_seeds is [7, 7], but each seed may occur once"),
        ({"require": ["not_wors"]}, "require names the verdict 'not_wors'; did you mean 'not_worse'"),
        ({"require": "not_worse"}, "require is 'not_worse', but a list of verdicts"),
        (
            {"seeds": [0, 1], "skip_modules": {}, "measure": {"singles": 0}},
            "measure.singles is 0, but an integer of at least 1 is needed for the list of skip_modules",
        ),
        ({"objective": None}, "objective is missing"),
        ({"margin": 0}, "the margin is 0, but it must be a number above 0"),
        ({"seeds": []}, "seeds is [], but a list of integers"),
    ],
)
def test_a_mistake_is_a_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save_diagnosis(tmp_path, BASE, **changes)
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        read_diagnosis_file(path)
    assert str(path) in str(caught.value)


SIX = {"rank": 4, "further_seeds": [1, 2], "other_seeds": [7, 8, 9]}


@pytest.mark.parametrize(
    ("verdict", "changes", "reason"),
    [
        ("not_worse", {}, "seeds with compare.further_seeds has one seed, and a test needs at least 2"),
        ("smaller_than_seed_noise", {"compare": COMPARE}, "needed, and there are 3 and 2"),
        ("precisions_differ", {"seeds": [0, 1]}, "at least 2 seeds of both precisions and 2 of compare.other_seeds"),
        ("precisions_differ", {"compare": SIX}, "p is at least 0.1, and 0.05 is needed; 3 and 4 reach it"),
        ("enough_rank", {"compare": COMPARE}, "seeds has one seed, and a test needs at least 2"),
        ("enough_rank", {"ranks": [4], "seeds": [0, 1]}, "ranks has one rank alone"),
        ("more_rank_buys_back", {"seeds": [0, 1]}, "compare.rank is 4, the largest of ranks"),
        ("skip_list_proven", {"seeds": [0, 1]}, "skip_modules, which asks for the proof, is left out"),
        ("healthy", {"seeds": [0, 1, 2], "measure": {"singles": 3}}, "needed, and there are 3 and 0"),
        (
            "healthy",
            {"seeds": [0, 1, 2], "compare": {"other_seeds": [7, 8, 9]}, "measure": {"singles": 3}},
            "measure.singles is 3, and at least 4 are needed",
        ),
    ],
)
def test_a_required_verdict_that_cannot_be_reached_is_refused(
    verdict: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """Before anything is trained, and not with exit status 3 hours later."""
    read(tmp_path, **changes)
    with pytest.raises(ConfigurationError, match="require names what cannot be reached: ") as caught:
        read(tmp_path, require=[verdict, "merge_keeps_gain"], **changes)
    assert f"{verdict} (" in str(caught.value)
    assert reason in str(caught.value)
    assert "merge_keeps_gain" not in str(caught.value)


def test_all_verdicts_can_be_required_where_enough_is_measured(tmp_path: Path) -> None:
    compare = {"rank": 2, "further_seeds": [2, 3, 4], "other_seeds": [7, 8, 9]}
    enough = {"seeds": [0, 1], "compare": compare, "skip_modules": {}, "measure": {"singles": 4}}
    assert len(read(tmp_path, require=[*map(str, VerdictName)], **enough).require) == len(VerdictName)


def test_what_a_task_lacks_is_found() -> None:
    assert what_task_lacks(QuestionAnsweringTask("x")) == what_task_lacks(CausalLanguageModelingTask("x")) == {}
    for kind, expected in ((REGRESSION, {VerdictName.HEALTHY}), (SINGLE_LABEL, set())):
        space = LabelSpace(["score"] if kind == REGRESSION else ["no", "yes"], problem_type=kind)
        assert what_task_lacks(SequenceClassificationTask("x", label_space=space)).keys() == expected


def test_a_dry_run_says_that_a_required_verdict_is_usually_undecided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for required, is_said in ((("smaller_than_seed_noise",), True), (("not_worse",), False)):
        print_measuring(planted.diagnosis(require=required), tmp_path, 60.0)
        printed = capsys.readouterr().out
        assert ("the required verdict smaller_than_seed_noise is usually undecided: " in printed) is is_said


def test_a_dry_run_counts_the_runs_with_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof = {"skip_modules": {"random_lists": 3}, "seeds": [0, 1]}
    print_measuring(read(tmp_path, **proof), tmp_path, 60.0)
    assert (
        "beyond that up to 8 more runs, about 8 min, of 4 lists of modules to skip with 2 seeds: if NF4 is worse than "
        "float32 at r = 4, told from zero\n" in capsys.readouterr().out
    )
    print_measuring(read(tmp_path, **proof), tmp_path, math.nan)
    assert "up to 8 more runs, of 4 lists" in capsys.readouterr().out
    print_measuring(read(tmp_path), tmp_path, 60.0)
    assert "lists" not in capsys.readouterr().out


def test_a_file_that_is_none_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.yaml"):
        read_diagnosis_file(tmp_path / "missing.yaml")
    assert main(["diagnose", "run", str(tmp_path / "missing.yaml")]) == 2
    assert "there is no diagnosis" in capsys.readouterr().err


def test_the_help_has_a_complete_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["diagnose", "run", "--help"])
    printed = capsys.readouterr().out
    assert EPILOG in printed
    text = re.search(r"<< END\n(.*?)  END", EPILOG, re.DOTALL)
    assert text
    (tmp_path / "diagnosis.yaml").write_text(textwrap.dedent(text[1]))
    found = read_diagnosis_file(tmp_path / "diagnosis.yaml")
    assert (found.ranks, found.seeds, found.other_seeds) == ((2, 8), (0, 1, 2), (10, 11, 12))
    assert len(plan_study(found.study).trials) == 2 * 2 * 2 + 2 + 3
