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
# What a part can be made in, by target. The autoencoder and the conditioner run once and decide all steps: they compute
# in fp32, and their fp16 is of the weights as they are stored. T5 overflows fp16, in the residual stream too, where
# nothing cancels a factor.
ALLOWED: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "onnx": {
            "text_encoder": ("fp32", "int8", "int4"),
            "vae": ("fp32", "fp16"),
            "conditioner": ("fp32", "fp16"),
            "denoiser": ("fp32", "fp16", "int8", "int4"),
        },
        "tensorrt": {
            "text_encoder": ("fp32", "bf16", "int8", "int4", "fp8"),
            "vae": ("fp32",),
            "conditioner": ("fp32",),
            "denoiser": ("fp32", "fp16", "bf16", "int8", "int4", "fp8"),
        },
    }
)
# What a measured error does not say, by the manifest's name.
NOTES = MappingProxyType(
    {
        "float16": "of float16 weights in float32 arithmetic: onnxruntime's CPU provider removes the casts that round "
        "activations",
        "bfloat16": "of the graph in torch, operator by operator: onnxruntime has no bfloat16 products on the CPU",
    }
)
# Why a target has not what the other one has, and what does.
ABSENT = {
    "bf16": "onnxruntime has no bfloat16 products on the CPU; backend 'openvino' runs an fp32 bundle with "
    "precision='bf16', and target tensorrt has it",
    "fp8": "no CPU multiplies float8; target tensorrt has it, for compute capability 8.9 and above",
    "fp16": "T5 overflows fp16; take bf16 or int8",
}
# One word for everything: the parts it does not name here are fp32. 4 bits are for the large part alone.
TOGETHER: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {word: {"denoiser": word, "text_encoder": {"int4": "int8", "fp16": "fp32"}.get(word, word)} for word in WORDS}
)
BEST: Mapping[str, Mapping[str, str]] = MappingProxyType({"onnx": TOGETHER["int8"], "tensorrt": TOGETHER["bf16"]})
# An image encoder makes a few of a prompt's tokens, once, and stays as the autoencoder is.
PART_OF = MappingProxyType({"vae_encoder": "vae", "vae_decoder": "vae", "image_encoder": "vae"})


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
        _check(part, word, target)
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
        _check(part, own, target)
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


def _check(part: str, word: str, target: str) -> None:
    allowed = ALLOWED[target][part]
    if word not in allowed:
        why = f" ({ABSENT[word]})" if word in ABSENT and part in TOGETHER["int8"] else ""
        raise ConfigError(
            f"precision of {part} is {word!r} for target {target!r}{why}; choose one of {', '.join(allowed)}"
        )
