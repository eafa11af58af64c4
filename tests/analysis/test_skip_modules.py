"""Skip lists: the most effect per byte within a budget, and random lists of equal bytes."""

from lora_lightning.analysis.skip_modules import choose_skip_modules, random_skip_modules

BYTES = {"a": 100, "b": 10, "c": 40, "d": 30, "e": 25}


def test_the_most_effect_per_byte_comes_first_and_the_budget_holds() -> None:
    effects = {"a": 5.0, "b": 2.0, "c": 3.0, "d": -1.0, "e": float("nan")}
    assert choose_skip_modules(effects, BYTES, 55) == ("b", "c")
    assert choose_skip_modules(effects, BYTES, 120) == ("b", "c")  # a does not fit any more
    assert choose_skip_modules(effects, BYTES, 150) == ("b", "c", "a")
    assert choose_skip_modules(effects, BYTES, 5) == ()
    assert choose_skip_modules({"a": 0.0}, BYTES, 1000) == ()


def test_random_lists_have_nearly_the_bytes_of_the_choice_and_no_more() -> None:
    many = {f"m{number}": 10 + number % 3 for number in range(60)}
    lists = [random_skip_modules(many, 100, seed) for seed in range(5)]
    for names in lists:
        assert 90 < sum(many[name] for name in names) <= 100
    assert len(set(lists)) == 5
    assert random_skip_modules(many, 100, 3) == lists[3]
    assert random_skip_modules(many, 5, 0) == ()
