"""--keep-high: what it names, what is refused, and the graph that comes of it."""

import pytest

from framert.export import pipeline
from framert.export.keep_high import KeepHigh, parse
from framert.export.precision import parts
from framert.runtime.bundle import Bundle
from framert.runtime.cli.parser import parse as parse_line
from framert.runtime.errors import ConfigError

INT8 = parts("int8")
NAMES = [f"layers.{block}.attention.{kind}.weight" for block in range(12) for kind in ("wq", "wo")]
NAMES += [f"layers.{block}.feed_forward.w2.weight_transpose" for block in range(12)]


def kept(*items):
    return sorted(set(NAMES) - KeepHigh(items).chosen([*NAMES, "x_embedder.weight"]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("denoiser=first,last", {"denoiser": ("first", "last")}),
        ("denoiser=w2,03,w2 text_encoder=0", {"denoiser": ("w2", "3"), "text_encoder": ("0",)}),
        ({"denoiser": ["first"], "text_encoder": "last, wo"}, {"denoiser": ("first",), "text_encoder": ("last", "wo")}),
    ],
    ids=str,
)
def test_forms(given, expected):
    assert {part: each.items for part, each in parse(given, INT8).items()} == expected


@pytest.mark.parametrize(
    ("given", "words", "says"),
    [
        ("vae=first", INT8, "the part 'vae'; the parts that are quantized are denoiser, text_encoder"),
        ("denoiser=first", parts("fp32"), "denoiser, whose precision is fp32; only int8, int4, fp8"),
        ("denoiser=first", parts("fp16"), "whose precision is fp16"),
        ("text_encoder=0", parts("denoiser=int8"), "text_encoder, whose precision is fp32"),
        ("denoiser", INT8, "give PART=ITEM,ITEM"),
        ("denoiser=first,", INT8, "give PART=ITEM,ITEM"),
        ("denoiser=first denoiser=last", INT8, "names denoiser twice"),
        ({"denoiser": [0]}, INT8, "give PART=ITEM,ITEM"),
    ],
    ids=str,
)
def test_what_is_not_allowed_is_named_with_what_is(given, words, says):
    with pytest.raises(ConfigError) as caught:
        parse(given, words)
    assert says in str(caught.value)


def test_blocks_and_products_are_kept():
    assert kept() == []
    assert kept("first", "last") == sorted(name for name in NAMES if name.startswith(("layers.0.", "layers.11.")))
    assert kept("1") == sorted(name for name in NAMES if name.startswith("layers.1."))
    assert kept("w2") == sorted(name for name in NAMES if ".w2." in name)
    assert kept("w2", "first") == sorted({*kept("w2"), *kept("first")})


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (["12"], "keep_high names block 12; the blocks are 0 to 11"),
        (["w9"], "keep_high names 'w9'; give first, last, a block's number (0 to 11), or a product of the blocks: w2"),
        (["wq", "wo", "w2"], "keep_high keeps every product (wq, wo, w2); take precision fp32"),
    ],
    ids=str,
)
def test_what_the_model_does_not_have_is_refused(items, says):
    with pytest.raises(ConfigError) as caught:
        KeepHigh(tuple(items)).chosen(NAMES)
    assert says in str(caught.value)


def test_an_export_refuses_before_it_calibrates(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "prepare", lambda *_: pytest.fail("calibrated"))
    with pytest.raises(ConfigError, match="keep_high names block 99; the blocks are 0 to 2"):
        pipeline.export(checkpoint, tmp_path / "b", precision="int8", keep_high="denoiser=99", progress=False)
    with pytest.raises(ConfigError, match="whose precision is fp32"):
        pipeline.export(checkpoint, tmp_path / "b", keep_high={"denoiser": ["first"]}, progress=False)
    assert not (tmp_path / "b").exists()


def test_the_command_line_takes_it():
    words = ["export", "some", "-o", "b", "--precision", "int8", "--keep-high", "denoiser=first,w2", "text_encoder=0"]
    assert parse_line(words).keep_high == ["denoiser=first,w2", "text_encoder=0"]


@pytest.mark.slow
def test_what_is_kept_is_in_fp32_and_in_the_manifest(checkpoint, tmp_path):
    import onnx

    made = pipeline.export(
        checkpoint,
        tmp_path / "b",
        precision="denoiser=int8",
        keep_high="denoiser=first,w2",
        check=False,
        progress=False,
    )
    manifest = Bundle.open(made).manifest
    assert manifest.provenance["keep_high"] == {"denoiser": ["first", "w2"]}
    graph = onnx.load(made / "denoiser.onnx").graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.name.startswith("layers.")}
    kinds = {
        name: stored[name]
        for name in stored
        if name.removesuffix("_values").endswith(".weight_transpose") and not name.endswith("_scale")
    }
    high = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
    assert len(kinds) == 3 * 7
    assert high == {name for name in kinds if name.startswith("layers.0.") or ".w2." in name}
    assert {kinds[name] for name in set(kinds) - high} == {onnx.TensorProto.INT8}
