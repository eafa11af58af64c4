"""Where studies and diagnoses are saved unless `--save_dir` says otherwise. Imports nothing heavy, for `--help`."""

from pathlib import Path

STUDIES, DIAGNOSES = Path("lightning_logs/studies"), Path("lightning_logs/diagnoses")
