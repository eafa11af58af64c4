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


def test_random_lists_have_the_bytes_of_the_choice_and_differ_from_it_and_from_each_other() -> None:
    many = {f"m{number}": 10 + 7 * (number % 3) for number in range(60)}
    chosen = ("m0", "m1", "m2", "m3")  # 61 bytes
    lists = random_skip_modules(many, chosen, 5)
    for names in lists:
        assert sum(many[name] for name in names) == 61
        assert len(set(names)) == len(names)
        assert set(names) != set(chosen)
    assert len({frozenset(names) for names in lists}) == 5
    assert random_skip_modules(many, chosen, 5) == lists
    assert random_skip_modules(many, chosen, 5, seed=1) != lists


def test_what_does_not_fit_exactly_comes_near_and_what_does_not_exist_is_not_drawn() -> None:
    # Of 100 bytes in ("a",), the other modules reach 95 (40 + 30 + 25), 80, 75 and so on.
    lists = random_skip_modules(BYTES, ("a",), 3)
    assert [sum(BYTES[name] for name in names) for names in lists] == [95, 80, 75]
    assert {frozenset(names) for names in random_skip_modules({"a": 5, "b": 5}, ("a",), 3)} == {frozenset("b")}
    assert random_skip_modules({"a": 5}, ("a",), 3) == ()
