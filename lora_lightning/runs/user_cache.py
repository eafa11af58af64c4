"""Where files are kept that only save time, and that may be deleted whenever no command runs."""

import os
from pathlib import Path


def user_cache_folder() -> Path | None:
    """Names the folder for cached files, without creating it.

    Returns:
        `~/.cache/lora_lightning`, or the same below `$XDG_CACHE_HOME`; `None` for a user without a home folder, as in
        many containers.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lora_lightning"
    try:
        return root.expanduser()
    except RuntimeError:
        return None
