"""Which products stay in fp32 although their part is quantized: whole blocks, or one kind of product of every block."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from framert.runtime.errors import ConfigError

QUANTIZED = ("int8", "int4", "fp8")  # whose products are rewritten one by one; the 16-bit words change the whole graph
PARTS: Mapping[str, str] = {"denoiser": "transformer", "text_encoder": "text_encoder"}  # and the checkpoint's folders
ENDS = ("first", "last")
# Of NextDiT, T5 (in a folder of its own where there are several text encoders) and MM-DiT. CLIP is small and stays.
_BLOCK = re.compile(r"(?:layers|(?:text_encoder(?:_\d)?\.)?encoder\.block|transformer_blocks)\.(\d+)\.")
_KIND = re.compile(r"\.([A-Za-z_]\w*(?:\.\d+)?)\.weight(?:_transpose)?$")


@dataclass(frozen=True, slots=True)
class KeepHigh:
    """items: "first", "last", numbers of blocks, names of products."""

    items: tuple[str, ...] = ()

    def chosen(self, names: Sequence[str]) -> frozenset[str]:
        """Return those of the products of repeated blocks that are not kept: what is quantized.

        Args:
            names: of their weights, as the checkpoint stores them or as values of a graph.
        Raises: ConfigError if there is no such block or product, or nothing is left.
        """
        found = {name: int(match[1]) for name in names if (match := _BLOCK.match(name)) is not None}
        last = max(found.values(), default=-1)
        numbers = {"first": 0, "last": last} | {str(number): number for number in range(last + 1)}
        if unknown := [item for item in self.items if item.isdecimal() and item not in numbers]:
            raise ConfigError(f"keep_high names block {unknown[0]}; the blocks are 0 to {last}")
        blocks = {numbers[item] for item in self.items if item in numbers}
        kinds = [item for item in self.items if item not in numbers]
        present = sorted({_kind(name) for name in found})
        if missing := [item for item in kinds if item not in present]:
            raise ConfigError(
                f"keep_high names {missing[0]!r}; give {', '.join(ENDS)}, a block's number (0 to {last}), or a product "
                f"of the blocks: {', '.join(present)}"
            )
        chosen = frozenset(name for name, block in found.items() if block not in blocks and _kind(name) not in kinds)
        if found and not chosen:
            raise ConfigError(f"keep_high keeps every product ({', '.join(self.items)}); take precision fp32 instead")
        return chosen


def parse(given: str | Mapping[str, str | Sequence[str]] | None, words: Mapping[str, str]) -> dict[str, KeepHigh]:
    """Return what is kept, by part.

    Args:
        given: "PART=ITEM,ITEM ..." or a mapping of parts to items; an item is "first" or "last" (block), the number of
            a block, or a product's name, which is then kept in every block.
        words: precision by part.
    Raises: ConfigError for another form, or a part that is not quantized.
    """
    kept: dict[str, KeepHigh] = {}
    for part, items in _pairs(given).items():
        if part not in PARTS:
            raise ConfigError(f"keep_high names the part {part!r}; the parts that are quantized are {', '.join(PARTS)}")
        if words[part] not in QUANTIZED:
            raise ConfigError(
                f"keep_high names {part}, whose precision is {words[part]}; only {', '.join(QUANTIZED)} leave products "
                "to keep"
            )
        kept[part] = KeepHigh(tuple(dict.fromkeys(str(int(item)) if item.isdecimal() else item for item in items)))
    return kept


def _pairs(given: str | Mapping[str, str | Sequence[str]] | None) -> dict[str, list[str]]:
    if given is None:
        return {}
    pairs: dict[str, list[str]] = {}
    entries = [text.partition("=")[::2] for text in given.split()] if isinstance(given, str) else [*given.items()]
    for part, items in entries:
        split = [item.strip() for item in items.split(",")] if isinstance(items, str) else list(items)
        if not part or not split or not all(isinstance(item, str) and item for item in split):
            raise ConfigError(
                f"keep_high has {part!r} with {items!r}; give PART=ITEM,ITEM, such as denoiser=first,last"
            )
        if part in pairs:
            raise ConfigError(f"keep_high names {part} twice; give each part once")
        pairs[part] = split
    return pairs


def _kind(name: str) -> str:
    match = _KIND.search(name)
    return match[1] if match is not None else ""
