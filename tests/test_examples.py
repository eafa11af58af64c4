"""Every script in examples/ runs as its first lines say, and every notebook from its first cell to its last."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
EXAMPLES = {"train_in_python.py": ["--max_steps", "2", "--ranks", "2", "4"]}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = [sys.executable, str(ROOT / "examples" / name), *EXAMPLES[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "r = 4: " in done.stdout
    assert "version_1: finished, best by val/in_scope_accuracy" in done.stdout
    assert "'text': 'wake me up at seven'" in done.stdout


SHORT = {"trainer.max_steps": 2, "trainer.limit_val_batches": 2, "trainer.limit_test_batches": 2}
SHORT |= {"trainer.callbacks": []}  # the quickstart's monitors have tests of their own


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "examples").mkdir()
    notebook = nbformat.read(path, as_version=4)
    settings = 'SETTINGS = {"trainer.max_epochs": 2}'
    assert sum(settings in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
        cell.source = cell.source.replace(settings, f"SETTINGS = {SHORT}").replace("[0, 1, 2]", "[0]")
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path / "examples"}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "r = 8, seed 0: " in printed
    assert "r = 8 is recommended" in printed  # one seed proves nothing
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-2].outputs)
