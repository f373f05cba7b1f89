"""Unusual but good input gives a result, and the right one."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import framert
from framert.runtime.cli import main
from framert.runtime.tokenizer import PromptTruncatedWarning

SIDE = 32


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, threads=1)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def unusual_pictures():
    """{name: (file, the same picture as plain RGB)}."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    grey, rgb = Image.fromarray(pixels[..., 0]), Image.fromarray(pixels)
    alpha = Image.new("L", rgb.size, 255)
    alpha.paste(0, (0, 0, 24, 40))
    on_white = rgb.copy()
    on_white.paste("white", (0, 0, 24, 40))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    palette = rgb.quantize(16)
    cmyk = Image.fromarray(np.dstack([pixels, pixels[..., 0] // 2]), "CMYK")
    sideways = Image.Exif()
    sideways[0x0112] = 6
    wide = Image.fromarray(pixels.astype(np.uint16)[..., 0] * 257)
    return {
        "16-bit": (encoded(wide, "PNG"), grey.convert("RGB")),
        "grey": (encoded(grey, "PNG"), grey.convert("RGB")),
        "one bit": (encoded(grey.convert("1"), "PNG"), grey.convert("1").convert("RGB")),
        "alpha": (encoded(rgba, "PNG"), on_white),
        "palette": (encoded(palette, "PNG"), palette.convert("RGB")),
        "CMYK": (encoded(cmyk, "TIFF"), cmyk.convert("RGB")),
        "EXIF-rotated": (encoded(rgb, "PNG", exif=sideways), rgb.transpose(Image.Transpose.ROTATE_270)),
        "animation": (encoded(palette, "GIF", save_all=True, append_images=[palette]), palette.convert("RGB")),
        "one pixel": (encoded(rgb.crop((0, 0, 1, 1)), "PNG"), rgb.crop((0, 0, 1, 1))),
        "very wide": (encoded(rgb.resize((900, 2)), "PNG"), rgb.resize((900, 2))),
    }


@pytest.mark.parametrize(("data", "plain"), unusual_pictures().values(), ids=unusual_pictures().keys())
def test_unusual_pictures_are_read_as_what_they_show(data, plain, pipe, golden_bundle, tmp_path, capsys):
    (tmp_path / "given").write_bytes(data)
    common = {"size": (SIDE, SIDE), "steps": 1, "guidance": 1}
    result = pipe.run("image_to_depth", images=[tmp_path / "given"], **common)
    np.testing.assert_array_equal(result.pixels, pipe.run("image_to_depth", images=[plain], **common).pixels)
    words = ("--image", tmp_path / "given", "--size", f"{SIDE}x{SIDE}", "--steps", 1, "--guidance", 1, "--threads", 1)
    code = main([str(word) for word in ("run", golden_bundle, "image_to_depth", *words, "-o", tmp_path / "out.png")])
    assert (code, capsys.readouterr().out.split()) == (0, [str(tmp_path / name) for name in ("out.png", "out.npy")])


@pytest.mark.parametrize("pixels", [(1, 1), (900, 2), (2, 900)], ids=str)
def test_default_size_of_any_shape_is_allowed(pixels, pipe):
    result = pipe.run("image_to_depth", images=[Image.new("RGB", pixels)], steps=1, guidance=1)
    assert all(side % 16 == 0 and 16 <= side <= 512 for side in result.images[0].size)


def test_empty_prompt_is_fine_where_none_is_needed(pipe, given):
    result = pipe.run("image_to_depth", images=[given / "picture.png"], prompt="", size=(SIDE, SIDE), steps=1)
    assert np.isfinite(result.depth).all()


def test_prompt_of_10000_words_warns_and_gives_a_result(golden_bundle, tmp_path, capsys):
    prompt, out = "word " * 10_000, tmp_path / "out.png"
    pipe = framert.load(golden_bundle, threads=1)
    with pytest.warns(PromptTruncatedWarning, match="50010 tokens and the model reads 300; its end was dropped"):
        result = pipe.run("text_to_image", prompt=prompt, size=(SIDE, SIDE), steps=1)
    assert np.isfinite(result.pixels).all()
    words = ("text_to_image", "--prompt", prompt, "--size", f"{SIDE}x{SIDE}", "--steps", "1", "--quiet")
    assert main(["run", str(golden_bundle), *words, "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert re.fullmatch(r"framert: warning: the prompt has 50010 tokens .+\n", captured.err)
    with Image.open(out) as picture:
        assert json.loads(picture.text["framert"])["prompt"].count("word") == 10_000
