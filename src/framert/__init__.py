"""framert: run diffusion transformers that treat every image task as a sequence of frames.

The public names are loaded on first use, so that ``import framert`` needs numpy and pillow alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framert.runtime.cameras import Cameras as Cameras
    from framert.runtime.engine import Engine as Engine
    from framert.runtime.errors import FramertError as FramertError
    from framert.runtime.pipeline import Pipeline as Pipeline
    from framert.runtime.pipeline import load as load
    from framert.runtime.request import Request as Request
    from framert.runtime.result import Result as Result
    from framert.runtime.ticket import Ticket as Ticket

__version__ = "0.1.0"

_HOMES = {
    "Cameras": "framert.runtime.cameras",
    "Engine": "framert.runtime.engine",
    "FramertError": "framert.runtime.errors",
    "Pipeline": "framert.runtime.pipeline",
    "Request": "framert.runtime.request",
    "Result": "framert.runtime.result",
    "Ticket": "framert.runtime.ticket",
    "load": "framert.runtime.pipeline",
}

__all__ = ["Cameras", "Engine", "FramertError", "Pipeline", "Request", "Result", "Ticket", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"framert has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
