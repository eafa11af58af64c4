"""Arithmetic in the `derived` values of a study, such as `2 * r`: numbers and names alone, nothing is executed."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from lora_lightning.errors import ConfigurationError

LONGEST = 200  # characters of an expression
LARGEST_EXPONENT = 64
LARGEST = 1e15  # of every number; integers below it are exact as floats
OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"max": max, "min": min, "round": round, "sqrt": math.sqrt}
ALLOWED = "write numbers, names of axes, + - * / // % **, parentheses, and max, min, round or sqrt"


def evaluate_expression(text: str, values: Mapping[str, object]) -> int | float:
    """Evaluates an expression.

    Args:
        text: Such as `"2 * r"`.
        values: Values by name; an expression may use those that are numbers.

    Returns:
        A finite number; an `int` if it has no fraction.

    Raises:
        ConfigurationError: If the expression has anything but arithmetic, an unknown name, or no finite result.
    """
    if len(text) > LONGEST:
        msg = f"the expression {text[:40]!r}... is longer than {LONGEST} characters; {ALLOWED}"
        raise ConfigurationError(msg)
    try:
        number = _evaluate(ast.parse(text.strip(), mode="eval").body, values)
    except (SyntaxError, RecursionError, MemoryError) as error:
        msg = f"{text!r} is no arithmetic expression; {ALLOWED}"
        raise ConfigurationError(msg) from error
    except ConfigurationError as error:
        msg = f"the expression {text!r} {error}"
        raise ConfigurationError(msg) from error
    except (ArithmeticError, ValueError, TypeError) as error:
        msg = f"the expression {text!r} cannot be evaluated ({error})"
        raise ConfigurationError(msg) from error
    if isinstance(number, complex) or not math.isfinite(number):
        msg = f"the expression {text!r} is {number}, but a real, finite number is needed"
        raise ConfigurationError(msg)
    return int(number) if float(number).is_integer() else number


def _evaluate(node: Any, values: Mapping[str, object]) -> Any:
    if isinstance(node, ast.Constant) and _is_number(node.value):
        return _bounded(node.value)
    if isinstance(node, ast.Name):
        return _value_of(node.id, values)
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_evaluate(node.operand, values))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _evaluate(node.left, values), _evaluate(node.right, values)
        if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_EXPONENT:
            msg = f"has the exponent {right}, which may be at most {LARGEST_EXPONENT}"
            raise ConfigurationError(msg)
        return _bounded(OPERATIONS[type(node.op)](left, right))
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords
    if is_call and node.func.id in FUNCTIONS:
        return FUNCTIONS[node.func.id](*(_evaluate(argument, values) for argument in node.args))
    msg = f"contains {ast.unparse(node)!r}, which is not arithmetic; {ALLOWED}"
    raise ConfigurationError(msg)


def _bounded(number: Any) -> Any:
    if abs(number) > LARGEST:
        msg = f"reaches a number beyond {LARGEST:g}; no option needs one"
        raise ConfigurationError(msg)
    return number


def _value_of(name: str, values: Mapping[str, object]) -> object:
    if name not in values:
        msg = f"names {name!r}, but the axes are {', '.join(values) or 'none'}"
        raise ConfigurationError(msg)
    if not _is_number(values[name]):
        msg = f"names {name!r}, whose value {values[name]!r} is no number"
        raise ConfigurationError(msg)
    return values[name]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
