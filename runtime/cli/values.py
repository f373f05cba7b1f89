"""Values of options: text to numbers, pairs and lists, with messages that say what was expected."""

import argparse
import re


def size(text: str) -> tuple[int, int]:
    """``512x384`` -> (512, 384); ``512`` -> (512, 512)."""
    match = re.fullmatch(r"\s*(-?\d+)\s*(?:[xX]\s*(-?\d+)\s*)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; give WIDTHxHEIGHT in pixels, such as 512x384, or the side of a square"
        )
    return int(match[1]), int(match[2] or match[1])


def numbers(text: str) -> list[float]:
    """``0,20,-40`` -> [0.0, 20.0, -40.0]."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        message = f"{text!r} is not a list of numbers; give one per camera, such as 0,20,40"
        raise argparse.ArgumentTypeError(message) from error


def color(text: str) -> tuple[str, str]:
    """``red cube=cyan`` -> ("red cube", "cyan")."""
    thing, equals, name = text.rpartition("=")
    if not equals or not thing.strip() or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COLOUR; give such as 'red cube=cyan'")
    return thing.strip(), name.strip()


def box(text: str) -> tuple[str, tuple[float, ...]]:
    """``red cube=8,24,40,56`` -> ("red cube", (8.0, 24.0, 40.0, 56.0))."""
    thing, _, edges = text.rpartition("=")
    try:
        found = tuple(float(edge) for edge in edges.split(","))
    except ValueError:
        found = ()
    if not thing.strip() or len(found) != 4:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=LEFT,TOP,RIGHT,BOTTOM; give such as 'red cube=8,24,40,56'"
        )
    return thing.strip(), found


def integers(text: str) -> list[int]:
    """``64,0,64,0`` -> [64, 0, 64, 0]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 64,0,64,0") from error


def join_negative_values(words: list[str]) -> list[str]:
    """Write ``--azimuth -20,0`` as ``--azimuth=-20,0``: argparse takes a value with a minus for an option."""
    joined: list[str] = []
    for word in words:
        option = joined[-1] if joined else ""
        if re.match(r"-[\d.]", word) and option.startswith("--") and "=" not in option and len(option) > 2:
            joined[-1] = f"{option}={word}"
        else:
            joined.append(word)
    return joined
