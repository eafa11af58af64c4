"""Train, read the run, evaluate and predict from Python; the same works in a notebook.

pip install -e ".[quickstart]"
python examples/train_in_python.py                  # less than two minutes on two CPU cores
python examples/train_in_python.py --max_steps 20   # a first look
"""

import argparse

from lora_lightning import RunRecord, evaluate, predict, train

CONFIG = "configs/quickstart.yaml"
QUERIES = ["wake me up at seven", "what is the meaning of life"]


def compare_ranks(ranks: list[int], max_steps: int) -> list[RunRecord]:
    """Trains one run per rank; `lora_alpha` follows, so that the scaling stays the same.

    Args:
        ranks: Values of `model.lora.r`.
        max_steps: Optimizer steps per run; -1 for as many as the config says.

    Returns:
        The finished runs.
    """
    runs = []
    for r in ranks:
        overrides = {"model.lora.r": r, "model.lora.lora_alpha": 2 * r, "trainer.max_steps": max_steps}
        run = train(CONFIG, overrides)
        accuracy, share = run.metric("test/in_scope_accuracy"), 100 * (run.trainable_share or 0)
        print(f"r = {r}: {accuracy:.3f} in scope, {share:.2f} % of the parameters trained, {run.timings.fit:.0f} s")
        runs.append(run)
    return runs


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    parser.add_argument("--max_steps", type=int, default=-1)
    options = parser.parse_args()
    run = compare_ranks(options.ranks, options.max_steps)[-1]
    print(f"{run.folder}: {run.state}, best by {run.monitor}, adapter in {run.adapter}")
    print(f"loss over training: {[round(value, 3) for value in run.curves['val/loss'].values]}")
    print(f"again on the validation split: {evaluate(run, 'val')['val/in_scope_accuracy']:.3f}")
    for row in predict(run, QUERIES):
        print(row)


if __name__ == "__main__":
    main()
