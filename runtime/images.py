"""Pictures in and out: read anything Pillow opens safely, fit it to a frame, choose and check frame sizes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from framert.runtime.errors import ImageError, ShapeError

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[Any]

MAX_PIXELS = 64_000_000  # checked before decoding: 192 MB as RGB
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # no EPS or the like: Pillow runs Ghostscript on those
ACCEPTED = f"give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture of at most {MAX_PIXELS // 1_000_000} megapixels"

# height / width -> (height, width), OneDiffusion's buckets at a native side of 512
ASPECTS: dict[float, tuple[int, int]] = {
    0.25: (256, 1024),
    0.26: (256, 992),
    0.27: (256, 960),
    0.28: (256, 928),
    0.32: (288, 896),
    0.33: (288, 864),
    0.35: (288, 832),
    0.4: (320, 800),
    0.42: (320, 768),
    0.48: (352, 736),
    0.5: (352, 704),
    0.52: (352, 672),
    0.57: (384, 672),
    0.6: (384, 640),
    0.68: (416, 608),
    0.72: (416, 576),
    0.78: (448, 576),
    0.82: (448, 544),
    0.88: (480, 544),
    0.94: (480, 512),
    1.0: (512, 512),
    1.07: (512, 480),
    1.13: (544, 480),
    1.21: (544, 448),
    1.29: (576, 448),
    1.38: (576, 416),
    1.46: (608, 416),
    1.67: (640, 384),
    1.75: (672, 384),
    2.0: (704, 352),
    2.09: (736, 352),
    2.4: (768, 320),
    2.5: (800, 320),
    2.89: (832, 288),
    3.0: (864, 288),
    3.11: (896, 288),
    3.62: (928, 256),
    3.75: (960, 256),
    3.88: (992, 256),
    4.0: (1024, 256),
}
ASPECT_NATIVE_SIDE = 512


def read_image(source: ImageSource) -> Image.Image:
    """Return ``source`` as an upright 8-bit RGB picture; the first frame of an animation.

    Transparent parts are laid on white, 16-bit greys keep their upper 8 bits (rounded), EXIF rotation is applied,
    palettes, CMYK and grey are converted.

    Args:
        source: a file name, a Pillow image, or an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of bool, uint8,
            uint16 or of floats in 0..1.
    Raises: ImageError if there is no such file, it is damaged or of another format, is larger than MAX_PIXELS
        (known before anything is decoded) or has no pixels.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "the array")
    if isinstance(source, Image.Image):
        _check_pixels(source.size, "the picture")
        return _to_rgb(source, "the picture")
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"{type(source).__name__} is not a picture; give a file name, a Pillow image or a numpy array")
    path = Path(source)
    if not os.path.isfile(path):  # unlike Path.is_file, says False for a name that no file can have
        raise ImageError(f"{path} is {'not a file' if os.path.lexists(path) else 'missing'}; {ACCEPTED}")
    try:
        image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large to be decoded safely; {ACCEPTED}") from error
    except Exception as error:  # damaged headers raise nearly anything: OSError, SyntaxError, struct.error, ValueError
        raise ImageError(f"{path} cannot be read as a picture; {ACCEPTED}") from error
    with image:
        _check_pixels(image.size, str(path))
        return _to_rgb(image, str(path))


def fit(image: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return ``image`` cropped about its centre to the aspect of ``size`` and resized to it, in -1..1.

    The resize is bilinear with half-pixel centres and without antialiasing, as the published model was trained:
    a better filter changes its results.

    Args:
        image: an RGB picture.
        size: (width, height) in pixels.
    Returns: (height, width, 3) float32.
    """
    width, height = size
    # Every division rounds down, as the published code's do: another rounding moves the picture by a pixel.
    if image.height * width > image.width * height:
        crop_width, crop_height = image.width, max(1, image.width * height // width)
    else:
        crop_width, crop_height = max(1, image.height * width // height), image.height
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    pixels = np.asarray(image)[top : top + crop_height, left : left + crop_width]
    upper, lower, down = _neighbours(crop_height, height)
    before, after, right = _neighbours(crop_width, width)
    # Picking the source rows first keeps the float32 copy as small as the result.
    rows = _blend(pixels[upper], pixels[lower], down[:, None, None])
    resized = _blend(rows[:, before], rows[:, after], right[:, None])
    return np.asarray(resized / 127.5 - 1, dtype=np.float32)


def to_picture(pixels: NDArray[np.floating[Any]]) -> Image.Image:
    """Return (h, w, 3) values in 0..1 as an 8-bit RGB picture: clipped, then rounded to the nearest step.

    Raises: ShapeError for another shape or values that are not finite.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ShapeError(f"a picture has shape (height, width, 3), got {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise ShapeError("the pixels are not finite (NaN or infinity); check the noise and the precision of the bundle")
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def aspect_size(width: int, height: int, native_side: int, multiple: int) -> tuple[int, int]:
    """Return the (width, height) at which a picture of ``width`` x ``height`` is processed by default.

    The entry of ASPECTS with the closest height / width, scaled from 512 to ``native_side`` and rounded to
    ``multiple`` pixels.
    """
    closest = min(ASPECTS, key=lambda ratio: abs(ratio - height / width))
    tall, wide = (
        max(multiple, int(side * native_side / ASPECT_NATIVE_SIDE / multiple + 0.5) * multiple)
        for side in ASPECTS[closest]
    )
    return wide, tall


def check_size(size: tuple[int, int], multiple: int, maximum: int) -> tuple[int, int]:
    """Return ``size`` as (width, height) if both sides are multiples of ``multiple`` pixels and at most ``maximum``.

    Raises: ImageError otherwise; it names the nearest allowed size.
    """
    allowed = f"sides are multiples of {multiple} from {multiple} to {maximum // multiple * multiple}"
    pair = isinstance(size, list | tuple) and len(size) == 2
    if not pair or not all(isinstance(side, int | np.integer) for side in size):
        raise ImageError(f"size is {size!r}; it is (width, height) in whole pixels, and {allowed}")
    width, height = (int(side) for side in size)
    nearest = tuple(
        min(max(int(side / multiple + 0.5), 1), max(maximum // multiple, 1)) * multiple for side in (width, height)
    )
    if (width, height) != nearest:
        raise ImageError(f"size is {width}x{height}; {allowed}: use {nearest[0]}x{nearest[1]}")
    return width, height


def _check_pixels(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height == 0:
        raise ImageError(f"{name} is {width} x {height} pixels, so there is nothing in it; {ACCEPTED}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels; {ACCEPTED}")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"the array has shape {array.shape}; a picture is (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)")
    _check_pixels((array.shape[1], array.shape[0]), "the array")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = _upper_bits(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError("the array holds floats outside 0..1 or not finite; divide by 255, or give it as uint8")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"the array has dtype {array.dtype}; give bool, uint8, uint16, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        upright = _upright(image)
        if upright.mode.startswith("I"):
            return Image.fromarray(_upper_bits(np.asarray(upright))).convert("RGB")
        if upright.mode == "F":
            return _from_array(np.asarray(upright)).convert("RGB")
        if upright.has_transparency_data:
            straight = upright.convert("LA") if upright.mode == "La" else upright
            pixels = straight.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
        return upright.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged data
        raise ImageError(f"{name} is damaged or of an unknown kind ({error}); {ACCEPTED}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the picture, which is whole
        return image


def _upper_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit values to 8 bits; Pillow holds some of them in 32-bit integers."""
    return np.asarray(np.rint(np.clip(array, 0, 65535) / 257), dtype=np.uint8)


def _neighbours(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of ``target`` pixels: the two source pixels it lies between, and the weight of the second."""
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    first = position.astype(np.intp)
    return first, np.minimum(first + 1, source - 1), (position - first).astype(np.float32)


def _blend(first: NDArray[Any], second: NDArray[Any], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(first * (1 - weight) + second * weight, dtype=np.float32)
