"""Bad input, from Python and from the command line: one sentence, exit code 2, nothing half written.

Each refusal is checked for saying what was given and what is allowed or to do. Checkpoints are in tests/export.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest

import framert
from framert.runtime.errors import (
    BackendError,
    ConfigError,
    FramertError,
    ImageError,
    ShapeError,
    TaskError,
)

SIDE = 32
ORBIT = framert.Cameras.orbit([0, 20, 40], [20, 20, 20], [3, 3, 3])
ORBIT_WORDS = ("--azimuth", "0,20,40", "--elevation", "20", "--distance", "3")


@dataclass(frozen=True, kw_only=True)
class Case:
    """says: parts of the message. arguments: for ``run``, beside a prompt, a size and one step.

    words: the same on the command line, beside the same; None where it cannot be said there.
    """

    name: str
    error: type[FramertError]
    says: tuple[str, ...]
    task: str = "text_to_image"
    arguments: dict[str, object] = field(default_factory=dict)
    words: tuple[str, ...] | None = None


def noise(value=0.0, shape=(1, 16, SIDE // 8, SIDE // 8), dtype=np.float32):
    return np.full(shape, value, dtype)


STEPS = "give a whole number from 1 to 1000"
SIZES = "sides are multiples of 16 from 16 to 512"
GUIDANCE = "give a number from 0 to 1000"
SEEDS = "give a whole number from 0 to 2^63 - 1"
PICTURES = "give a PNG, JPEG, WEBP, TIFF, BMP, GIF or PPM picture of at most 64 megapixels"


def option(name, python, words, error, *says):
    """A value of one option, the same in Python and (if it can be written) on the command line."""
    flag = f"--{name.replace('_', '-')}"
    return Case(
        name=f"{name} {words if words is not None else repr(python)[:20]}",
        error=error,
        says=says,
        arguments={name: python},
        words=None if words is None else (f"{flag}={words}",),
    )


def image(name, error, *says, task="image_to_depth", images=("picture.png",), words=(), **arguments):
    """A task on the pictures of the folder."""
    given = tuple(word for path in images for word in ("--image", path))
    return Case(
        name=name,
        error=error,
        says=says,
        task=task,
        arguments={"images": list(images), **arguments},
        words=given + words,
    )


CASES = (
    # tasks, solvers, numbers
    Case(name="unknown task", task="paint", error=TaskError, says=("'paint'", "text_to_image", "edit"), words=()),
    Case(name="task misspelt", task="deblurr", error=TaskError, says=("did you mean deblur?",), words=()),
    option("solver", "ddim", "ddim", ConfigError, "'ddim'", "choose one of euler, heun, dpmpp_2m"),
    option("solver", None, None, ConfigError, "None", "choose one of euler"),
    option("steps", 0, "0", ConfigError, "steps is 0", STEPS),
    option("steps", -3, "-3", ConfigError, "steps is -3", STEPS),
    option("steps", 10**12, str(10**12), ConfigError, "steps is 1000000000000", STEPS),
    option("steps", 2.5, None, ConfigError, "steps is 2.5", STEPS),
    option("guidance", -1, "-1", ConfigError, "guidance is -1", GUIDANCE),
    option("guidance", float("nan"), "nan", ConfigError, "guidance is nan", GUIDANCE),
    option("guidance", float("inf"), "inf", ConfigError, "guidance is inf", GUIDANCE),
    option("guidance", 1e30, "1e30", ConfigError, "guidance is 1e+30", GUIDANCE),
    option("guidance", "4", None, ConfigError, "guidance is '4'", GUIDANCE),
    option("seed", -1, "-1", ConfigError, "seed is -1", SEEDS),
    option("seed", 2**63, str(2**63), ConfigError, "seed is 9223372036854775808", SEEDS),
    option("seed", "abc", None, ConfigError, "seed is 'abc'", SEEDS),
    option("seed", None, None, ConfigError, "seed is None", SEEDS),
    option("count", 0, "0", ConfigError, "count is 0", "at least 1"),
    option("count", -2, "-2", ConfigError, "count is -2", "at least 1"),
    option("count", "2", None, ConfigError, "count is '2'", "at least 1"),
    # sizes
    option("size", (33, 32), "33x32", ImageError, "size is 33x32", SIZES, "use 32x32"),
    option("size", (0, 32), "0x32", ImageError, "size is 0x32", SIZES),
    option("size", (-64, 64), "-64x64", ImageError, "size is -64x64", SIZES),
    option("size", (10**9, 64), f"{10**9}x64", ImageError, "size is 1000000000x64", SIZES, "use 512x64"),
    option("size", 64, None, ImageError, "size is 64;", "(width, height)"),
    option("size", (float("nan"), 64), None, ImageError, "size is (nan, 64)", SIZES),
    # prompts
    option("prompt", "", "", TaskError, "text_to_image needs a prompt", "say what"),
    option("prompt", " \n\t", " \n\t", TaskError, "text_to_image needs a prompt"),
    option("prompt", None, None, TaskError, "the prompt is a NoneType", "give a string"),
    option("prompt", b"bytes", None, TaskError, "the prompt is a bytes", "give a string"),
    option("prompt", [], None, ConfigError, "the list of prompts is empty", "at least one"),
    option("prompt", ["x", 3], None, TaskError, "the prompt is a int", "give a string"),
    option("prompt", "\ud800", None, TaskError, "lone surrogates", "valid Unicode"),
    option("negative_prompt", None, None, TaskError, "negative_prompt is None", "give a string"),
    # noise
    option("noise", noise(np.nan), None, ShapeError, "noise must be floating point without NaN or infinity"),
    option("noise", noise(np.inf), None, ShapeError, "noise must be floating point without NaN or infinity"),
    option("noise", noise(1e300, dtype=float), None, ShapeError, "noise must be floating point without NaN"),
    option("noise", noise(dtype=int), None, ShapeError, "noise must be floating point"),
    option("noise", noise(shape=(16, 2, 2)), None, ShapeError, "(16, 2, 2)", "needs (1, 16, 4, 4)"),
    option("noise", [[1.0], [2.0, 3.0]], None, ShapeError, "noise is not an array", "(1, 16, 4, 4)"),
    option("noise", noise(1e38), None, FramertError, "NaN or infinity", "noise"),
    # pictures
    image("no image", TaskError, "0 images were given and image_to_depth takes 1", "--image", images=()),
    image("two images", TaskError, "2 images were given", "takes 1", images=("picture.png",) * 2),
    image("four images", TaskError, "4 images", "takes 1 to 3", images=("picture.png",) * 4, task="identity"),
    image("one view", TaskError, "1 images", "takes at least 2", task="camera_pose"),
    Case(
        name="images is a name",
        task="image_to_depth",
        error=TaskError,
        says=("images is a str", "give a list"),
        arguments={"images": "picture.png"},
    ),
    image("missing image", ImageError, "nowhere.png is missing", PICTURES, images=("nowhere.png",)),
    image("name too long", ImageError, "is missing", PICTURES, images=("x" * 400 + ".png",)),
    image("folder as image", ImageError, "views is not a file", PICTURES, images=("views",)),
    image("text as image", ImageError, "notes.png cannot be read as a picture", PICTURES, images=("notes.png",)),
    image("empty file", ImageError, "empty.png cannot be read as a picture", PICTURES, images=("empty.png",)),
    image("truncated PNG", ImageError, "truncated.png is damaged", PICTURES, images=("truncated.png",)),
    image("truncated JPEG", ImageError, "truncated.jpg is damaged", PICTURES, images=("truncated.jpg",)),
    image("bomb", ImageError, "bomb.png", PICTURES, images=("bomb.png",)),
    image("small bomb", ImageError, "small_bomb.png", PICTURES, images=("small_bomb.png",)),
    image("PostScript", ImageError, "drawing.eps cannot be read", PICTURES, images=("drawing.eps",)),
    Case(
        name="NaN in an array",
        task="image_to_depth",
        error=ImageError,
        says=("floats outside 0..1 or not finite", "divide by 255"),
        arguments={"images": [np.full((8, 8, 3), np.nan)]},
    ),
    Case(
        name="array without pixels",
        task="image_to_depth",
        error=ImageError,
        says=("0 x 8 pixels", PICTURES),
        arguments={"images": [np.zeros((8, 0, 3), np.uint8)]},
    ),
    # what tasks take besides
    image("no colours", TaskError, "image_to_semantic needs colors", "--color", task="image_to_semantic"),
    image(
        "unknown colour",
        TaskError,
        "'mauve'",
        "known are red",
        task="image_to_boxes",
        colors={"cube": "mauve"},
        words=("--color", "cube=mauve"),
    ),
    image(
        "one colour twice",
        TaskError,
        "uses cyan for two things",
        "a colour of its own",
        task="image_to_boxes",
        colors={"cube": "cyan", "ball": "cyan"},
        words=("--color", "cube=cyan", "--color", "ball=cyan"),
    ),
    image("no hole", TaskError, "inpaint needs hole", "--hole FILE", task="inpaint"),
    image(
        "hole of another size",
        TaskError,
        "the hole is 8 x 8 pixels and the picture 48 x 40",
        task="inpaint",
        hole="small.png",
        words=("--hole", "small.png"),
    ),
    image(
        "hole without white",
        TaskError,
        "no white pixel",
        "white is filled",
        task="inpaint",
        hole="black.png",
        words=("--hole", "black.png"),
    ),
    image(
        "captions without pictures",
        TaskError,
        "2 captions were given for 1 images",
        task="identity",
        captions=["a", "b"],
        words=("--caption", "a", "--caption", "b"),
    ),
    image("no item", TaskError, "subject needs item", "--item", task="subject"),
    image(
        "what another task takes",
        TaskError,
        "image_to_depth does not take item",
        "for subject",
        item="cube",
        words=("--item", "cube"),
    ),
    # cameras
    image("no cameras", TaskError, "needs cameras", "--azimuth", task="image_to_multiview"),
    image(
        "as many cameras as pictures",
        TaskError,
        "3 cameras were given for 3 images",
        "one for each view to make",
        task="image_to_multiview",
        images=("picture.png",) * 3,
        cameras=ORBIT,
        words=ORBIT_WORDS,
    ),
    image(
        "cameras for other pictures",
        TaskError,
        "3 cameras were given for 2 images",
        "one per image",
        task="camera_pose",
        images=("picture.png",) * 2,
        cameras=ORBIT,
        words=ORBIT_WORDS,
    ),
    Case(
        name="too many views",
        task="text_to_multiview",
        error=TaskError,
        says=("40 frames", "at most 32"),
        arguments={"cameras": framert.Cameras.orbit(range(20), [0] * 20, [3] * 20)},
        words=("--azimuth", ",".join(map(str, range(20))), "--elevation", "0", "--distance", "3"),
    ),
    Case(
        name="views that are not square",
        task="text_to_multiview",
        error=TaskError,
        says=("size is 64x32", "square"),
        arguments={"cameras": ORBIT, "size": (64, 32)},
        words=(*ORBIT_WORDS, "--size", "64x32"),
    ),
    Case(
        name="cameras of another kind",
        task="text_to_multiview",
        error=TaskError,
        says=("cameras is a list", "framert.Cameras.orbit"),
        arguments={"cameras": [0, 20, 40]},
    ),
)


@pytest.fixture(scope="module")
def pipe(golden_bundle):
    return framert.load(golden_bundle, threads=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python_refuses(case, pipe, workplace, refuses):
    arguments = {"prompt": "x", "size": (SIDE, SIDE), "steps": 1, **case.arguments}
    with refuses(case.error, *case.says):
        pipe.run(case.task, **arguments)


@pytest.mark.parametrize("case", [case for case in CASES if case.words is not None], ids=lambda case: case.name)
def test_command_line_refuses(case, golden_bundle, workplace, refused):
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of the tests, where they are no errors
        line = refused(golden_bundle, case.task, *case.words)
    for part in case.says:
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"mask": None}, TaskError, ("mask is None", "0 (given) or 1 (generate)")),
        ({"mask": []}, TaskError, ("mask is []", "0 (given) or 1 (generate)")),
        ({"mask": [2]}, TaskError, ("mask is [2]", "0 (given) or 1 (generate)")),
        ({"mask": 1}, TaskError, ("mask is 1", "0 (given) or 1 (generate)")),
        ({"mask": [0], "images": ["picture.png"]}, TaskError, ("[0] leaves nothing to generate",)),
        ({"mask": [0, 1]}, TaskError, ("0 images were given and mask [0, 1] has 1",)),
        ({"mask": [1], "multiview": True}, TaskError, ("mask [1] has 1 frames", "give pairs")),
        ({"mask": [1, 0], "multiview": True}, TaskError, ("given ray frames", "framert.Cameras.orbit")),
        ({"mask": [1, 0], "cameras": ORBIT}, TaskError, ("3 cameras were given for the 1 views",)),
        ({"mask": [1, 1], "multiview": True, "size": (64, 32)}, TaskError, ("size is 64x32", "square")),
        ({"mask": [1] * 33}, TaskError, ("33 frames", "at most 32")),
    ],
    ids=str,
)
def test_raw_frames_are_refused(arguments, error, says, pipe, workplace, refuses):
    with refuses(error, *says):
        pipe.generate(**{"prompt": "x", "size": (SIDE, SIDE), "steps": 1, **arguments})


def test_unknown_keywords_are_errors(pipe, golden_bundle):
    with pytest.raises(TypeError, match="stepz"):
        pipe.run("text_to_image", prompt="x", stepz=3)
    with pytest.raises(TypeError, match="device"):
        framert.load(golden_bundle, device="cpu")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: framert.Cameras.orbit([0, 20], [0], [3]), ("2 and 1 and 1 entries", "one of each per camera")),
        (lambda: framert.Cameras.orbit([], [], []), ("at least one",)),
        (lambda: framert.Cameras.orbit(["a"], [0], [3]), ("lists of numbers",)),
        (lambda: framert.Cameras.orbit([float("nan")], [0], [3]), ("must be finite",)),
        (lambda: framert.Cameras.orbit([0], [0], [0]), ("distances above 0",)),
        (lambda: framert.Cameras.orbit([0], [0], [3], focal=0), ("focal must be above 0",)),
        (lambda: framert.Cameras.orbit([0], [0], [3], focal=float("nan")), ("focal", "not finite")),
        (lambda: framert.Cameras.orbit([0], [0], [3], focal="wide"), ("focal", "numbers")),
        (lambda: framert.Cameras.from_matrices(np.zeros((2, 4, 4))), ("view 0 is not a rigid pose",)),
        (lambda: framert.Cameras.from_matrices(np.eye(4)), ("has shape (4, 4)", "(views, 4, 4)")),
        (lambda: framert.Cameras.from_matrices(np.eye(4)[None], np.diag([500, 500, 1])), ("look like pixels",)),
    ],
)
def test_cameras_are_refused(make, says, refuses):
    with refuses(TaskError, *says):
        make()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--azimuth", "0,20", "--elevation", "0,0,0", "--distance", "3"), "2 and 3 and 3 entries"),
        (("--azimuth", "0,20", "--elevation", "0", "--distance", "0"), "distances above 0"),
        (("--azimuth", "0,nan", "--elevation", "0", "--distance", "3"), "must be finite"),
        (("--azimuth", "0,20", "--elevation", "0", "--distance", "3", "--focal", "-1"), "focal must be above 0"),
        (("--focal", "2"), "cameras lack --azimuth and --elevation and --distance"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_command_line_refuses_cameras(words, says, golden_bundle, workplace, refused):
    assert says in refused(golden_bundle, "text_to_multiview", *words)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((1, 1, 16, 4), (1,), (1, 3, 64), (1, 3)), ("(1, 1, 16, 4)",)),
        (((1, 1, 16, 4, 4), (2,), (1, 3, 64), (1, 3)), ("(2,)",)),
        (((1, 1, 16, 4, 4), (1,), (1, 3, 5), (1, 3)), ("(1, 3, 5)",)),
        (((1, 1, 16, 4, 4), (1,), (1, 3, 64), (1, 2)), ("(1, 2)",)),
        (((1, 1, 3, 4, 4), (1,), (1, 3, 64), (1, 3)), ("(1, 1, 3, 4, 4)",)),
    ],
    ids=str,
)
def test_velocity_refuses_shapes(shapes, says, pipe, refuses):
    with refuses(ShapeError, *says):
        pipe.velocity(*(np.ones(shape, np.float32) for shape in shapes))


@pytest.mark.parametrize(
    ("options", "flags", "error", "says"),
    [
        ({"backend": "cuda"}, ("--backend", "cuda"), BackendError, ("'cuda'", "choose one of onnxruntime")),
        ({"backend": ""}, ("--backend", ""), BackendError, ("''", "choose one of onnxruntime")),
        ({"threads": 0}, ("--threads", "0"), ConfigError, ("threads is 0", "from 1 to 1024")),
        ({"threads": -1}, ("--threads", "-1"), ConfigError, ("threads is -1", "from 1 to 1024")),
        ({"threads": 10**9}, ("--threads", str(10**9)), ConfigError, ("threads is 1000000000", "from 1 to 1024")),
        ({"threads": "2"}, None, ConfigError, ("threads is '2'", "from 1 to 1024")),
    ],
    ids=str,
)
def test_backends_and_threads_are_refused(options, flags, error, says, golden_bundle, workplace, refused, refuses):
    with refuses(error, *says):
        framert.load(golden_bundle, **options)
    if flags is not None:
        line = refused(golden_bundle, "text_to_image", *flags)
        assert all(part in line for part in says)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8192"])
def test_engine_limits_are_refused(pipe, value):
    with pytest.raises(ConfigError, match=r"max_tokens is .*; give a whole number of at least 1, or None"):
        pipe.engine(max_tokens=value)


def test_request_beyond_the_engine_is_refused(pipe):
    request = framert.Request(task="text_to_image", prompt="x", size=(SIDE, SIDE), steps=1)
    with pytest.raises(ConfigError, match="needs 8 tokens per call, this engine takes 4; give a smaller size"):
        pipe.engine(max_tokens=4).submit(request)
