"""Shipped configs, changed at random: values, types, names, nesting, keys, and the YAML's own characters."""

import copy
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.conftest import TinyBackbone
from tests.fuzzing.outcome import Case
from tests.fuzzing.trees import Place, any_place, at, is_leaf, misspelt, pick
from tests.test_configs import CONFIGS, PARTIAL, TRAINERS, data_words, stand_in

Config = dict[str, Any]

NUMBERS = [0, -1, 1, 2, 3, 10**6, 10**12, 10**30, -(2**63), 0.5, -0.5, 1.5, 1e-300, 1e300, *map(float, ("nan", "inf"))]
TEXTS = [
    "",
    " ",
    "null",
    "banana",
    "a" * 3000,
    "\u00e4\u6c34\u202e",
    "no\ttab\nline",
    "../../..",
    "/proc/none/x",
    "~nobody/x",
    "[",
    "{}",
    "1e",
    "0x10",
    "2020-01-01",
    "${HOME}",
    "val/",
    "os.system",
    "builtins.eval",
    "torch.nn.Linear",
]
OTHERS: list[Any] = [None, True, False, [], {}, [None], [1, 2], ["a"], {"a": 1}, {"class_path": "os.system"}, [[[]]]]
# Values that would take the machine's memory or processes before the program could say anything about them.
NEVER = {"num_workers": 2}


def config_cases(
    path: Path, folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0, change: bool = True
) -> Iterator[Case]:
    """Changes one shipped config in many ways.

    Args:
        path: The YAML. One that only adds callbacks or sets the trainer follows the quickstart's, unchanged.
        folder: For the changed files, and tiny data.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices; the same seed gives the same cases.
        change: Or not, to see that the config runs.

    Yields:
        `fit` on each changed config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = str(path.relative_to(CONFIGS))
    first: list[str] = []
    base = yaml.safe_load(path.read_text())
    if path.parent in (PARTIAL, TRAINERS):
        whole = folder / "whole.yaml"
        whole.write_text(yaml.safe_dump(with_stand_ins(CONFIGS / "quickstart.yaml", folder, tiny_backbone)))
        first = [f"--config={whole}"]
    else:
        base = with_stand_ins(path, folder, tiny_backbone)
    for number in range(count):
        random = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        mutation, content = changed_config(base, random) if change else ("unchanged", yaml.safe_dump(base).encode())
        file = folder / f"{number}.yaml"
        file.write_bytes(content)
        yield Case(name, mutation, ("fit", *first, f"--config={file}"), folder)


def with_stand_ins(path: Path, folder: Path, tiny_backbone: TinyBackbone) -> Config:
    """A shipped config that trains a tiny model on tiny data."""
    config: Config = yaml.safe_load(path.read_text())
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    options = {name: yaml.safe_load(value) for name, _, value in map(_parted, data_words(config["data"], folder))}
    data |= {"batch_size": 4, **options}
    if "backbone" in model:
        model["backbone"] = str(stand_in(config, tiny_backbone, folder))
        data["cache_dir"] = str(folder)
    if config["model"]["class_path"] == "CausalLanguageModelingTask":
        model["generation"] = {"max_new_tokens": 2}
    trainer = config["trainer"]
    trainer["logger"]["init_args"]["save_dir"] = str(folder)
    trainer |= {"accelerator": "cpu", "devices": 1, "limit_val_batches": 2, "enable_progress_bar": False}
    return config


def _parted(word: str) -> tuple[str, str, str]:
    return word.removeprefix("--data.").partition("=")


def changed_config(base: Config, random: np.random.Generator) -> tuple[str, bytes]:
    """What was changed, and the YAML with the change."""
    if random.random() < 0.15:
        return _changed_text(yaml.safe_dump(base, sort_keys=False, allow_unicode=True), random)
    config = copy.deepcopy(base)
    changes = [pick(STRUCTURAL, random) for _ in range(1 if random.random() < 0.8 else 3)]
    done = [change(config, random) for change in changes if config]  # the one before may have left nothing
    return "; ".join(done), yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def _put(config: Config, place: Place, value: Any) -> str:
    if place[-1] in NEVER and isinstance(value, int | float) and value > NEVER[str(place[-1])]:
        value = NEVER[str(place[-1])]
    at(config, place[:-1])[place[-1]] = value
    return f"{'.'.join(map(str, place))} = {str(value)[:40]!r}"


def _number(config: Config, random: np.random.Generator) -> str:
    place = any_place(config, random, lambda value: isinstance(value, int | float) and not isinstance(value, bool))
    return _put(config, place, pick(NUMBERS, random))


def _text(config: Config, random: np.random.Generator) -> str:
    return _put(config, any_place(config, random, is_leaf), pick(TEXTS, random))


def _other_type(config: Config, random: np.random.Generator) -> str:
    return _put(config, any_place(config, random), copy.deepcopy(pick(OTHERS, random)))


def _misspell_value(config: Config, random: np.random.Generator) -> str:
    place = any_place(config, random, lambda value: isinstance(value, str))
    return _put(config, place, misspelt(str(at(config, place)), random))


def _rename_key(config: Config, random: np.random.Generator) -> str:
    place = any_place(config, random)
    holder = at(config, place[:-1])
    if not isinstance(holder, dict):
        return _put(config, place, None)
    new: Any = misspelt(str(place[-1]), random) if random.random() < 0.8 else pick([1, None, True, ""], random)
    holder[new] = holder.pop(place[-1])
    return f"{'.'.join(map(str, place))} is called {new!r}"


def _delete(config: Config, random: np.random.Generator) -> str:
    place = any_place(config, random)
    del at(config, place[:-1])[place[-1]]
    return f"no {'.'.join(map(str, place))}"


def _nest(config: Config, random: np.random.Generator) -> str:
    place = any_place(config, random)
    value = at(config, place)
    wrapped = pick([[value], {"init_args": value}, {str(place[-1]): value}, {"class_path": value}], random)
    return _put(config, place, wrapped)


def _flatten(config: Config, random: np.random.Generator) -> str:
    place = any_place(config, random, lambda value: isinstance(value, dict) and bool(value))
    inner = at(config, place)
    return _put(config, place, next(iter(inner.values())) if isinstance(inner, dict) else [inner])


def _exchange(config: Config, random: np.random.Generator) -> str:
    first, second = any_place(config, random), any_place(config, random)
    return _put(config, first, copy.deepcopy(at(config, second)))


def _add_key(config: Config, random: np.random.Generator) -> str:
    place = any_place(config, random, lambda value: isinstance(value, dict))
    name = pick(["r", "seed", "class_path", "init_args", "metrics", "callbacks", "dict_kwargs", "x"], random)
    inside = isinstance(at(config, place), dict)
    return _put(config, (*place, name) if inside else place, pick([1, "x", None, {}], random))


STRUCTURAL = [
    *[_number] * 6,  # most of what can be wrong without being of the wrong type
    *[_text] * 3,
    *[_misspell_value] * 2,
    _other_type,
    _rename_key,
    _delete,
    _nest,
    _flatten,
    _exchange,
    _add_key,
]


def _changed_text(text: str, random: np.random.Generator) -> tuple[str, bytes]:
    lines = text.splitlines(keepends=True)
    row = int(random.integers(len(lines)))
    raw = text.encode()
    place = int(random.integers(1, len(raw)))
    half = raw[:place]
    changes: list[tuple[str, bytes]] = [
        (f"line {row + 1} twice", "".join([*lines[: row + 1], *lines[row:]]).encode()),
        (f"line {row + 1} twice with another value", _second_value(lines, row).encode()),
        (f"line {row + 1} missing", "".join(lines[:row] + lines[row + 1 :]).encode()),
        (f"line {row + 1} indented by a tab", "".join([*lines[:row], "\t", *lines[row:]]).encode()),
        (f"line {row + 1} indented further", "".join([*lines[:row], "   ", *lines[row:]]).encode()),
        (f"line {row + 1} without colon", text.replace(lines[row], lines[row].replace(":", ""), 1).encode()),
        (f"cut at byte {place}", half),
        (f"byte {place} flipped", half[:-1] + bytes([half[-1] ^ 1 << int(random.integers(8))]) + raw[place:]),
        (f"NUL at byte {place}", half + b"\0" + raw[place:]),
        (f"byte {place} not UTF-8", half + b"\xff" + raw[place:]),
        ("UTF-16", text.encode("utf-16")),
        ("byte order mark", b"\xef\xbb\xbf" + raw),
        ("CRLF", text.replace("\n", "\r\n").encode()),
        ("empty", b""),
        ("a comment only", b"# nothing\n"),
        ("a list", b"- model\n- data\n"),
        ("a word", b"banana\n"),
        ("a number", b"3\n"),
        ("two documents", raw + b"---\n" + raw),
        ("nested 3000 deep", raw + b"x: " + b"[" * 3000 + b"]" * 3000 + b"\n"),
        ("an object's tag", raw + b"x: !!python/object/apply:os.system ['touch executed']\n"),
        ("an unknown tag", raw + b"x: !banana 1\n"),
        ("an unknown alias", raw + b"x: *nobody\n"),
        ("an alias to itself", raw + b"x: &x [*x]\n"),
        ("aliases by the thousand", raw + _laughs()),
        ("a merge of nothing", raw + b"<<: 1\n"),
        ("a list as a key", raw + b"? [1, 2]\n: 3\n"),
    ]
    return pick(changes, random)


def _second_value(lines: list[str], row: int) -> str:
    key, colon, _ = lines[row].partition(":")
    return "".join([*lines[: row + 1], f"{key}{colon} 7\n" if colon else lines[row], *lines[row + 1 :]])


def _laughs() -> bytes:
    """Nine lists of nine aliases each to the one before: a billion entries if a reader spelt them out."""
    lines = ["x0: &x0 [ha]"] + [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines).encode() + b"\n"
