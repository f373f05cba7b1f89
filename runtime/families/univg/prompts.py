"""How each kind of UniVG task writes its prompt. Parts are separated by one space, blank ones left out.

``<t2i>``, ``<ie>``, ``<lg>``, ``<depth>`` and ``<p>`` are the paper's; the other tokens, and how a layout's legend is
written, are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from framert.runtime.tokenizer import PLACEHOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Everything a prompt is written from.

    token: the task's, such as ``<t2i>``. prompt: the caller's words. colors: {thing: colour name} of a layout's blocks.
    captions: of the reference pictures, in order.
    """

    token: str
    prompt: str = ""
    colors: Mapping[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()


def text(words: Words) -> str:
    """``<t2i> a red cube``."""
    return _join(words.token, words.prompt)


def layout(words: Words) -> str:
    """``<lg> <cyan: red cube> <gold: ball> caption``."""
    return _join(words.token, *(f"<{color}: {thing}>" for thing, color in words.colors.items()), words.prompt)


def references(words: Words) -> str:
    """``<p> caption <p> caption of the next prompt``: each reference with what it shows, then what to make."""
    return _join(*(f"{PLACEHOLDER} {caption.strip()}" for caption in words.captions), words.prompt)


def _join(*parts: str) -> str:
    return " ".join(part.strip() for part in parts if part.strip())
