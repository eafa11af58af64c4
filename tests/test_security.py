"""Files from a stranger execute nothing, delete nothing, and are refused in one sentence.

Every payload here would make the file `executed` if it ran.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from lora_lightning.cli.main import main
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150


class Payload:
    """Makes a file if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clinc150(tmp_path_factory.mktemp("clinc150"))


def fit(backbone: Path, data: Path, logs: Path, *more: str) -> int:
    words = ["fit", "--config=configs/clinc150/minilm_lora.yaml", f"--model.backbone={backbone}"]
    words += [f"--data.data_dir={data}", f"--data.cache_dir={logs}", "--data.batch_size=16"]
    words += ["--trainer.logger.init_args.name=run", f"--trainer.logger.init_args.save_dir={logs}"]
    words += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    return main([*words, "--test_after_fit=false", *more])


def refusal(capfd: pytest.CaptureFixture[str], code: int) -> str:
    """The one sentence on standard error."""
    output = capfd.readouterr().err
    assert code == 2
    assert "Traceback" not in output
    return output.strip().splitlines()[-1].removeprefix("lora-lightning: error: ")


def _set(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))


def _code(folder: Path, mark: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")


def _pickled_weights(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark), protocol=2))


def _zipped_weights(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")


def _own_architecture(folder: Path, mark: Path) -> None:
    _code(folder, mark)
    _set(folder, "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})


def _adapter(folder: Path, mark: Path) -> None:
    """An adapter of absurd rank, whose base is named by itself, with pickled weights."""
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "target_modules": ["query"], "r": 10**9}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.save({"weight": Payload(mark)}, folder / "adapter_model.bin")


def _shard_elsewhere(folder: Path, mark: Path) -> None:
    torch.save({"weight": Payload(mark)}, folder.parent / "outside.bin")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "../outside.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _linked_weights(folder: Path, mark: Path) -> None:
    mark.with_name("secret").write_text("root:x:0:0")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(mark.with_name("secret"))


def _long_header(folder: Path, _mark: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + content[8:])


def _other_shape(folder: Path, _mark: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    save_file({**weights, name: torch.zeros(3, 5)}, folder / "model.safetensors", {"format": "pt"})


BACKBONES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "pickled weights": (_pickled_weights, "hold more than tensors, which is never executed; give safetensors"),
    "zipped pickle": (_zipped_weights, "hold more than tensors, which is never executed; give safetensors"),
    "own architecture": (_own_architecture, "needs Python code of its own, which is not run unless"),
    "adapter": (_adapter, "holds an adapter (adapter_config.json) and no backbone"),
    "shard elsewhere": (_shard_elsewhere, "names the file '../outside.bin', which is not in its folder"),
    "linked weights": (_linked_weights, "could not be loaded: "),
    "long header": (_long_header, "could not be loaded: "),
    "other shape": (_other_shape, "do not fit its config.json"),
    "settings in a list": (lambda folder, _: (folder / "config.json").write_text("[]") and None, "could not be loaded"),
    "deep settings": (lambda folder, _: (folder / "config.json").write_text("[" * 10**5) and None, "could not be"),
    "no heads": (lambda folder, _: _set(folder, "config.json", num_attention_heads=0), "could not be loaded"),
    "endless layers": (
        lambda folder, _: _set(folder, "config.json", num_hidden_layers=10**9),
        "a model has 1 to 10000",
    ),
    "endless words": (lambda folder, _: _set(folder, "config.json", vocab_size=10**13), "3e+14 parameters, which no"),
    "endless width": (
        lambda folder, _: _set(folder, "config.json", hidden_size=10**9),
        "parameters, which no machine can store",
    ),
    "wrong kind": (lambda folder, _: _set(folder, "config.json", intermediate_size="x"), "could not be loaded"),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_hostile_backbone_is_refused(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    change, sentence = BACKBONES[kind]
    folder, mark = Path(shutil.copytree(tiny_backbone("bert"), tmp_path / "backbone")), tmp_path / "executed"
    change(folder, mark)
    assert sentence in refusal(capfd, fit(folder, data, tmp_path))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
def test_code_beside_a_known_architecture_is_neither_run_nor_asked_about(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder, mark = Path(shutil.copytree(tiny_backbone("bert"), tmp_path / "backbone")), tmp_path / "executed"
    _code(folder, mark)
    if kind == "config":
        _set(folder, "config.json", auto_map={"AutoConfig": "evil.Config"})
    else:
        _set(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Model", None]}, tokenizer_class="Evil")
    monkeypatch.delattr(transformers.dynamic_module_utils, "get_class_in_module")
    assert fit(folder, data, tmp_path, "--trainer.fast_dev_run=1") == 0
    assert not mark.exists()


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    logs = tmp_path_factory.mktemp("logs")
    assert fit(tiny_backbone("bert"), data, logs) == 0
    return logs / "run" / "version_0"


def forged(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "forged.ckpt")
    return folder / "forged.ckpt"


def resume(run: Path, checkpoint: Path, logs: Path, *more: str) -> int:
    words = ["fit", f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=3"]
    return main([*words, f"--trainer.logger.init_args.save_dir={logs}", *more])


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_payload_in_a_checkpoint_is_not_executed(
    run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    form: str,
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # which turns torch's own default off
    path, mark = tmp_path / "forged.ckpt", tmp_path / "executed"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(mark), protocol=2))
    else:
        forged(run, tmp_path, lambda checkpoint: checkpoint.update(hyper_parameters=Payload(mark)))
    code = main([command, f"--config={run / 'config.yaml'}", f"--ckpt_path={path}", "--weights_only=false"])
    assert "is damaged or not a checkpoint" in refusal(capfd, code)
    assert not mark.exists()


def test_a_forged_checkpoint_deletes_nothing_outside_the_run(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lightning deletes what a checkpoint calls the worst of the best, if its name begins with the run's folder."""
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    dirpath = tmp_path / "logs" / "run" / "version_0" / "checkpoints"
    key = ModelCheckpoint(monitor="val/loss", save_top_k=1).state_key

    def aim(checkpoint: dict[str, Any]) -> None:
        aimed = f"{dirpath}/../../../../thesis.txt"
        checkpoint["callbacks"][key] = {
            "dirpath": str(dirpath),
            "best_model_score": torch.tensor(1e9),
            "best_model_path": aimed,
            "kth_best_model_path": aimed,
            "kth_value": torch.tensor(1e9),
            "best_k_models": {aimed: torch.tensor(1e9)},
            "last_model_path": "",
        }

    callback = '[{"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "save_top_k": 1}}]'
    code = resume(run, forged(run, tmp_path, aim), tmp_path / "logs", f"--trainer.callbacks={callback}")
    assert "contains the path" in refusal(capfd, code)
    assert victim.read_text() == "years of work"


def test_a_forged_checkpoint_deletes_nothing_inside_the_run_either(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "logs" / "run" / "version_1" / "checkpoints" / "precious.txt"  # version_0 is taken
    victim.parent.mkdir(parents=True)
    (tmp_path / "logs" / "run" / "version_0").mkdir()
    victim.write_text("years of work")

    def aim(checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"]["AdapterCheckpoint"] |= {
            "best_model_path": str(run / "checkpoints/best.ckpt"),
            "best_model_score": torch.tensor(-1.0),
            "dirpath": str(victim.parent),
            "kth_best_model_path": str(victim),
            "kth_value": torch.tensor(-1.0),
            "best_k_models": {str(victim): torch.tensor(-1.0)},
            "last_model_path": str(victim),
        }

    words = ["--trainer.logger.init_args.version=1"]
    assert resume(run, forged(run, tmp_path, aim), tmp_path / "logs", *words) == 0
    assert (victim.parent / "best.ckpt").exists()
    assert victim.read_text() == "years of work"


FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no loops": lambda checkpoint: checkpoint.pop("loops"),
    "loops of another kind": lambda checkpoint: checkpoint.update(loops={"fit_loop": [1]}),
    "no optimizer": lambda checkpoint: checkpoint.update(optimizer_states=[]),
    "another optimizer": lambda checkpoint: checkpoint.update(optimizer_states=[{"state": {}, "param_groups": []}]),
    "texts for states": lambda checkpoint: checkpoint.update(lr_schedulers="x", callbacks="y"),
    "a version of its own": lambda checkpoint: checkpoint.update({"pytorch-lightning_version": {"a": 1}}),
    "settings of another kind": lambda checkpoint: checkpoint["hyper_parameters"].update(lora=[1]),
    "labels of another kind": lambda checkpoint: checkpoint["hyper_parameters"].update(label_space={"x": 1}),
    "a huge tensor": lambda checkpoint: checkpoint.update(
        optimizer_states=[{"state": {0: {"exp_avg": torch.zeros(1).expand(10**13)}}, "param_groups": []}]
    ),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_checkpoint_of_another_form_is_refused(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    code = resume(run, forged(run, tmp_path, FORGERIES[kind]), tmp_path / "logs")
    assert "checkpoint" in refusal(capfd, code) or ".ckpt" in refusal(capfd, code)


def test_names_of_files_are_no_markup(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """To rich, which prints the summary, `[/b]` would end what never began."""
    logs = tmp_path / "a[/b]"
    assert resume(run, run / "checkpoints/last.ckpt", logs, "--trainer.max_epochs=2") == 0
    assert f"run folder: {logs}" in capfd.readouterr().out


def test_names_in_files_give_the_terminal_no_commands(
    tiny_backbone: TinyBackbone, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,\x1b[2J,label\nw1,w2\n")
    words = ["fit", "--config=configs/text_classification/minilm_lora.yaml", f"--data.train_file={path}"]
    sentence = refusal(capfd, main([*words, f"--model.backbone={tiny_backbone('bert')}"]))
    assert r"are needed (text, \x1b[2J, label)" in sentence
