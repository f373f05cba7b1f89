"""Pictures: everything Pillow can hold becomes the same RGB, and the fit is the published one to the last digit."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framert.runtime import images
from framert.runtime.errors import ImageError, ShapeError
from framert.runtime.images import aspect_size, check_size, fit, read_image, to_picture

GOLDEN = Path(__file__).parents[1] / "golden"
CONDITIONED = [
    "image_to_depth",
    "semantic_map_to_image",
    "identity_three_references",
    "image_to_multiview",
    "camera_pose",
]


def picture(width: int = 12, height: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def vae():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL.from_pretrained(GOLDEN / "checkpoint" / "vae", low_cpu_mem_usage=False)

    def encode(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            mean = model.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]).latent_dist.mean
        return mean[0].numpy() * model.config.scaling_factor

    return encode


@pytest.mark.parametrize("name", CONDITIONED)
def test_fit_gives_the_golden_condition_latents(name, vae):
    call = json.loads((GOLDEN / f"pipeline_{name}.json").read_text())
    with np.load(GOLDEN / f"pipeline_{name}.npz") as file:
        latents = file["all_latents_over_1_658"][0] * 1.658
    frames = range(0, len(latents), 2 if call.get("is_multiview") else 1)
    given = [frame for frame in frames if not call["denoise_mask"][frame]]
    for frame, file_name in zip(given, call["images"], strict=True):
        found = vae(fit(read_image(GOLDEN / file_name), (call["width"], call["height"])))
        assert np.linalg.norm(found - latents[frame]) <= 1e-5 * np.linalg.norm(latents[frame])


@pytest.mark.parametrize("source", [(12, 7), (7, 12), (1, 1), (64, 3), (33, 65)], ids=str)
@pytest.mark.parametrize("target", [(8, 8), (16, 4), (5, 21)], ids=str)
def test_fit_is_torch_interpolate_of_the_centre_crop(source, target):
    functional = pytest.importorskip("torch.nn.functional")
    from torch import from_numpy

    (width, height), (wide, tall) = source, target
    taller = height * wide > width * tall
    crop = (width, max(1, width * tall // wide)) if taller else (max(1, height * wide // tall), height)
    left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
    image = picture(width, height)
    cropped = np.asarray(image)[top : top + crop[1], left : left + crop[0]].astype(np.float64)
    exact = functional.interpolate(from_numpy(cropped).permute(2, 0, 1)[None], size=(tall, wide), mode="bilinear")
    found = fit(image, target)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact[0].permute(1, 2, 0).numpy() / 127.5 - 1, atol=1e-6)


def test_fit_at_the_same_size_changes_nothing():
    image = picture(16, 32)
    np.testing.assert_array_equal(np.asarray(to_picture((fit(image, (16, 32)) + 1) / 2)), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_become_rgb(mode):
    image = picture().convert(mode)
    found = read_image(image)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "gif"), ("P", "png"), ("RGB", "bmp"), ("CMYK", "tif")]
)
def test_files_become_rgb(mode, suffix, tmp_path):
    image = picture().convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    found = read_image(str(tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P with transparency", "La", "RGBa"])
def test_transparent_pixels_become_white(mode, tmp_path):
    image = Image.new("RGBA", (4, 4), (10, 10, 10, 255))
    image.putpixel((1, 2), (10, 10, 10, 0))
    if mode == "P with transparency":
        grey = Image.new("P", (4, 4), 0)
        grey.putpalette([10, 10, 10, 200, 0, 0])
        grey.putpixel((1, 2), 1)
        grey.save(tmp_path / "a.png", transparency=1)
        found = np.asarray(read_image(tmp_path / "a.png"))
    elif mode == "PA":
        indexed = Image.new("PA", (4, 4), (1, 255))
        indexed.putpalette([200, 0, 0, 10, 10, 10])
        indexed.putpixel((1, 2), (1, 0))
        found = np.asarray(read_image(indexed))
    else:
        found = np.asarray(read_image(image.convert("LA" if mode == "La" else mode).convert(mode)))
    expected = np.full((4, 4, 3), 10)
    expected[2, 1] = 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "array", "mode I"])
def test_sixteen_bits_keep_their_brightness(suffix, tmp_path):
    values = np.array([[0, 257, 32896], [65535, 1000, 40000]], np.uint16)
    given: object = values
    if suffix == "mode I":
        given = Image.fromarray(values.astype(np.int32))
    elif suffix != "array":
        given = tmp_path / f"a.{suffix}"
        Image.fromarray(values).save(given)
    expected = np.rint(values / 257)
    np.testing.assert_array_equal(np.asarray(read_image(given)), np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation, tmp_path):
    upright = np.asarray(picture())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), upright)


def test_damaged_exif_does_not_lose_the_picture(tmp_path):
    picture().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(picture()))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[True, False]]), [[255, 0]]),
        (np.array([[[7], [9]]], np.uint8), [[7, 9]]),
        (np.array([[0.0, 1.0]]), [[0, 255]]),
        (np.array([[0.2, 0.5]], np.float32), [[51, 128]]),
    ],
    ids=["bool", "one channel", "float64", "float32"],
)
def test_arrays(array, expected):
    np.testing.assert_array_equal(np.asarray(read_image(array))[..., 0], expected)


def test_pixels_of_a_result_can_be_given_again():
    pixels = np.asarray(picture(), np.float32) / 255
    np.testing.assert_array_equal(np.asarray(read_image(pixels)), np.asarray(picture()))


def bomb(path: Path, width: int, height: int) -> Path:
    """A small PNG whose header promises width x height pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("size", [(8001, 8000), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)], ids=str)
def test_decompression_bombs_are_refused_before_decoding(size, tmp_path):
    with pytest.raises(ImageError, match="64 megapixels"):
        read_image(bomb(tmp_path / "a.png", *size))


def truncated(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.png", "missing"),
        (lambda folder: folder, "not a file"),
        (lambda folder: written(folder / "a.png", b""), "cannot be read"),
        (lambda folder: written(folder / "a.png", b"not a picture"), "cannot be read"),
        (lambda folder: written(folder / "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"), "cannot be read"),
        (lambda folder: written(folder / "a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40), "cannot be read"),
        (lambda folder: truncated(folder / "a.png"), "damaged"),
        (lambda folder: truncated(folder / "a.jpg"), "damaged"),
        (lambda folder: truncated(folder / "a.webp"), "damaged|cannot be read"),
        (lambda folder: truncated(folder / "a.tif"), "damaged|cannot be read"),
        (lambda folder: bomb(folder / "a.png", 0, 5), "cannot be read|nothing in it"),
        (lambda folder: Image.new("RGB", (0, 5)), "nothing in it"),
        (lambda folder: np.zeros((0, 4, 3), np.uint8), "nothing in it"),
        (lambda folder: np.zeros((4, 4, 2), np.uint8), "shape"),
        (lambda folder: np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (lambda folder: np.zeros((4, 4), np.int64), "int64"),
        (lambda folder: np.full((4, 4), 200.0), "0..1"),
        (lambda folder: np.full((4, 4), np.nan), "0..1"),
        (lambda folder: np.full((4, 4), -0.5), "0..1"),
        (lambda folder: np.broadcast_to(np.uint8(0), (9000, 9000)), "megapixels"),
        (lambda folder: b"bytes", "bytes is not a picture"),
        (lambda folder: None, "NoneType is not a picture"),
    ],
)
def test_bad_sources_are_named_in_one_line(make, message, tmp_path):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_pillow_limits_are_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    read_image(picture())
    assert before == Image.MAX_IMAGE_PIXELS


def test_to_picture_rounds_and_clips():
    pixels = np.array([[[-1, 0, 0.4999 / 255], [0.5001 / 255, 254.6 / 255, 2]]])
    np.testing.assert_array_equal(np.asarray(to_picture(pixels)), [[[0, 0, 0], [1, 255, 255]]])


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((4, 4, 4)), np.full((2, 2, 3), np.nan)])
def test_to_picture_refuses(pixels):
    with pytest.raises(ShapeError):
        to_picture(pixels)


@pytest.mark.parametrize(
    ("picture_size", "native_side", "expected"),
    [
        ((1200, 1543), 512, (448, 576)),
        ((600, 889), 512, (416, 608)),
        ((100, 100), 512, (512, 512)),
        ((9999, 1), 512, (1024, 256)),
        ((1, 9999), 512, (256, 1024)),
        ((100, 100), 64, (64, 64)),
        ((400, 100), 64, (128, 32)),
        ((640, 480), 128, (144, 112)),
        ((640, 480), 1024, (1152, 832)),
    ],
)
def test_aspect_size(picture_size, native_side, expected):
    assert aspect_size(*picture_size, native_side, 16) == expected


@pytest.mark.parametrize("native_side", [64, 128, 512, 1024])
def test_every_aspect_passes_its_own_check(native_side):
    for ratio in images.ASPECTS:
        size = aspect_size(1000, round(1000 * ratio), native_side, 16)
        assert check_size(size, 16, 2 * native_side) == size


def test_check_size_accepts_numpy_integers():
    assert check_size((np.int64(32), 64), 16, 64) == (32, 64)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 64), "use 96x64"),
        ((72, 64), "use 80x64"),
        ((0, 64), "use 16x64"),
        ((-16, 64), "use 16x64"),
        ((64, 4096), "use 64x2048"),
        ((64.0, 64), "whole pixels"),
        ((64,), "whole pixels"),
        ("64x64", "whole pixels"),
        (64, "whole pixels"),
        (None, "whole pixels"),
    ],
)
def test_check_size_refuses(size, message):
    with pytest.raises(ImageError, match=message):
        check_size(size, 16, 2048)
