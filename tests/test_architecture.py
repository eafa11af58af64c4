"""Who may import whom: mathematics knows no Lightning, nothing imports to the right, and the root holds rooms alone."""

import ast
import importlib
import re
from pathlib import Path
from types import FunctionType

import pytest

PACKAGE = Path(__file__).parent.parent / "lora_lightning"
LAYERS = (
    {"errors"},
    {"compat"},
    {"metrics", "statistics", "lora"},
    {"runs"},
    {"analysis", "backbones"},
    {"figures"},
    {"loggers"},
    {"tasks", "datamodules"},
    {"callbacks"},
    {"configuration"},
    {"training"},
    {"artefacts", "reports"},
    {"planning"},
    {"studies"},
    {"diagnosis"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a module imports, anywhere in it."""
    return set().union(*map(imported_by, ast.walk(ast.parse(path.read_text()))))


def imported_by(node: ast.AST) -> set[str]:
    """Dotted names that a statement imports; empty if it is no import."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


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


POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
POSIX_SIGNALS = {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_importing_needs_no_posix(path: Path) -> None:
    """Windows lacks these modules and signals: they are imported where they are used, after asking for them."""
    tree = ast.parse(path.read_text())
    at_import = {name.partition(".")[0] for node in tree.body for name in imported_by(node)}
    assert not at_import & POSIX
    guarded = "hasattr(signal, " in path.read_text()
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & POSIX_SIGNALS
    assert guarded or not used


def test_the_root_holds_rooms_alone() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= LEVEL.keys()


@pytest.mark.parametrize(
    "room", sorted(path.parent for path in PACKAGE.glob("*/__init__.py")), ids=lambda room: room.name
)
def test_a_room_says_what_lives_there_and_what_never_does(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert text.count(". ") + text.count(".\n") + text.endswith(".") >= 2
    assert re.search(r"\b(nothing|never|no)\b", text, re.IGNORECASE)


NAME_OF_PEFT = re.compile(
    r"\blora_[ABE]\b|lora_embedding_|lora_magnitude_vector|ranknum|trainable_tokens_delta|token_adapter"
    r"|original_module|base_layer|base_model\.model|\.lora_(?!alpha|dropout|bias)|^lora_$"
    r"|modules_to_save\.|(?<!model\.lora)\.modules_to_save"
)


def texts_of(path: Path) -> list[str]:
    """The strings in a module, and the fixed parts of its f-strings, without docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_of_pefts_parameters_are_taken_apart_in_one_module(path: Path) -> None:
    found = [text for text in texts_of(path) if NAME_OF_PEFT.search(text)]
    # `compat` lists PEFT's attributes for the test that finds out when one has gone.
    allowed = {Path("lora/parameter_names.py"), Path("compat/peft.py")}
    assert bool(found) is (path.relative_to(PACKAGE) in allowed), found


@pytest.mark.parametrize("path", sorted((PACKAGE / "lora").rglob("*.py")), ids=lambda path: path.name)
def test_mathematics_knows_no_lightning(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.split(".")[0] in {"lightning", "torchmetrics", "datasets"}]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_private_names() -> set[str]:
    """Private functions, attributes and variables that this package defines itself."""
    names: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


METHODS = (FunctionType, property, classmethod, staticmethod)
OWN = own_private_names() | {"_exit", "_fields", "_replace"}  # and documented names of os and of named tuples
OUTSIDE_COMPAT = [path for path in MODULES if room_of(path) != "compat"]


@pytest.mark.parametrize("path", OUTSIDE_COMPAT, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_other_packages_are_used_in_compat_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            assert node.attr in OWN, f"line {node.lineno} uses {node.attr}, which is no name of ours"
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("lora_lightning"):
            assert not [alias.name for alias in node.names if is_private(alias.name)], f"line {node.lineno}"


@pytest.mark.parametrize("path", OUTSIDE_COMPAT, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_method_of_another_package_is_overridden(path: Path) -> None:
    module = importlib.import_module(".".join(("lora_lightning", *path.relative_to(PACKAGE).with_suffix("").parts)))
    for cls in vars(module).values():
        if not isinstance(cls, type) or cls.__module__ != module.__name__:
            continue
        others = [base for base in cls.__mro__[1:] if not base.__module__.startswith("lora_lightning")]
        for name in [name for name, value in vars(cls).items() if is_private(name) and isinstance(value, METHODS)]:
            owners = [base.__module__ for base in others if name in vars(base) and base.__module__ != "enum"]
            assert not owners, f"{cls.__name__}.{name} overrides a private name of {owners[0]}"
