"""`lora-lightning study slurm`: prints a script for SLURM whose jobs are the workers of a study."""

import argparse
import re
import shlex
from itertools import pairwise
from pathlib import Path

from lora_lightning.errors import ConfigurationError

HELP = "print a SLURM script in which several jobs share the trials of a study"
EPILOG = """\
example:
  lora-lightning study slurm configs/studies/rank.yaml --jobs 4 --sbatch=--time=04:00:00 --sbatch=--gpus=1 > rank.sh
  sbatch rank.sh

A job that reaches its time limit, or is preempted, saves its step and is queued again. Each job is one worker, which is
one process: options of sbatch that would change this are refused.
"""
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=SIGUSR1@120
{lines}
srun {command}
status=$?
if [ $status -eq 75 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $status
"""
# What the script relies on: options of sbatch by long and short name, with the only value that they may have.
FIXED = {
    "array": ("a", None, "give the number of jobs with --jobs"),
    "ntasks": ("n", "1", "each job is one worker, and --jobs starts several"),
    "nodes": ("N", "1", "each job is one worker, and --jobs starts several"),
    "signal": ("", None, "the script asks for SIGUSR1 early enough to save the step"),
    "no-requeue": ("", None, "a job is queued again to resume its trial"),
}


def add_slurm_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study slurm`.

    Args:
        parser: The parser of the subcommand.
    """
    add = parser.add_argument
    add("study", metavar="STUDY.yaml", type=Path, help="the study")
    add("--jobs", type=int, default=2, metavar="N", help="number of jobs, each a worker (default: 2)")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="an option of sbatch; may be repeated")
    add("--base", action="append", default=[], metavar="CONFIG", help="as for study run")
    add("--objective", metavar="METRIC", help="as for study run")
    add("--name", help="as for study run")
    add("--set", action="append", default=[], dest="settings", metavar="OPTION=VALUE", help="as for study run")
    add("--save_dir", metavar="DIR", help="as for study run")


def run_slurm(options: argparse.Namespace) -> str:
    """Runs `lora-lightning study slurm`.

    Args:
        options: The parsed options.

    Returns:
        The script, which is also printed.

    Raises:
        ConfigurationError: If the study is wrong, or an option is.
    """
    from lora_lightning.studies.plan import plan_study  # noqa: PLC0415
    from lora_lightning.studies.study_file import read_study_file  # noqa: PLC0415

    if options.jobs < 1:
        msg = f"--jobs is {options.jobs}, but it must be at least 1"
        raise ConfigurationError(msg)
    for option in options.sbatch:
        if not re.fullmatch(r"-\S+( \S+)*", option):
            msg = f"--sbatch {option!r} is no option of sbatch; write it as --sbatch=--time=04:00:00"
            raise ConfigurationError(msg)
        check_fixed(option)
    base, replaced = [Path(base) for base in options.base], {"name": options.name, "objective": options.objective}
    study = plan_study(read_study_file(options.study, base, options.settings, **replaced)).study
    words = ["lora-lightning", "study", "run", str(options.study)]
    words += [f"--base={base}" for base in options.base] + [f"--set={setting}" for setting in options.settings]
    words += [f"--{option}={value}" for option, value in replaced.items() if value is not None]
    words += [f"--save_dir={options.save_dir}"] if options.save_dir else []
    lines = "".join(f"#SBATCH {option}\n" for option in options.sbatch)
    script = SCRIPT.format(name=study.name, last=options.jobs - 1, lines=lines, command=shlex.join(words))
    print(script, end="")
    return script


def check_fixed(words: str) -> None:
    """Refuses options of sbatch on which the script relies: of two that contradict each other, sbatch takes the last.

    Args:
        words: One or more options, such as `--time=04:00:00` or `-n 4`.

    Raises:
        ConfigurationError: Names the option, and what to do instead.
    """
    for word, following in pairwise([*words.split(), ""]):
        name, equals, value = word.partition("=")
        for long, (short, allowed, remedy) in FIXED.items():
            is_long = name.startswith("--") and name[2:] and (long.startswith(name[2:]) or name[2:].startswith(long))
            is_short = bool(short) and word.startswith(f"-{short}")
            given = (word[2:].lstrip("=") if is_short else value if equals else "") or following
            if (is_long or is_short) and given != allowed:
                msg = f"--sbatch {words!r} contradicts the script; leave it out: {remedy}"
                raise ConfigurationError(msg)
