"""The commands of docs/scaling.md run: with two processes for eight, and two "machines" on loopback."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import strategy_equality as equality
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_wikitext

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "scaling.md").read_text().splitlines()
ON_ONE_MACHINE = [line for line in LINES if line.startswith("lora-lightning fit ")]
BY_TORCHRUN = [line for line in LINES if line.startswith("torchrun ")]


def small(line: str, tiny_backbone: TinyBackbone, folder: Path) -> list[str]:
    """A documented `fit` with few processes, a tiny backbone and tiny data."""
    words = shlex.split(line)
    words = words[words.index("fit") :]
    words[words.index("--trainer.devices") + 1] = "1" if "--trainer.num_nodes" in words else "2"
    classifies = "configs/clinc150/minilm_lora.yaml" in words
    words += [f"--model.backbone={tiny_backbone('bert' if classifies else 'llama')}"]
    words += [f"--data.data_dir={(save_tiny_clinc150 if classifies else save_tiny_wikitext)(folder / 'data')}"]
    words += [] if classifies else ["--data.context_length=30", "--model.generation.max_new_tokens=2"]
    words += [f"--data.cache_dir={folder}", f"--trainer.logger.save_dir={folder}", "--trainer.max_steps=2"]
    return [*words, "--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize("line", ON_ONE_MACHINE)
def test_one_machine(line: str, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    equality.train(2, [small(line, tiny_backbone, tmp_path)])
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 1


def test_two_machines_by_torchrun(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    assert len(BY_TORCHRUN) == 2
    with equality.free_port() as port:
        pass
    machines = []
    for line in BY_TORCHRUN:
        launch = shlex.split(line)[1 : shlex.split(line).index("fit")]
        changed = {"--nproc-per-node": "1", "--master-addr": "127.0.0.1", "--master-port": str(port)}
        for option, value in changed.items():
            launch[launch.index(option) + 1] = value
        command = [sys.executable, "-m", "torch.distributed.run", *launch, *small(line, tiny_backbone, tmp_path)]
        machines.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 1


def test_the_slurm_script_is_bash() -> None:
    start = LINES.index("#!/bin/bash")
    script = "\n".join(LINES[start : LINES.index("```", start)])
    assert "srun lora-lightning fit" in script
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
