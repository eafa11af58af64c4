"""CLINC150 from the release's JSON or the hub: every wrong row is named, the real files have the paper's counts."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_lightning.datamodules import Clinc150DataModule
from lora_lightning.datamodules.clinc150 import INTENTS_OF_DOMAIN
from lora_lightning.errors import DataError

Content = dict[str, Any]
CONTENT: Content = {
    "train": [["how much is in my account", "balance"], ["wake me at six", "alarm"], ["pay my bill", "pay_bill"]],
    "oos_train": [["who won the cup", "oos"]],
    "val": [["what is my balance", "balance"], ["set an alarm", "alarm"]],
    "oos_val": [["sing, please", "oos"], ["how old is rome", "oos"]],
    "test": [["pay the phone bill", "pay_bill"]],
    "oos_test": [["zürich", "oos"]],
}


def write(folder: Path, content: Any = CONTENT, variant: str = "full") -> Path:
    path = folder / f"data_{variant}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def error_of(module: Clinc150DataModule) -> str:
    with pytest.raises(DataError) as raised:
        module.load_pairs()
    return str(raised.value)


@pytest.mark.parametrize("variant", ["full", "small", "imbalanced", "oos_plus"])
def test_variant_chooses_the_file(tmp_path: Path, variant: str) -> None:
    for other in ("full", "small", "imbalanced", "oos_plus"):
        write(tmp_path, CONTENT | {"test": [[other, "alarm"]]}, other)
    pairs = Clinc150DataModule(str(tmp_path), variant).load_pairs()  # type: ignore[arg-type]
    assert pairs == {
        "train": [tuple(row) for row in CONTENT["train"] + CONTENT["oos_train"]],
        "val": [tuple(row) for row in CONTENT["val"] + CONTENT["oos_val"]],
        "test": [(variant, "alarm"), ("zürich", "oos")],
    }


def test_intents_get_the_papers_domains(tmp_path: Path) -> None:
    write(tmp_path)
    space = Clinc150DataModule(str(tmp_path)).label_space
    assert space.names == ["alarm", "balance", "pay_bill", "oos"]
    assert space.domains == {"utility": [0], "banking": [1, 2]}


def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, variant="small")
    write(tmp_path, variant="oos_plus")
    assert error_of(Clinc150DataModule(str(tmp_path))) == (
        f"--data.data_dir: {tmp_path}/data_full.json cannot be read; the folder {tmp_path} has "
        "data_oos_plus.json, data_small.json."
    )
    assert error_of(Clinc150DataModule(str(tmp_path / "absent"))).endswith("absent has no data_*.json.")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"<html>"], ids=["empty", "cut", "deep", "html"])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data_full.json"
    path.write_bytes(content)
    message = error_of(Clinc150DataModule(str(tmp_path)))
    assert message.startswith(f"{path} is not JSON (")
    assert message.endswith("; download the original release again.")


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data_full.json"
    path.write_bytes(json.dumps(CONTENT, indent=1).encode().replace(b'"text', b'"\xff', 1) + b"\n\xff")
    assert f"{path}, line " in error_of(Clinc150DataModule(str(tmp_path)))
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CONTENT).encode())  # a byte order mark is none of the text
    assert Clinc150DataModule(str(tmp_path)).load_pairs()["train"]


def test_half_a_character_is_named(tmp_path: Path) -> None:
    content = deepcopy(CONTENT)
    content["train"].append(["text \ud800", "alarm"])
    path = write(tmp_path, content)
    message = error_of(Clinc150DataModule(str(tmp_path)))
    assert message.startswith(f"{path}, train, row {len(content['train'])}: ")
    assert "half of a character" in message


@pytest.mark.parametrize("content", [[], {**CONTENT, "oos_val": []}, {**CONTENT, "oos_val": {"0": ["a", "oos"]}}, None])
def test_a_missing_list_is_named(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path, content)
    absent = "oos_val" if isinstance(content, dict) else "train"
    assert error_of(Clinc150DataModule(str(tmp_path))) == (
        f"{path} has no list '{absent}'; the release holds train, oos_train, val, oos_val, test, oos_test."
    )


@pytest.mark.parametrize("key", list(CONTENT))
def test_every_list_is_needed(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, {name: rows for name, rows in CONTENT.items() if name != key})
    assert error_of(Clinc150DataModule(str(tmp_path))).startswith(f"{path} has no list {key!r}; ")


@pytest.mark.parametrize(
    "row",
    ["text", ["text"], ["text", "alarm", 1], [3, "alarm"], ["text", None], {"text": "a"}, None, ["text", " "]],
    ids=str,
)
@pytest.mark.parametrize("key", ["train", "oos_test"])
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, key: str, row: Any) -> None:
    content = deepcopy(CONTENT)
    content[key].append(row)
    path = write(tmp_path, content)
    assert error_of(Clinc150DataModule(str(tmp_path))) == (
        f"{path}, {key}, row {len(content[key])}: expected [text, intent], found {json.dumps(row)}."
    )


@pytest.mark.parametrize("text", ["", " \t"])
def test_an_empty_text_is_named(tmp_path: Path, text: str) -> None:
    content = deepcopy(CONTENT)
    content["val"][1][0] = text
    path = write(tmp_path, content)
    message = error_of(Clinc150DataModule(str(tmp_path)))
    assert message == f"{path}, val, row 2: the text is empty; remove the row or fill it in."


@pytest.mark.parametrize("key", ["val", "oos_val", "test"])
def test_an_intent_that_training_lacks_is_named_with_the_nearest(tmp_path: Path, key: str) -> None:
    content = deepcopy(CONTENT)
    content[key].append(["pay it", "pay_bil"])
    path = write(tmp_path, content)
    assert error_of(Clinc150DataModule(str(tmp_path))) == (
        f"{path}, {key}, row {len(content[key])}: the intent 'pay_bil' never occurs in train; did you mean 'pay_bill'?"
    )


def test_the_hub_has_no_full_variant() -> None:
    assert error_of(Clinc150DataModule(variant="full")) == (
        "the hub has no variant 'full' of CLINC150, only small, imbalanced, oos_plus; choose one of them, or set "
        "--data.data_dir to the original JSON release."
    )


UNREACHABLE = re.escape(
    "the data set clinc/clinc_oos could not be downloaded from the hub; without network set --data.data_dir to a "
    "folder with the original release's data_small.json."
)


def fail_with(error: Exception) -> Callable[..., Any]:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    return load_dataset


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'clinc/clinc_oos' on the Hub (LocalEntryNotFoundError)"),
        OSError("disk"),
        ValueError("BuilderConfig 'small' not found"),
        datasets.exceptions.DatasetNotFoundError("gated"),
        datasets.exceptions.DatasetGenerationError("the download broke"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_does_not_answer_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", fail_with(error))
    with pytest.raises(DataError, match=UNREACHABLE) as raised:
        Clinc150DataModule(variant="small").load_pairs()
    assert raised.value.__cause__ is error


def test_datasets_own_error_without_network_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=UNREACHABLE) as raised:
        Clinc150DataModule(variant="small").load_pairs()
    assert isinstance(raised.value.__cause__, ConnectionError)


def hub(**changed: list[tuple[str, int]]) -> datasets.DatasetDict:
    splits: dict[str, list[tuple[str, int]]] = {
        "train": [("wake me", 0), ("my money", 2), ("sing", 1)],
        "validation": [("alarm at six", 0)],
        "test": [("who are you", 1), ("how much", 2)],
    } | changed
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=["alarm", "oos", "balance"])}
    )
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"text": [text for text, _ in rows], "intent": [intent for _, intent in rows]}, features
            )
            for split, rows in splits.items()
        }
    )


@pytest.mark.parametrize(
    ("variant", "config"), [("small", "small"), ("imbalanced", "imbalanced"), ("oos_plus", "plus")]
)
def test_hub_rows_become_pairs(monkeypatch: pytest.MonkeyPatch, variant: str, config: str) -> None:
    asked = []

    def load_dataset(*arguments: str, **_: Any) -> datasets.DatasetDict:
        asked.append(arguments)
        return hub()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    module = Clinc150DataModule(variant=variant)  # type: ignore[arg-type]
    assert module.load_pairs() == {
        "train": [("wake me", "alarm"), ("my money", "balance"), ("sing", "oos")],
        "val": [("alarm at six", "alarm")],
        "test": [("who are you", "oos"), ("how much", "balance")],
    }
    assert asked == [("clinc/clinc_oos", config)]
    assert module.label_space.names == ["alarm", "balance", "oos"]


@pytest.mark.parametrize(
    ("changed", "wording"),
    [
        ({"train": [("sing", 1), ("", 0), ("how much", 2)]}, "clinc/clinc_oos, train, row 2: the text is empty"),
        ({"train": [("sing", 1), ("hi", 0)]}, "clinc/clinc_oos, test, row 2: the intent 'balance' never occurs"),
    ],
)
def test_hub_rows_are_checked_too(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, list[tuple[str, int]]], wording: str
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub(**changed))
    assert error_of(Clinc150DataModule(variant="small")).startswith(wording)


def test_ten_domains_of_fifteen_different_intents() -> None:
    intents = [intent for names in INTENTS_OF_DOMAIN.values() for intent in names.split()]
    assert [len(names.split()) for names in INTENTS_OF_DOMAIN.values()] == [15] * 10
    assert len(set(intents)) == 150


@pytest.mark.shared
@pytest.mark.parametrize(
    ("variant", "train", "oos_train"),
    [("full", 15000, 100), ("small", 7500, 100), ("imbalanced", 10525, 100), ("oos_plus", 15000, 250)],
)
def test_the_real_files_have_the_papers_counts(shared_data: Path, variant: str, train: int, oos_train: int) -> None:
    module = Clinc150DataModule(str(shared_data / "clinc150"), variant)  # type: ignore[arg-type]
    pairs = module.load_pairs()
    counts = {split: [len(rows), sum(intent == "oos" for _, intent in rows)] for split, rows in pairs.items()}
    assert counts == {"train": [train + oos_train, oos_train], "val": [3100, 100], "test": [5500, 1000]}
    space = module.label_space
    assert (len(space.names), space.out_of_scope_index) == (151, 150)
    assert sorted(index for indices in space.domains.values() for index in indices) == list(range(150))


@pytest.mark.shared
def test_domains_are_the_releases(shared_data: Path) -> None:
    released = json.loads((shared_data / "clinc150" / "domains.json").read_text(encoding="utf-8"))
    ours = {domain: sorted(names.split()) for domain, names in INTENTS_OF_DOMAIN.items()}
    assert {domain.replace(" ", "_"): sorted(names) for domain, names in released.items()} == ours
