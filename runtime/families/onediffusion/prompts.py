"""How each kind of OneDiffusion task writes its prompt. Parts are separated by one space, blank ones left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from framert.runtime.colors import COLORS, hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Everything a prompt is written from.

    token: the task's, such as ``[[text2image]]``. prompt: the caller's words, for the picture to make where there is
    one. colors: {thing: colour name}. captions: of the given pictures, in order. item: what they show.
    """

    token: str
    prompt: str = ""
    colors: Mapping[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    item: str = ""


def text(words: Words) -> str:
    """``[[text2image]] a red cube``."""
    return _join(words.token, words.prompt)


def masks(words: Words) -> str:
    """``[[semanticmap2image]] <#00FFFF cyan mask: red cube> caption``."""
    return _join(words.token, *_legend("mask", words.colors), words.prompt)


def boxes(words: Words) -> str:
    """``[[boundingbox2image]] <#00FFFF cyan boundingbox: red cube> caption``."""
    return _join(words.token, *_legend("boundingbox", words.colors), words.prompt)


def references(words: Words) -> str:
    """``[[faceid]] [[img0]] prompt [[img1]] caption``; an ``<item: thing>`` goes before the first picture."""
    item = f"<item: {words.item.strip()}>" if words.item.strip() else ""
    pictures = (f"[[img{index}]] {caption.strip()}" for index, caption in enumerate((words.prompt, *words.captions)))
    return _join(words.token, item, *pictures)


def _legend(kind: str, colors: Mapping[str, str]) -> list[str]:
    return [f"<{hexadecimal(COLORS[color])} {color} {kind}: {thing}>" for thing, color in colors.items()]


def _join(*parts: str) -> str:
    return " ".join(part.strip() for part in parts if part.strip())
