"""The words of --precision: what each means, and what is refused with the reason."""

import pytest

from framert.export.precision import ALLOWED, AUTO, PARTS, TARGETS, WORDS, parts
from framert.runtime.errors import ConfigError

FP32 = dict.fromkeys(PARTS, "fp32")


@pytest.mark.parametrize(
    ("given", "target", "expected"),
    [
        ("fp32", "onnx", {}),
        ("int8", "onnx", {"denoiser": "int8", "text_encoder": "int8"}),
        ("int4", "onnx", {"denoiser": "int4", "text_encoder": "int8"}),
        ("fp16", "onnx", {"denoiser": "fp16"}),
        ("fp8", "tensorrt", {"denoiser": "fp8", "text_encoder": "fp8"}),
        ("denoiser=int8", "onnx", {"denoiser": "int8"}),
        (" denoiser = int4 , text_encoder=int8 , vae=fp32", "onnx", {"denoiser": "int4", "text_encoder": "int8"}),
        ({"text_encoder": "int8"}, "onnx", {"text_encoder": "int8"}),
        ({}, "onnx", {}),
    ],
    ids=str,
)
def test_words_of_the_parts(given, target, expected):
    assert parts(given, target) == FP32 | expected


@pytest.mark.parametrize("target", TARGETS)
def test_auto_is_something_the_target_has(target):
    for part, word in parts(AUTO, target).items():
        assert word in ALLOWED[target][part]


@pytest.mark.parametrize(
    ("given", "target", "says"),
    [
        ("int7", "onnx", f"precision is 'int7'; choose one of {', '.join((*WORDS, AUTO))}, or give parts"),
        ("INT8", "onnx", "precision is 'INT8'"),
        ("", "onnx", "precision is ''"),
        ("unet=int8", "onnx", f"the part 'unet'; the parts are {', '.join(PARTS)}"),
        ("denoiser=int7", "onnx", "precision of denoiser is 'int7' for target 'onnx'; choose one of fp32, fp16"),
        ("vae=int8", "onnx", "precision of vae is 'int8' for target 'onnx'; choose one of fp32"),
        ("denoiser=", "onnx", "the entry 'denoiser='; give PART=WORD"),
        ("denoiser=int8,", "onnx", "the entry ''; give PART=WORD"),
        ("denoiser=int8,denoiser=int4", "onnx", "names denoiser twice"),
        ("fp8", "onnx", "no CPU multiplies float8; target tensorrt has it"),
        ("bf16", "onnx", "backend 'openvino' runs an fp32 bundle with precision='bf16'"),
        ("text_encoder=fp16", "tensorrt", "T5 overflows fp16"),
        ("int8", "coreml", "target is 'coreml'; choose one of onnx, tensorrt"),
        ({"denoiser": 8}, "onnx", "precision of denoiser is 8"),
        (8, "onnx", "precision is a int; give a word, or a mapping"),
    ],
    ids=str,
)
def test_what_is_not_allowed_is_named_with_what_is(given, target, says):
    with pytest.raises(ConfigError) as caught:
        parts(given, target)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
