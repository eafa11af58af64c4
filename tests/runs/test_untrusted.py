"""What a forged checkpoint may hold without a line of code in it is refused as it is read."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lightning.errors import CheckpointError
from lora_lightning.runs.checkpoint import read_checkpoint


def saved(path: Path, **more: Any) -> Path:
    torch.save({"state_dict": {"a": torch.arange(4.0)}, "hyper_parameters": {"backbone": "x"}, **more}, path)
    return path


def rewritten(path: Path, compression: int) -> Path:
    """The same entries by the zipfile module."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def test_a_checkpoint_that_was_only_packed_again_is_read(tmp_path: Path) -> None:
    assert read_checkpoint(rewritten(saved(tmp_path / "a.ckpt"), zipfile.ZIP_STORED))["state_dict"]["a"].sum() == 6


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "bomb.ckpt", optimizer_states=[{"state": torch.zeros(2**24)}])
    assert rewritten(path, zipfile.ZIP_DEFLATED).stat().st_size < 2**18  # 64 MiB in it
    monkeypatch.delattr(torch, "load")
    with pytest.raises(
        CheckpointError,
        match=r"bomb\.ckpt is compressed or damaged \(67\d{6} bytes of content in a file of \d+ bytes\)",
    ):
        read_checkpoint(path)


def test_entries_that_share_their_bytes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "bomb.ckpt", more=torch.zeros(2**16))
    with zipfile.ZipFile(path, "a") as archive:  # a hundred names for one entry's place, in the directory alone
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [largest] * 100
        archive._didModify = True
    monkeypatch.delattr(torch, "load")
    with pytest.raises(CheckpointError, match="is compressed or damaged"):
        read_checkpoint(path)


TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "expanded": lambda: torch.zeros(1).expand(10**12),
    "without storage": lambda: torch.empty(10**12, device="meta"),
    "sparse": lambda: torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**12,)),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("place", ["state_dict", "optimizer"])
@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_a_tensor_of_more_elements_than_are_stored_is_refused(tmp_path: Path, kind: str, place: str) -> None:
    content = {"state_dict": {"a": TENSORS[kind]()}}
    if place == "optimizer":
        content = {"optimizer_states": [{"state": {0: (1, TENSORS[kind]())}}]}  # type: ignore[dict-item]
    name = "state_dict.a" if place == "state_dict" else "optimizer_states.0.state.0.1"
    with pytest.raises(CheckpointError, match=rf": {name} claims the shape \(1000000000000,\), but the file does not"):
        read_checkpoint(saved(tmp_path / "a.ckpt", **content))


def test_a_view_of_a_larger_storage_is_no_forgery(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    content = read_checkpoint(
        saved(tmp_path / "a.ckpt", state_dict={"a": whole.T, "b": whole[1:, ::2], "c": torch.zeros(0)})
    )
    assert content["state_dict"]["a"].shape == (4, 3)


@pytest.mark.parametrize(
    "state",
    [
        {"kth_best_model_path": "runs/a/checkpoints/../../../thesis.txt"},
        {"last_model_path": "/home/me/runs/checkpoints/../../thesis.txt"},
        {"best_k_models": {"runs/checkpoints/x/../../thesis.txt": torch.tensor(1.0)}},
        {"best_model_path": "s3://someones/bucket/file.ckpt"},
    ],
    ids=lambda state: next(iter(state)),
)
def test_a_path_out_of_the_run_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match=r"ModelCheckpoint\{.*\} contains the path '.*', which is outside the run"
    ):
        read_checkpoint(saved(tmp_path / "a.ckpt", callbacks={"ModelCheckpoint{'monitor': None}": state}))


def test_paths_as_lightning_writes_them_are_read(tmp_path: Path) -> None:
    paths = {"dirpath": "../runs/v..1/checkpoints", "best_model_path": "../runs/v..1/checkpoints/best.ckpt"}
    state = {**paths, "last_model_path": "", "best_k_models": {}, "kth_best_model_path": None, "best_model_score": None}
    assert read_checkpoint(saved(tmp_path / "a.ckpt", callbacks={"ModelCheckpoint": state, "EarlyStopping": {}}))


@pytest.mark.parametrize("content", [{"state_dict": {"a": "b"}}, {"state_dict": []}, {"hyper_parameters": 3}], ids=str)
def test_other_things_in_the_place_of_tensors_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="contains values other than named tensors"):
        read_checkpoint(saved(tmp_path / "a.ckpt", **content))


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    nested: Any = 1
    for _ in range(150):
        nested = [nested]
    with pytest.raises(CheckpointError, match=r"is nested deeper than 100 levels"):
        read_checkpoint(saved(tmp_path / "a.ckpt", loops=nested))


def test_one_list_in_a_billion_places_is_walked_once(tmp_path: Path) -> None:
    shared: Any = [1]
    for _ in range(40):
        shared = [shared] * 9
    assert read_checkpoint(saved(tmp_path / "a.ckpt", loops=shared))


@pytest.mark.parametrize("count", [[1], {"a": 1}, "1", None, 1.5, True], ids=str)
def test_progress_that_is_no_count_is_refused(tmp_path: Path, count: Any) -> None:
    loops = {"fit_loop": {"epoch_progress": {"current": {"ready": 1, "completed": count}}}}
    with pytest.raises(
        CheckpointError, match=r": loops\.fit_loop\.epoch_progress\.current\.completed is .*, but it must"
    ):
        read_checkpoint(saved(tmp_path / "a.ckpt", loops=loops))


def moment(value: float) -> list[dict[str, Any]]:
    return [{"state": {3: {"exp_avg": torch.tensor([1.0, value])}}, "param_groups": [{"lr": 0.1}]}]


NOT_FINITE: dict[str, tuple[dict[str, Any], str]] = {
    "weight": ({"state_dict": {"network.x.lora_A.weight": torch.tensor([1.0, float("nan")])}}, r"network\.x\.lora_A"),
    "infinite weight": ({"state_dict": {"network.head": torch.tensor([float("-inf")])}}, r"network\.head"),
    "half a weight": ({"state_dict": {"network.b": torch.tensor([float("inf")], dtype=torch.bfloat16)}}, r"network\.b"),
    "threshold": ({"state_dict": {"threshold": torch.tensor(float("nan"))}}, "threshold"),
    "moment": ({"optimizer_states": moment(float("nan"))}, r"optimizer_states\.0\.state\.3\.exp_avg"),
    "infinite moment": ({"optimizer_states": moment(float("inf"))}, r"optimizer_states\.0\.state\.3\.exp_avg"),
    "rate": ({"optimizer_states": [{"param_groups": [{"lr": float("nan")}]}]}, r"optimizer_states\.0\.param_groups\.0"),
    "schedule": ({"lr_schedulers": [{"base_lrs": [0.1, float("inf")]}]}, r"lr_schedulers\.0\.base_lrs\.1"),
}


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    content, name = NOT_FINITE[kind]
    with pytest.raises(CheckpointError, match=rf"a\.ckpt: {name}.* holds NaN or infinite numbers"):
        read_checkpoint(saved(tmp_path / "a.ckpt", **content))


def test_a_threshold_that_is_not_chosen_yet_may_be_infinite(tmp_path: Path) -> None:
    state = {"out_of_scope_threshold": torch.tensor(float("inf")), "network.a": torch.ones(2)}
    assert read_checkpoint(saved(tmp_path / "a.ckpt", state_dict=state, optimizer_states=moment(2.0)))
