"""Why a class that a user names, such as one in a file of theirs, cannot be used."""

import importlib
import inspect
import re
from collections.abc import Collection
from difflib import get_close_matches
from types import ModuleType

DOTTED_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"
WITH_KEY = re.compile(rf"class_path['\"]?\s*[:=]\s*['\"]?({DOTTED_NAME})(?![\w./-])")
BARE = re.compile(rf"\[?['\"]?({DOTTED_NAME})['\"]?\]?")


def class_paths_in(value: str) -> list[str]:
    """Finds class paths such as `my_module.MyCallback` in the value of an option.

    Args:
        value: As it was written, or as Python prints it.

    Returns:
        Every name after the key `class_path`, or the name that is the whole value. A file such as `train.csv` among
        other options is none: its module would be imported.
    """
    bare = BARE.fullmatch(value.strip())
    return [bare[1]] if bare else list(dict.fromkeys(WITH_KEY.findall(value)))


def class_path_problem(class_path: str, bases: Collection[str]) -> str | None:
    """Explains why a class cannot be used.

    Args:
        class_path: Dotted name; its module is imported.
        bases: Names of the classes of which it has to be a subclass; empty if any class will do.

    Returns:
        One sentence without a full stop; `None` if nothing is wrong with the class.
    """
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            return (
                f"there is no class {class_path!r}, because there is no module {error.name!r} in the working directory "
                "or among the installed packages"
            )
        return f"the module {module_name} cannot be imported: {error}"
    except Exception as error:  # noqa: BLE001  # a user's module may raise anything
        reason = " ".join(str(error).split())
        return f"the module {module_name} cannot be imported: it raises {type(error).__name__}: {reason}"
    return _class_problem(module, name, bases)


def _class_problem(module: ModuleType, name: str, bases: Collection[str]) -> str | None:
    found = getattr(module, name, None)
    if found is None:
        classes = [other for other, value in vars(module).items() if inspect.isclass(value)]
        close = get_close_matches(name, classes, n=2, cutoff=0.6)
        hint = f"; did you mean {' or '.join(map(repr, close))}" if close else ""
        return f"the module {module.__name__} has no class {name!r}{hint}"
    if not inspect.isclass(found):
        return f"{module.__name__}.{name} is not a class"
    if bases and not set(bases).intersection(parent.__name__ for parent in found.__mro__):
        return f"{module.__name__}.{name} is not a subclass of {' or '.join(dict.fromkeys(bases))}"
    return None
