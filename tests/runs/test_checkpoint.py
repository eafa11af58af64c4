"""A checkpoint holds what trains, loading proves it, and reading one executes nothing."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lightning.errors import CheckpointError
from lora_lightning.runs.checkpoint import check_state, read_checkpoint, trainable_state


def state(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def test_kept_state_is_what_trains_in_order_and_shared() -> None:
    full = state(base=(2,), lora_b=(3,), lora_a=(4,))
    kept = trainable_state(full, ["lora_a", "lora_b"])
    assert list(kept) == ["lora_b", "lora_a"]
    assert kept["lora_a"] is full["lora_a"]


def test_a_trained_parameter_missing_from_the_state_stops_the_save() -> None:
    with pytest.raises(CheckpointError, match=r"1 trainable parameters would be missing.*for example lora_c"):
        trainable_state(state(lora_a=(1,)), ["lora_a", "lora_c"])


def test_a_fitting_state_passes() -> None:
    check_state(state(a=(1, 2), b=()), state(b=(), a=(1, 2)), "here")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (state(a=(1,)), "here lacks 1 of the model's 2 trainable tensors, for example b"),
        ({}, "here lacks 2 of the model's 2 trainable tensors, for example a"),
        (
            state(a=(1,), b=(2, 3), c=(1,)),
            "1 tensors that are not trainable in this model, for example c",
        ),
        (state(a=(1,), b=(3, 2)), "here: b has shape (3, 2), but this model needs (2, 3)"),
        (state(a=(), b=(2, 3)), "here: a has shape (), but this model needs (1,)"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(saved: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        check_state(saved, state(a=(1,), b=(2, 3)), "here")


def good(path: Path) -> Path:
    torch.save({"state_dict": state(a=(1000,)), "hyper_parameters": {"backbone": "x", "labels": ["é"]}}, path)
    return path


def test_a_good_checkpoint_is_read(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(good(tmp_path / "good.ckpt"))
    assert torch.equal(checkpoint["state_dict"]["a"], torch.zeros(1000))
    assert checkpoint["hyper_parameters"] == {"backbone": "x", "labels": ["é"]}
    assert read_checkpoint(str(tmp_path / "good.ckpt")).keys() == checkpoint.keys()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_called_damaged(tmp_path: Path, share: float) -> None:
    path = good(tmp_path / "cut.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt is damaged or not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04", bytes(1000), b"\x80\x04."])
def test_another_kind_of_file_is_called_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("name", ["missing.ckpt", "."])
def test_a_missing_file_or_a_folder_is_an_error_that_says_where_to_look(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"(does not exist|is a folder); use a file such as <run>"):
        read_checkpoint(tmp_path / name)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"open({str(self.victim)!r}, 'w').close()",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_payload_is_refused_and_not_executed(tmp_path: Path, how: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "evil.ckpt"
    content = {"state_dict": {}, "hyper_parameters": {"x": Payload(victim)}}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_checkpoint(path)
    assert not victim.exists()
    if how == "pickle":  # the payload is a real one
        pickle.loads(path.read_bytes())
        assert victim.exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"hyper_parameters": {}}, [1, 2], torch.zeros(2)])
def test_another_programs_file_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="has no state_dict and hyper_parameters"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path: Path) -> None:
    content = good(tmp_path / "good.ckpt").read_bytes()
    path = tmp_path / "flipped.ckpt"
    listed = content.find(b"PK\x01\x02")  # from here on not the entries themselves, but their names, sizes, attributes
    places = [*range(0, listed, 11), *range(listed, len(content))]
    refused = 0
    for place in places:
        bit = 4 if place >= listed else place % 8  # which makes an entry a folder
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:  # names of folders, times and fillings have no checksum
            assert torch.equal(checkpoint["state_dict"]["a"], torch.zeros(1000))
            assert checkpoint["hyper_parameters"] == {"backbone": "x", "labels": ["é"]}
    assert refused > 0.6 * len(places)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, dtype=torch.int64), "network.a is of torch.int64, but this model needs torch.float32"),
        (torch.ones(2, dtype=torch.complex64), "network.a is of torch.complex64"),
        (torch.tensor([1.0, float("nan")]), "here: network.a holds NaN or infinite numbers"),
        (torch.tensor([1.0, float("inf")]), "here: network.a holds NaN or infinite numbers"),
    ],
    ids=str,
)
def test_tensors_of_another_kind_or_not_finite_are_refused(value: torch.Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        check_state({"network.a": value}, {"network.a": torch.ones(2)}, "here")
    check_state({"network.a": torch.ones(2, dtype=torch.bfloat16)}, {"network.a": torch.ones(2)}, "here")
    with pytest.raises(CheckpointError, match=r"network\.n is of torch\.float32, but this model needs torch\.int64"):
        check_state({"network.n": torch.ones(2)}, {"network.n": torch.ones(2, dtype=torch.int64)}, "here")
