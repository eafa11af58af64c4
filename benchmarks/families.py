"""The page of model families, from the table in the code; writes docs/families.md.

Example:
    python benchmarks/families.py
"""

from pathlib import Path

from lora_lightning.lora.families import FAMILIES

PAGE = Path(__file__).parent.parent / "docs/families.md"
TOP = """# Model families

`python benchmarks/families.py` writes this page from `lora_lightning/lora/families.py`.

The presets of `model.lora.target_modules` know the architectures below, by the `model_type` in a model's `config.json`.
`attention` adds its column to that of `attention-qv`, and `attention-mlp` adds its column to both; names are the ends
of module names, and a model has those that its size and version need. `all-linear` needs no entry: it adapts every
linear layer of any architecture except the head. What a preset cannot reach, such as the experts of a mixture, which
are three-dimensional tensors, is named with its share of the weights when training starts.

| `model_type` | `attention-qv` | `attention` adds | `attention-mlp` adds |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The page's text."""
    known = sorted((name, family) for name, family in FAMILIES.items() if family.query_value)
    rows = [(name, *map(_cell, (family.query_value, family.attention_rest, family.mlp))) for name, family in known]
    return TOP + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
