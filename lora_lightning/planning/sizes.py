"""Sizes in bytes, as people write and read them."""

import re

from lora_lightning.errors import ConfigurationError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {f"{letter}iB".upper(): 1024**power for power, letter in enumerate("KMGT", start=1)}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Reads a size.

    Args:
        text: A number with a unit, such as `24GiB`, `16 GB` or `512MiB`.

    Returns:
        Bytes, at least 1.

    Raises:
        ConfigurationError: If it is no size.
    """
    found = SIZE.fullmatch(text)
    unit = UNITS.get(found[2].upper()) if found is not None else None
    size = round(float(found[1]) * unit) if found is not None and unit is not None else 0
    if size < 1:
        msg = f"--memory is {text!r}, but a size with its unit is needed, such as 24GiB or 512MiB."
        raise ConfigurationError(msg)
    return size


def format_size(size: float) -> str:
    """Writes a number of bytes with three digits, such as `1.33 MiB`.

    Args:
        size: In bytes.

    Returns:
        The number with a binary unit.
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1000:  # noqa: PLR2004  # three digits
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1024
    return f"{size:.3g} TiB" if abs(size) < 1000 else f"{size:,.0f} TiB"  # noqa: PLR2004
