"""`lora-lightning study slurm` prints a script that a shell reads and that runs `study run`."""

import shlex
import subprocess
from pathlib import Path

import pytest

from lora_lightning.cli.main import main
from lora_lightning.cli.study_slurm import check_fixed
from tests.studies.small_study import save_study


def test_the_script_runs_the_study_and_requeues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    path = save_study(folder)
    words = ["--jobs", "3", "--sbatch=--time=04:00:00", "--sbatch=--gpus=1", "--set=trainer.max_epochs=1"]
    assert main(["study", "slurm", str(path), *words, "--save_dir=$HOME/x"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=small\n#SBATCH --array=0-2\n")
    assert "#SBATCH --time=04:00:00\n#SBATCH --gpus=1\n" in script
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False).returncode == 0
    line = next(line for line in script.splitlines() if line.startswith("srun "))
    command = ["srun", "lora-lightning", "study", "run", str(path), "--set=trainer.max_epochs=1", "--save_dir=$HOME/x"]
    assert shlex.split(line) == command
    stub = 'srun() { return 75; }; scontrol() { echo "$@"; }; SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=2\n'
    ended = subprocess.run(["/bin/bash"], input=stub + script, text=True, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (75, "requeue 7_2\n")


def test_the_jobs_run_the_study_with_its_other_name_and_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--objective=test/loss", "--name=other"]
    assert main(["study", "slurm", str(save_study(tmp_path)), *words]) == 0
    script = capsys.readouterr().out
    assert "--job-name=other\n" in script
    assert shlex.split(next(line for line in script.splitlines() if line.startswith("srun ")))[-2:] == [
        "--name=other",
        "--objective=test/loss",
    ]


@pytest.mark.parametrize("option", ["--nodelist=a", "-N1", "--ntasks-per-node=1", "--nodes 1", "--account=me", "-A me"])
def test_other_options_of_sbatch_are_taken(option: str) -> None:
    check_fixed(option)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs is 0, but it must be at least 1"),
        (["--sbatch", "time"], "--sbatch 'time' is no option of sbatch"),
        (["--sbatch=--x\nrm -r /"], "is no option of sbatch"),
        (
            ["--sbatch=--array=0-9"],
            "'--array=0-9' contradicts the script; leave it out: give the number of jobs with --jobs",
        ),
        (["--sbatch=-a0-9"], "give the number of jobs with --jobs"),
        (["--sbatch=--ntasks=4"], "each job is one worker"),
        (["--sbatch=--time=1 -n 4"], "each job is one worker"),
        (["--sbatch=--ntasks-per-node=4"], "each job is one worker"),
        (["--sbatch=--nodes 2"], "each job is one worker"),
        (["--sbatch=--sig=B:TERM"], "the script asks for SIGUSR1"),
        (["--sbatch=--no-requeue"], "a job is queued again"),
        (["--set", "trainer.max_epochs"], "has no value"),
        (["--base", "missing.yaml"], "there is no base config missing.yaml"),
    ],
)
def test_mistakes_are_sentences(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "slurm", str(save_study(tmp_path)), *words]) == 2
    assert message in capsys.readouterr().err
