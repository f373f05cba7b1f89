"""Which precision each part of a bundle gets: the words a caller may use, and what they mean."""

from collections.abc import Mapping
from types import MappingProxyType

from framert.runtime.errors import ConfigError

PARTS = ("text_encoder", "vae", "conditioner", "denoiser")
TARGETS = ("onnx", "tensorrt")
AUTO = "auto"
# A word -> what the manifest calls it.
WORDS: Mapping[str, str] = MappingProxyType(
    {
        "fp32": "float32",
        "fp16": "float16",
        "bf16": "bfloat16",
        "int8": "int8",
        "int4": "int4",
        "fp8": "float8e4m3fn",
    }
)
# What a part can be made in. The autoencoder and the conditioner run once and decide every step: full precision, or
# weights stored in half of it. Multipliers of all layers come from the conditioner, and are kept in fp32.
ALLOWED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text_encoder": ("fp32", "int8", "int4", "fp8"),
        "vae": ("fp32",),
        "conditioner": ("fp32",),
        "denoiser": ("fp32", "int8", "int4", "fp8"),
    }
)
# One word for everything: the parts it does not name here are fp32. 4 bits are for the large part alone.
TOGETHER: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {word: {"denoiser": word, "text_encoder": "int8" if word == "int4" else word} for word in WORDS}
)
BEST: Mapping[str, Mapping[str, str]] = MappingProxyType({"onnx": TOGETHER["int8"], "tensorrt": TOGETHER["fp32"]})
PART_OF = MappingProxyType({"vae_encoder": "vae", "vae_decoder": "vae"})


def parts(precision: str | Mapping[str, str], target: str = "onnx") -> dict[str, str]:
    """Return the word of every part.

    Args:
        precision: one word for the whole bundle; "part=word" pairs joined by commas, or a mapping of them (the other
            parts are fp32); or "auto", the best for the target.
        target: "onnx" or "tensorrt".
    Raises: ConfigError that lists what is allowed.
    """
    if target not in TARGETS:
        raise ConfigError(f"target is {target!r}; choose one of {', '.join(TARGETS)}")
    chosen = dict.fromkeys(PARTS, "fp32")
    if isinstance(precision, str) and "=" not in precision:
        return chosen | _together(precision, target)
    pairs = _pairs(precision) if isinstance(precision, str) else precision
    if not isinstance(pairs, Mapping):
        raise ConfigError(f"precision is a {type(precision).__name__}; give a word, or a mapping of parts to words")
    for part, word in pairs.items():
        if part not in PARTS:
            raise ConfigError(f"precision names the part {part!r}; the parts are {', '.join(PARTS)}")
        _check(part, word)
        chosen[part] = word
    return chosen


def _together(word: str, target: str) -> dict[str, str]:
    if word == AUTO:
        return dict(BEST[target])
    if word not in WORDS:
        raise ConfigError(
            f"precision is {word!r}; choose one of {', '.join((*WORDS, AUTO))}, or give parts such as "
            "denoiser=int8,text_encoder=int8"
        )
    for part, own in TOGETHER[word].items():
        _check(part, own)
    return dict(TOGETHER[word])


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in text.split(","):
        part, equals, word = (side.strip() for side in item.partition("="))
        if not equals or not part or not word:
            raise ConfigError(
                f"precision has the entry {item.strip()!r}; give PART=WORD, such as denoiser=int8,text_encoder=int8"
            )
        if part in pairs:
            raise ConfigError(f"precision names {part} twice; give each part once")
        pairs[part] = word
    return pairs


def _check(part: str, word: str) -> None:
    if word not in ALLOWED[part]:
        known = f"choose one of {', '.join(ALLOWED[part])}"
        raise ConfigError(f"precision of {part} is {word!r}; {known}")
