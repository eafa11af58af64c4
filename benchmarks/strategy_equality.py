"""Do all training strategies arrive at the same weights? Prints a table and JSON.

The reference is one process with batch size 32. Two processes with batch size 16, under DDP and FSDP2, see the same
rows in the same steps. Gradient accumulation over four batches of 8 sees the same rows in a step only if an epoch is
one step, so it is compared on 32 rows, with a reference of its own. There is no dropout. The table shows ||w -
w_reference|| / ||w_reference|| over all trainable parameters, read from the checkpoints.

All other options are passed to `lora-lightning fit` in every run.

Example:
    python benchmarks/strategy_equality.py --steps 20
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path

import torch
from processes import run_in_processes
from torch import Tensor

from lora_lightning.datamodules.intent_grammar import generate_intents

CONFIGS = Path(__file__).parent.parent / "configs"
# Number of processes and further options, by strategy.
WAYS: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "DDP": (2, ["--trainer.strategy=ddp"]),
    "FSDP2": (2, [f"--config={CONFIGS / 'trainer/fsdp2.yaml'}"]),
}
ACCUMULATED = "gradient accumulation"
NO_DROPOUT = ["--model.base_dropout=0", "--model.lora.lora_dropout=0"]
# Some CPUs would otherwise compute with 4-bit weights in bfloat16.
NF4 = ["--model.quantization.bits=4", "--model.quantization.compute_dtype=float32"]
# Further options and strategies, by adaptation method; FSDP2 refuses quantized weights.
ADAPTATIONS: dict[str, tuple[list[str], list[str]]] = {
    "LoRA": (NO_DROPOUT, ["DDP", "FSDP2"]),
    "full fine-tuning": ([NO_DROPOUT[0], "--model.lora=null"], ["DDP", "FSDP2"]),
    "QLoRA (NF4)": ([*NO_DROPOUT, *NF4], ["DDP"]),
}


def words_of(way: str, words: list[str], batch_size: int, folder: Path) -> list[str]:
    """The command line of one run.

    Args:
        way: One of `WAYS`.
        words: Options of `fit`.
        batch_size: Total batch size of all processes.
        folder: Parent folder of the runs of all strategies.

    Returns:
        Arguments of `lora-lightning`.
    """
    processes, more = WAYS[way]
    size = [f"--data.batch_size={batch_size // processes}", f"--trainer.devices={processes}"]
    place = [f"--trainer.logger.save_dir={folder / way}", "--trainer.logger.name=run"]
    return ["fit", *words, *more, *size, *place, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def weights(folder: Path) -> dict[str, Tensor]:
    """Trained weights of the only run below a folder, from its last checkpoint."""
    (path,) = folder.rglob("last.ckpt")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return {name: tensor.double() for name, tensor in state.items() if tensor.ndim}


def relative_difference(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Distance of two states relative to the norm of the reference, with all tensors as one vector."""
    if found.keys() != reference.keys():
        msg = f"the tensors differ: {sorted(found.keys() ^ reference.keys())[:3]}"
        raise SystemExit(msg)
    differences = [torch.linalg.vector_norm(found[name].double() - tensor) for name, tensor in reference.items()]
    norms = [torch.linalg.vector_norm(tensor.double()) for tensor in reference.values()]
    return float(torch.stack(differences).norm() / torch.stack(norms).norm())


def compare_ways(words: list[str], ways: list[str], batch_size: int, folder: Path) -> dict[str, float]:
    """Trains with several strategies and compares each with one process.

    Args:
        words: Options of `fit`.
        ways: Names in `WAYS`.
        batch_size: Total batch size of all processes.
        folder: Parent folder of the runs.

    Returns:
        The relative difference of the weights by strategy.
    """
    run_in_processes(1, [words_of("one process", words, batch_size, folder)])
    run_in_processes(2, [words_of(way, words, batch_size, folder) for way in ways])
    reference = weights(folder / "one process")
    return {way: relative_difference(weights(folder / way), reference) for way in ways}


def compare_accumulated(words: list[str], batch_size: int, folder: Path) -> float:
    """Trains with one batch per epoch, and with gradient accumulation over four batches of a quarter of the size.

    Args:
        words: Options of `fit`.
        batch_size: Number of rows in the data.
        folder: Parent folder of the runs.

    Returns:
        The relative difference of the weights.
    """
    parts = {"full": (batch_size, 1), ACCUMULATED: (batch_size // 4, 4)}
    runs = [
        [*words_of("one process", words, size, folder / name), f"--trainer.accumulate_grad_batches={times}"]
        for name, (size, times) in parts.items()
    ]
    run_in_processes(1, runs)
    return relative_difference(weights(folder / ACCUMULATED), weights(folder / "full"))


def save_rows(folder: Path, count: int) -> Path:
    """Writes rows of the quickstart's data with different lengths and intents to a CSV file."""
    pairs = generate_intents(0)["train"]
    path = folder / f"{count}_rows.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *pairs[:: len(pairs) // count][:count]])
    return path


def main() -> None:
    """Parses its own options and passes all others to `lora-lightning fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    options, rest = parser.parse_known_args()
    steps = [f"--trainer.max_steps={options.steps}", "--test_after_fit=false", "--trainer.limit_val_batches=1"]
    columns = [*list(WAYS)[1:], ACCUMULATED]
    rows = [f"| | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 1)}|"]
    found: dict[str, dict[str, float]] = {}
    for name, (adaptation, ways) in ADAPTATIONS.items():
        more = [*adaptation, *steps, *rest]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            few = save_rows(place, options.batch_size)
            quickstart = [f"--config={CONFIGS / 'quickstart.yaml'}", *more]
            table = [f"--config={CONFIGS / 'text_classification/minilm_lora.yaml'}", *more, f"--data.train_file={few}"]
            table += [f"--data.validation_file={few}", f"--trainer.max_epochs={options.steps}"]
            table += [f"--trainer.check_val_every_n_epoch={options.steps}"]
            found[name] = compare_ways(quickstart, ways, options.batch_size, place)
            found[name][ACCUMULATED] = compare_accumulated(table, options.batch_size, place)
        cells = [f"{found[name][way]:.1e}" if way in found[name] else "refused" for way in columns]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    print("\n".join(rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
