"""Patterns of ranks: PEFT applies exactly the value that each layer was given, by names that are short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.rank_patterns import layer_scaling, most_common, scaling_divisor, shortest_patterns
from lora_lightning.lora.target_patterns import check_patterns

KINDS = ("attention.query", "attention.output.dense", "output.dense", "mlp.0", "mlp.10")
NAMES = [f"encoder.layer.{layer}.{kind}" for layer in (0, 1, 10, 11) for kind in KINDS]


def applied(pattern: dict[str, int], name: str, default: int) -> int:
    """The value that PEFT gives a layer."""
    return pattern.get(get_pattern_key(list(pattern), name), default)


def test_one_kind_is_one_short_key() -> None:
    ranks = {name: 4 if name.endswith("query") else 8 for name in NAMES}
    assert shortest_patterns(ranks, 8) == {"query": 4}
    ranks["encoder.layer.1.attention.query"] = 2
    pattern = shortest_patterns(ranks, 8)
    assert pattern == {"0.attention.query": 4, "1.attention.query": 2, "10.attention.query": 4, "11.attention.query": 4}


def test_all_defaults_need_no_pattern() -> None:
    assert shortest_patterns(dict.fromkeys(NAMES, 8), 8) == {}


@given(st.lists(st.integers(1, 3), min_size=len(NAMES), max_size=len(NAMES)))
def test_peft_gives_every_layer_its_value(values: list[int]) -> None:
    ranks = dict(zip(NAMES, values, strict=True))
    default = most_common(ranks)
    pattern = shortest_patterns(ranks, default)
    assert {name: applied(pattern, name, default) for name in NAMES} == ranks
    check_patterns(NAMES, {"rank_pattern": pattern, "alpha_pattern": None})  # as before training


@pytest.mark.parametrize(
    "names",
    [
        ("dense", "a.dense", "b.a.dense"),  # each is the end of the next
        ("a.b", "axb", "a.axb"),  # a dot of a key is any letter
        ("block.1.fc", "block_1.fc", "xblock.1.fc"),
        ("m.w+", "m.w", "m.ww", "m.w(1)"),  # letters that mean something in a regular expression
    ],
)
def test_names_that_contain_each_other_are_told_apart(names: tuple[str, ...]) -> None:
    ranks = {name: place for place, name in enumerate(names, start=1)}
    for default in (1, len(names), 99):
        pattern = shortest_patterns(ranks, default)
        assert {name: applied(pattern, name, default) for name in names} == ranks


def test_scaling_follows_patterns_and_rslora() -> None:
    settings = LoraSettings(r=4, lora_alpha=6, rank_pattern={"query": 2}, alpha_pattern={"dense": 10})
    assert layer_scaling("layer.0.query", settings) == 3.0
    assert layer_scaling("layer.0.dense", settings) == 2.5
    settings.use_rslora = True
    assert layer_scaling("layer.0.dense", settings) == 5.0
    assert scaling_divisor(9, settings) == 3.0
