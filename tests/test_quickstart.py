"""README's first command on real weights: it learns what a bag of words can't."""

import json
from pathlib import Path

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from lora_lightning.cli.main import main
from lora_lightning.datamodules.intent_grammar import OUT_OF_SCOPE, generate_intents

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def bag_of_words_accuracy() -> float:
    """In-scope test accuracy of a logistic regression over word counts."""
    corpus = generate_intents()
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    model.fit(*zip(*corpus["train"], strict=True))
    texts, intents = zip(*[row for row in corpus["test"] if row[1] != OUT_OF_SCOPE], strict=True)
    return float(model.score(texts, intents))


def test_the_quickstart_beats_a_bag_of_words(tmp_path: Path) -> None:
    words = ["fit", f"--config={CONFIG}", f"--trainer.logger.save_dir={tmp_path}", f"--data.cache_dir={tmp_path}"]
    assert main([*words, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]) == 0
    metrics = json.loads((tmp_path / "quickstart/version_0/summary.json").read_text())["metrics"]
    assert metrics["test/in_scope_accuracy"] > bag_of_words_accuracy() + 0.1
    assert metrics["test/out_of_scope_auroc"] > 0.85
