"""Names of the devices on which runs were trained."""

from collections.abc import Iterable

Device = tuple[str | None, str | None]  # its type and its model, as far as they are known


def device_names(devices: Iterable[Device]) -> tuple[str, ...]:
    """Names different devices; one whose model is not known may be any other of its type.

    Args:
        devices: Type and model of each.

    Returns:
        Models, and the types of which none is known; without devices that were not recorded.
    """
    models: dict[str, set[str]] = {}
    for kind, model in devices:
        if kind is not None:
            models.setdefault(kind, set()).update([model] if model else [])
    return tuple(sorted(name for kind, own in models.items() for name in own or {kind}))
