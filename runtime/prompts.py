"""How each kind of OneDiffusion task writes its prompt. Every part is separated by one space, blank ones left out."""

from collections.abc import Mapping, Sequence

from framert.runtime.colors import COLORS, hexadecimal


def text(token: str, prompt: str) -> str:
    """``[[text2image]] a red cube``."""
    return _join(token, prompt)


def legend(token: str, prompt: str, kind: str, colors: Mapping[str, str]) -> str:
    """``[[semanticmap2image]] <#00FFFF cyan mask: red cube> caption``.

    Args:
        kind: "mask" or "boundingbox". colors: {thing: colour name}.
    """
    entries = (f"<{hexadecimal(COLORS[color])} {color} {kind}: {thing}>" for thing, color in colors.items())
    return _join(token, *entries, prompt)


def references(token: str, prompt: str, captions: Sequence[str], item: str = "") -> str:
    """``[[faceid]] [[img0]] target [[img1]] caption``; with an item ``<item: thing>`` before the first picture.

    Args:
        prompt: of the picture to make, which is picture 0. captions: of the given pictures, 1 and on.
    """
    pictures = (f"[[img{index}]] {caption.strip()}" for index, caption in enumerate((prompt, *captions)))
    return _join(token, f"<item: {item.strip()}>" if item.strip() else "", *pictures)


def _join(*parts: str) -> str:
    return " ".join(part.strip() for part in parts if part.strip())
