"""Claims are read and written back, and what they lack is said before anything runs."""

import math
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.statistics.claims import Claim, Quantity
from lora_lightning.studies.claim_settings import claims_as_json, claims_from_json
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder, load_plan
from tests.studies.small_study import save_study

TIE = {"claim": "they tie", "source": "someone", "quantity": "difference", "between": [-0.5, 0.5]}
RATES = {"values": [0.001, 0.01, 0.1], "seeds": [7, 8]}


def plan(folder: Path, *claims: Any, **changes: Any) -> StudyPlan:
    axes = {"model.lora.r": [2, 4]}
    return plan_study(read_study_file(save_study(folder, axes=axes, claims=list(claims), **changes)))


def test_a_claim_is_read_and_kept_in_the_folder(tmp_path: Path) -> None:
    claims = [
        TIE | {"between": [None, 0.5], "configurations": ["r = 2"], "against": "r = 4"},
        TIE | {"quantity": "exponent", "measurement": "stable_rank", "between": [0.2, None]},
    ]
    found = plan(tmp_path, *claims)
    expected = (
        Claim("they tie", "someone", Quantity.DIFFERENCE, -math.inf, 0.5, ("r = 2",), "r = 4"),
        Claim("they tie", "someone", Quantity.EXPONENT, 0.2, math.inf, measurement="stable_rank"),
    )
    assert found.study.claims == expected
    assert claims_from_json(claims_as_json(expected)) == expected
    folder = StudyFolder(tmp_path / "studies" / "small")
    folder.path.mkdir(parents=True)
    folder.save(found, "test/loss", "val/loss")
    assert load_plan(folder.path).study.claims == expected
    with pytest.raises(ConfigurationError, match="has a study with other settings"):
        folder.check(plan(tmp_path, claims[0]))
    assert plan(tmp_path).study.claims == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clam": 1}, "the unknown key 'clam'; did you mean 'claim'"),
        ({"claim": ""}, "claim ''"),
        ({"source": None}, "source None"),
        ({"quantity": "diference"}, "did you mean 'difference'"),
        ({"quantity": 3}, "quantity 3"),
        ({"between": [0.5, -0.5]}, "the smaller one first"),
        ({"between": [None, None]}, "the smaller one first"),
        ({"between": 0.5}, "two numbers are needed"),
        ({"between": [True, 2]}, "two numbers are needed"),
        ({"between": [math.nan, 2]}, "two numbers are needed"),
        ({"configurations": "r = 2"}, "a list of their names"),
        ({"configurations": ["r = 3"]}, "names 'r = 3', which is no configuration"),
        ({"against": "r = 3"}, "names 'r = 3', which is no configuration"),
        ({"against": ["r = 2"]}, "a text is needed"),
        ({"configurations": ["r = 4"]}, "compares 'r = 4' with itself"),
        ({"measurement": "stable_rank"}, "leave it out"),
        ({"quantity": "exponent"}, "add one, such as stable_rank"),
        ({"quantity": "exponent", "measurement": "stable_rank", "against": "r = 4"}, "leave out against"),
        ({"quantity": "exponent", "measurement": "stable_rank", "configurations": ["r = 4"]}, "have 1 of them"),
        ({"quantity": "exponent", "measurement": "stabel_rank"}, "did you mean 'stable_rank'"),
        ({"quantity": "exponent", "measurement": "test/loss"}, "which is the objective"),
        ({"quantity": "difference_at_equal_loss", "measurement": "loss"}, "a curve is needed"),
        ({"quantity": "difference_at_equal_loss", "measurement": []}, "a text is needed"),
        ({"against": 0}, "a text is needed"),
        ({"configurations": 0}, "a list of their names"),
        ({"between": [0, 10**400]}, "two numbers are needed"),
        ({"quantity": "learning_rate_ratio"}, "the study tries none"),
        ({"quantity": "learning_rate_exponent"}, "the study tries none"),
    ],
)
def test_a_wrong_claim_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(tmp_path, TIE | change)


@pytest.mark.parametrize("claims", ["tie", {"claim": "tie"}, ["tie"]])
def test_claims_that_are_no_list_are_refused(claims: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a list is needed"):
        plan_study(read_study_file(save_study(tmp_path, claims=claims)))


def test_claims_about_rates_need_a_study_that_tries_them(tmp_path: Path) -> None:
    exponent = TIE | {"quantity": "learning_rate_exponent"}
    assert plan(tmp_path, exponent, learning_rate=RATES).study.claims[0].quantity is Quantity.LEARNING_RATE_EXPONENT


def test_claims_about_truncated_adapters_are_about_differences_alone(tmp_path: Path) -> None:
    cut = {"r = 4": [2]}
    named = TIE | {"configurations": ["r = 4 truncated to 2"], "against": "r = 2"}
    assert plan(tmp_path, named, truncations=cut).study.claims[0].configurations == ("r = 4 truncated to 2",)
    for quantity in ("learning_rate_ratio", "learning_rate_exponent"):
        with pytest.raises(ConfigurationError, match="of which only differences"):
            plan(tmp_path, named | {"quantity": quantity, "against": ""}, truncations=cut, learning_rate=RATES)


def test_a_claim_about_ranks_names_configurations_with_ranks(tmp_path: Path) -> None:
    axes = {"method": {"full": {"model.lora": None}, "a": {"model.lora.r": 2}, "b": {"model.lora.r": 4}}}
    claim = TIE | {"quantity": "exponent", "measurement": "stable_rank"}
    file = {"axes": axes, "derived": None, "reference": "full"}
    assert plan_study(read_study_file(save_study(tmp_path, claims=[claim], **file))).study.claims
    named = claim | {"configurations": ["full", "a", "b"]}
    with pytest.raises(ConfigurationError, match=r"'full' sets no model\.lora\.r"):
        plan_study(read_study_file(save_study(tmp_path, claims=[named], **file)))
