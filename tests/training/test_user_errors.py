"""An error is the user's by its phase and type, never by the folder of the code that raised it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lora_lightning
from lora_lightning.compat.torch import RECEIVES_TENSORS
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError, TrainingError
from lora_lightning.training.user_errors import (
    explain_option_error,
    explain_run_error,
    find_lora_lightning_error,
    raising_module,
    replace_errors,
)
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

PHASES = [explain_option_error, explain_run_error]
Explanation = Callable[[Exception], LoraLightningError | None]


def wrapped(*errors: Exception) -> Exception:
    """The last of some errors, each raised from the one before."""
    for inner, outer in pairwise(errors):
        outer.__cause__ = inner
    return errors[-1]


def raised_in(module: str, error: Exception, function: str = "check", file: str = "anywhere.py") -> Exception:
    """An error raised by a function of a module."""
    code = compile(f"def {function}(error):\n    raise error", file, "exec")
    names: dict[str, Any] = {"__name__": module}
    exec(code, names)  # noqa: S102
    with pytest.raises(type(error)):
        names[function](error)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # without this test's frame
    return error


def test_our_own_error_is_found_below_others() -> None:
    ours = ConfigurationError("r is 0.")
    for explanation in PHASES:
        assert explanation(wrapped(ours, ValueError("wrapped"), TypeError("and again"))) is ours


def test_a_chain_that_leads_back_has_an_end() -> None:
    first, second = OSError("a"), OSError("b")
    first.__context__, second.__context__ = second, first
    assert find_lora_lightning_error(first) is None


@pytest.mark.parametrize("explanation", PHASES)
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            TrainingError,
            "lower data.batch_size",
        ),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."), TrainingError, "data.num_workers"),
        (MisconfigurationException("`devices`\nis wrong."), ConfigurationError, "`devices` is wrong."),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"), ConfigurationError, "not encoded in UTF-8"),
        (ValueError("embedded null byte"), ConfigurationError, r"the character \x00"),
        (OSError(36, "File name too long", "a" * 99), ConfigurationError, "a file name is too long"),
        (
            PermissionError(13, "Permission denied", "/x/a"),
            ConfigurationError,
            "/x/a cannot be read or written (permiss",
        ),
        (PermissionError(1, "Operation not permitted", b"/x/a"), ConfigurationError, "/x/a cannot be read or written"),
        (OSError(30, "Read-only file system", "/x/a"), ConfigurationError, "/x/a cannot be read or written (read-only"),
        (OSError(40, "Too many levels", "/x/a"), ConfigurationError, "(too many levels of symbolic links)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_some_errors_are_the_users_in_any_phase(
    error: Exception, kind: type, said: str, explanation: Explanation
) -> None:
    error.__traceback__ = None
    found = explanation(raised_in("lora_lightning.tasks.base", error))
    assert type(found) is kind
    assert said in str(found)


@pytest.mark.parametrize(
    "module", ["lightning.pytorch.trainer.trainer", "jsonargparse._core", "my_module", "torch.optim"]
)
@pytest.mark.parametrize("kind", [ValueError, TypeError, ImportError])
def test_while_options_are_read_other_packages_raise_over_their_values(module: str, kind: type[Exception]) -> None:
    error = raised_in(module, kind("x is 1."))
    found = explain_option_error(error)
    assert isinstance(found, ConfigurationError)
    assert "x is 1." in str(found)
    assert ("my_module raises" in str(found)) == (module == "my_module")
    assert explain_run_error(error) is None


@pytest.mark.parametrize("file", ["/x/lightning/y.py", "/x/jsonargparse/y.py", "/x/checkpoint_connector.py"])
@pytest.mark.parametrize("explanation", PHASES)
def test_a_bug_of_ours_stays_one_wherever_it_is_installed(file: str, explanation: Explanation) -> None:
    for error in (ValueError("a bug"), TypeError("a bug"), KeyError("a bug")):
        assert explanation(raised_in("lora_lightning.tasks.base", error, "restore_model", file)) is None


def test_the_standard_library_raises_on_behalf_of_its_caller() -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        json.loads("{")
    assert raising_module(raised.tb) == __name__


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), FileNotFoundError(2, "No such file", "a"), OSError("?")]
)
def test_other_errors_of_the_system_may_be_bugs(error: OSError) -> None:
    for explanation in PHASES:
        assert explanation(raised_in("lora_lightning.tasks.base", error)) is None


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset"), EOFError(), FileNotFoundError(2, "No")]
)
def test_a_process_that_dies_while_it_sends_a_batch_is_a_lost_one(error: Exception) -> None:
    received = raised_in(RECEIVES_TENSORS, error)
    for explanation in PHASES:
        found = explanation(received)
        assert isinstance(found, TrainingError)
        assert "a data loading process died (DataLoader worker was sending a batch" in str(found)
        assert explanation(raised_in("lora_lightning.tasks.base", type(error)())) is None


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert explain_option_error(ValueError("nowhere")) is None
    assert explain_run_error(ValueError("nowhere")) is None


def test_what_restoring_a_checkpoint_raises_is_about_the_checkpoint() -> None:
    connector = "lightning.pytorch.trainer.connectors.checkpoint_connector"
    found = explain_run_error(raised_in(connector, KeyError("state"), "restore_callbacks"))
    assert isinstance(found, CheckpointError)
    assert "cannot be restored (KeyError: 'state')" in str(found)
    assert explain_run_error(raised_in(connector, KeyError("state"), "dump_checkpoint")) is None


def test_what_lightning_checks_late_is_about_an_option() -> None:
    late = raised_in("lightning.pytorch.loops.fit_loop", ValueError("`val_check_interval` (9) must be"), "setup_data")
    assert isinstance(explain_run_error(late), ConfigurationError)
    assert explain_run_error(raised_in("lightning.pytorch.loops.fit_loop", ValueError("other"), "advance")) is None


def test_the_error_that_is_shown_keeps_the_original_as_its_cause() -> None:
    with pytest.raises(ConfigurationError) as raised, replace_errors(explain_option_error):
        Trainer(gradient_clip_val="x", accelerator="cpu", logger=False)  # type: ignore[arg-type]
    assert isinstance(raised.value.__cause__, TypeError)
    with pytest.raises(ZeroDivisionError), replace_errors(explain_option_error):
        _ = 1 / 0


BUG = """
import sys
import {module} as module
def fails(*arguments, **options):
    raise ValueError("internal")
fails = type(fails)(fails.__code__, vars(module))  # a function of that module, in its folder
setattr({owner}, {name!r}, fails)
from lora_lightning.cli.main import program
sys.argv[1:] = {words!r}
program()
"""
TASK = ("lora_lightning.tasks.sequence_classification", "module.SequenceClassificationTask")


@pytest.mark.parametrize(
    ("folder", "module", "owner", "name"),
    [  # when a class is made, before weights load, and in training
        ("jsonargparse", *TASK, "save_task_hyperparameters"),
        ("lightning", *TASK, "check_settings"),
        ("lightning", *TASK, "training_step"),
    ],
    ids=lambda value: value.rpartition(".")[2],
)
def test_a_bug_in_an_install_below_a_folder_of_that_name_keeps_its_traceback(
    folder: str, module: str, owner: str, name: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    place = tmp_path / folder
    shutil.copytree(
        Path(lora_lightning.__file__).parent, place / "lora_lightning", ignore=shutil.ignore_patterns("__pycache__")
    )
    data = save_tiny_clinc150(tmp_path / "data")
    words = ["fit", "--model=SequenceClassificationTask", f"--model.backbone={tiny_backbone('bert')}"]
    words += ["--data=Clinc150DataModule", f"--data.data_dir={data}", "--trainer.accelerator=cpu"]
    words += ["--trainer.max_steps=1", "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    code = BUG.format(module=module, owner=owner, name=name, words=words)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback (most recent call last)" in ended.stderr
    assert "ValueError: internal\n" in ended.stderr
    assert "lora-lightning: error" not in ended.stderr
