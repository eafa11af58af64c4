"""Who may import whom: mathematics knows no Lightning, and nothing imports to the right."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lora_lightning"
LAYERS = (
    {"errors"},
    {"early_signals", "lora", "metrics"},
    {"backbones", "checkpoint_files"},
    {"tasks", "datamodules"},
    {"callbacks"},
    {"parser", "config_files", "null_values", "summary", "resuming", "strategies", "lost_processes"},
    {"run_config", "refusals", "option_checks"},
    {"cli"},
    {"main"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_to_the_right(path: Path) -> None:
    here = room_of(path)
    for name in imports_of(path):
        if name.startswith("lora_lightning."):
            there = name.split(".")[1]
            if there in LEVEL:  # otherwise a name of the package itself, such as __version__
                assert LEVEL[there] < LEVEL[here] or there == here, f"{here} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "lora").glob("*.py")), ids=lambda path: path.name)
def test_mathematics_knows_no_lightning(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.split(".")[0] in {"lightning", "torchmetrics", "datasets"}]
