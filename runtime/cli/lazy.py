"""Imports that only some commands may make: framert.export and its torch."""

from importlib import import_module
from typing import Any

from framert.runtime.errors import BackendError


def export_module(name: str, command: str) -> Any:
    """Return ``framert.export.<name>``. Raises: BackendError that names the extra if a package is not installed."""
    try:
        return import_module(f"framert.export.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "a package").split(".")[0]
        if package == "framert":  # our own mistake, not a missing extra
            raise
        raise BackendError(
            f"framert {command} needs {package}, which is not installed; pip install 'framert[export]'"
        ) from error
