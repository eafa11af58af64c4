"""The rules about other loaders: each catches what it is about, and plain adapters pass."""

from typing import Any

import pytest

from lora_lightning.artefacts.loader_rules import TARGETS, AdapterFacts, check_loaders

FACTORS = ("m.q.lora_A.weight", "m.q.lora_B.weight")
PLAIN: dict[str, Any] = {"r": 8, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}


def outcomes(tensors: tuple[str, ...] = FACTORS, **config: Any) -> tuple[str, ...]:
    return tuple(found.outcome for found in check_loaders(AdapterFacts({**PLAIN, **config}, tensors)))


@pytest.mark.parametrize(
    ("config", "tensors", "expected"),
    [
        ({}, (), ("right", "right", "right")),
        ({"rank_pattern": {"q": 4}}, (), ("right", "wrong", "wrong")),
        ({"alpha_pattern": {"q": 4}}, (), ("right", "wrong", "wrong")),
        ({"use_rslora": True}, (), ("right", "right", "wrong")),
        ({"use_dora": True}, ("m.q.lora_magnitude_vector",), ("right", "refused", "refused")),
        ({"modules_to_save": ["score"]}, ("m.score.weight",), ("right", "refused", "refused")),
        ({"target_parameters": ["experts.down_proj"]}, (), ("right", "wrong", "wrong")),
        ({"bias": "lora_only"}, ("m.q.bias",), ("right", "refused", "refused")),
        ({}, ("m.q.lora_B.bias",), ("right", "right", "refused")),
        ({}, ("m.emb.lora_embedding_A", "m.emb.lora_embedding_B"), ("right", "refused", "right")),
        ({"trainable_token_indices": [3]}, ("m.emb.trainable_tokens_delta",), ("right", "refused", "refused")),
        ({"modules_to_save": ["norm"]}, ("m.norm.weight",), ("right", "refused", "wrong")),
        ({"modules_to_save": ["norm", "score"]}, ("m.norm.weight", "score.weight"), ("right", "refused", "refused")),
        ({"r": 1024}, (), ("right", "refused", "right")),
    ],
)
def test_each_rule(config: dict[str, Any], tensors: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert outcomes((*FACTORS, *tensors), **config) == expected


def test_what_is_dropped_silently_weighs_more_than_a_refusal_and_all_reasons_are_named() -> None:
    facts = AdapterFacts({**PLAIN, "use_dora": True, "rank_pattern": {"q": 4}}, FACTORS)
    found = dict(zip(TARGETS, check_loaders(facts), strict=True))["vllm"]
    assert found.outcome == "wrong"
    assert found.reasons == ("it drops rank_pattern and alpha_pattern", "it has no DoRA")
    assert found.read_on.startswith("20")
    assert "peft_helper.py" in found.source


def test_a_rank_above_vllms_default_names_the_option() -> None:
    (found,) = (each for each in check_loaders(AdapterFacts({**PLAIN, "r": 40}, FACTORS)) if each.target == "vllm")
    assert found.reasons == ("start it with --max-lora-rank 64",)


def reasons_of_vllm(tensors: tuple[str, ...] = (), **config: Any) -> tuple[str, ...]:
    (found,) = (
        each for each in check_loaders(AdapterFacts({**PLAIN, **config}, (*FACTORS, *tensors))) if each.target == "vllm"
    )
    return found.reasons


def test_heads_that_recent_releases_of_vllm_take_are_told_from_other_modules() -> None:
    head, other = (reasons_of_vllm(modules_to_save=[name]) for name in ("score", "lm_head"))
    assert [reason.partition(" ")[0] for reason in head] == ["releases"]
    assert other == (*head, "later ones take a head called score or classifier alone")
    assert reasons_of_vllm(("m.emb.lora_embedding_A",))[0].endswith("such as Llama")


def test_the_ranks_are_those_of_vllms_configuration() -> None:
    allowed = [1, 8, 16, 32, 64, 128, 256, 320, 512]  # MaxLoRARanks in vllm/config/lora.py
    wanted = {r: reasons_of_vllm(r=r) for r in (1, 16, 17, 64, 300, 512)}
    assert wanted[1] == wanted[16] == ()
    for r in (17, 64, 300, 512):
        assert wanted[r] == (f"start it with --max-lora-rank {min(rank for rank in allowed if rank >= r)}",)
