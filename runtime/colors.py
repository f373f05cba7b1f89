"""The colours by which masks and boxes name their things, as OneDiffusion was trained with."""

import difflib
from collections.abc import Mapping

from framert.runtime.errors import TaskError

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (0xFF, 0x00, 0x00),
    "lime": (0x00, 0xFF, 0x00),
    "blue": (0x00, 0x00, 0xFF),
    "yellow": (0xFF, 0xFF, 0x00),
    "magenta": (0xFF, 0x00, 0xFF),
    "cyan": (0x00, 0xFF, 0xFF),
    "orange": (0xFF, 0xA5, 0x00),
    "purple": (0x80, 0x00, 0x80),
    "brown": (0xA5, 0x2A, 0x2A),
    "green": (0x00, 0x80, 0x00),
    "pink": (0xFF, 0xC0, 0xCB),
    "teal": (0x00, 0x80, 0x80),
    "darkorange": (0xFF, 0x8C, 0x00),
    "blueviolet": (0x8A, 0x2B, 0xE2),
    "darkgreen": (0x00, 0x64, 0x00),
    "orangered": (0xFF, 0x45, 0x00),
    "navy": (0x00, 0x00, 0x80),
    "gold": (0xFF, 0xD7, 0x00),
    "turquoise": (0x40, 0xE0, 0xD0),
    "orchid": (0xDA, 0x70, 0xD6),
}


def hexadecimal(color: Rgb) -> str:
    """``#00FFFF`` for cyan."""
    return "#{:02X}{:02X}{:02X}".format(*color)


def check_legend(legend: object) -> dict[str, str]:
    """Return {thing: colour name} from {thing: colour name or #RRGGBB}, in the same order.

    Raises: TaskError if it is empty, names an unknown colour, uses one twice or names a thing twice, or a thing's name
    would break the prompt's syntax.
    """
    if not isinstance(legend, Mapping) or not legend:
        raise TaskError(f"colors is {legend!r}; give at least one thing and its colour, such as {{'red cube': 'cyan'}}")
    by_code = {hexadecimal(color): name for name, color in COLORS.items()}
    names: dict[str, str] = {}
    for thing, color in legend.items():
        if not isinstance(thing, str) or not thing.strip() or set(thing) & set("<>[]"):
            raise TaskError(f"colors names a thing {thing!r}; give words without < > [ ]")
        name = by_code.get(str(color).upper(), str(color).lower())
        if name not in COLORS:
            close = difflib.get_close_matches(name, COLORS, n=1)
            hint = f"did you mean {close[0]}?" if close else "use one of them."
            raise TaskError(f"colors gives {thing!r} the colour {color!r}; known are {', '.join(COLORS)}: {hint}")
        if name in names.values():
            raise TaskError(f"colors uses {name} for two things; give each thing a colour of its own")
        if thing.strip() in names:
            raise TaskError(f"colors names {thing.strip()!r} twice; give each thing one colour")
        names[thing.strip()] = name
    return names
