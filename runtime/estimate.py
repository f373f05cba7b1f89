"""Work and memory of a task from the model's shape alone: a roofline and a memory table. Computed, nothing runs.

The family is OneDiffusion's: products with weights on every model token, self-attention within a sequence, and text
attention. Norms, softmax, the text encoder and the autoencoder are left out of the time; together a few percent where
products run near their peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from framert.runtime.bundle import Bundle
from framert.runtime.devices import Device
from framert.runtime.errors import ConfigError
from framert.runtime.families import find_task
from framert.runtime.families.onediffusion.task_table import FrameTask
from framert.runtime.manifest import PRECISION_WORDS

PRECISIONS = ("fp16", "int8", "int4", "fp8")  # fp16 stands for bf16 too: both have the same size and rate
# Bits of a weight. int4: groups of 32 with a scale in fp32, as bundles hold them for ONNX Runtime.
BITS: Mapping[str, float] = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 5}
GIB = 2**30
VIEWS = 4  # of a multiview task, where the caller names none
TEXT = 80  # tokens of a prompt, likewise
DECODER_WIDTH, LIVE = 256, 3  # channels of the autoencoder at full size in fp32, and how many such arrays live at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model by what decides its work. parameters: of each part; embedding: those of text_encoder that stay fp32."""

    name: str
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    multiple: int  # picture pixels per token side
    native: int
    parameters: Mapping[str, int]
    embedding: int

    @property
    def ffn(self) -> int:
        """Width of the feed-forward layers, from what attention leaves of a layer's parameters."""
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        return round((self.parameters["denoiser"] / self.depth - attention) / (3 * self.hidden))


# The published configuration. Denoiser and conditioner together are the transformer's 2,800,389,184 parameters.
PUBLISHED = Shape(
    name="OneDiffusion as published",
    hidden=3840,
    depth=16,
    heads=32,
    kv_heads=8,
    head_dim=120,
    multiple=16,
    native=512,
    parameters={
        "denoiser": 2_477_910_336,
        "conditioner": 322_478_848,
        "text_encoder": 1_223_426_048,
        "vae": 83_819_683,
    },
    embedding=32128 * 2048,
)


def shape_of(bundle: Bundle) -> Shape:
    """Return a bundle's shape; parameters are counted by the sizes of its files.

    Raises: ConfigError for another family, or engines, whose files hold more than weights.
    """
    manifest = bundle.manifest
    if manifest.family != "onediffusion" or manifest.target.get("kind") != "onnx":
        raise ConfigError(
            f"{bundle.path} is {manifest.family} for {manifest.target.get('kind')}; estimate takes a bundle of "
            "onediffusion as framert export makes it, or --published"
        )
    parts: dict[str, int] = {}
    for name, graph in manifest.graphs.items():
        part = "vae" if name.startswith("vae") else name
        bits = BITS[PRECISION_WORDS[graph.precision]]
        count = round(sum(manifest.files[file].size for file in graph.files) * 8 / bits)
        parts[part] = parts.get(part, 0) + count
    model = manifest.model
    return Shape(
        name=bundle.path.name,
        hidden=model.hidden_size,
        depth=model.depth,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        multiple=model.multiple,
        native=manifest.native_side,
        parameters=parts,
        embedding=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request. frames: of a sequence. side: (width, height) in pixels. calls: of the denoiser. branches: guidance.

    text: tokens of each branch's prompt.
    """

    task: str
    frames: int
    side: tuple[int, int]
    calls: int
    branches: int
    text: int = TEXT

    def tokens(self, shape: Shape) -> int:
        """Model tokens of one sequence."""
        return self.frames * (self.side[0] // shape.multiple) * (self.side[1] // shape.multiple)


def work_of(
    task: str,
    shape: Shape,
    *,
    side: tuple[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    views: int = VIEWS,
    text: int = TEXT,
) -> Work:
    """Return what a task takes with the Euler solver; None is the task's own value.

    Raises: TaskError for an unknown task; ConfigError for a size or number that is not allowed.
    """
    row = find_task(task)
    assert isinstance(row, FrameTask)
    side = side or (shape.native, shape.native)
    if min(side) < shape.multiple or side[0] % shape.multiple or side[1] % shape.multiple:
        raise ConfigError(f"size is {side[0]}x{side[1]}; sides must be multiples of {shape.multiple}")
    for name, value in (("steps", steps), ("views", views), ("text", text)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; give a whole number of at least 1")
    images = row.images[0]
    scale = row.guidance if guidance is None else guidance
    return Work(
        task=task,
        frames=len(row.frames(images, max(views, images + 1) if row.multiview else 0)),
        side=side,
        calls=row.steps if steps is None else steps,
        branches=2 if scale > 1 else 1,
        text=text,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Least time of a request. products, attention: TFLOP of all calls. seconds: at the device's peaks.

    bound: "products" or "memory", by which the time is limited.
    """

    products: float
    attention: float
    seconds: float
    bound: str


def roofline(shape: Shape, work: Work, device: Device, precision: str) -> Roofline:
    """Return the roofline of the denoiser's calls: the time of its products, or of reading its weights if longer.

    Products with weights run at the precision's rate, int4 at fp16's, as weights are widened first; those of
    attention at fp16's.

    Raises: ConfigError for a precision that the device has not.
    """
    check_precision(device, precision)
    tokens, sequences = work.tokens(shape), work.branches
    width = shape.heads * shape.head_dim
    products = 2 * sequences * tokens * shape.parameters["denoiser"] * work.calls / 1e12
    pairs = tokens * tokens + tokens * work.text
    attention = 4 * sequences * pairs * width * shape.depth * work.calls / 1e12
    rate = device.half if precision in ("fp16", "int4") else device.eight
    computed = products / rate + attention / device.half
    read = work.calls * weight_bytes(shape, "denoiser", precision) / (device.bandwidth * 1e9)
    return Roofline(
        products=products,
        attention=attention,
        seconds=max(computed, read),
        bound="products" if computed >= read else "memory",
    )


def check_precision(device: Device, precision: str) -> None:
    """Raises: ConfigError for an unknown precision, or one that the device has not."""
    has = [word for word in PRECISIONS if word != "fp8" or device.fp8]
    if precision not in has:
        raise ConfigError(f"precision is {precision!r}; {device.name} has {', '.join(has)}")


def weight_bytes(shape: Shape, part: str, precision: str) -> float:
    """Return the bytes of a part's weights. The autoencoder and the conditioner stay in fp32.

    The text encoder is in int8 where the denoiser is in int4, and quantized it keeps its embedding in fp32.
    """
    count = shape.parameters[part]
    if part in ("vae", "conditioner"):
        return count * BITS["fp32"] / 8
    if part == "text_encoder":
        precision = "int8" if precision == "int4" else precision
        kept = shape.embedding if precision in ("int8", "fp8") else 0
        return (count - kept) * BITS[precision] / 8 + kept * BITS["fp32"] / 8
    return count * BITS[precision] / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes. weights: of each part. step: of a denoiser call beside its weights, logits: what padded attention adds.

    arenas: text keys and values, and modulation rows. decoder: of decoding a picture beside the weights.
    """

    weights: Mapping[str, float]
    step: float
    logits: float
    arenas: float
    decoder: float

    @property
    def together(self) -> float:
        """All parts loaded, the largest activations shared."""
        return sum(self.weights.values()) + self.arenas + max(self.step + self.logits, self.decoder)

    @property
    def in_turn(self) -> float:
        """One part at a time, as with low_memory."""
        step = self.weights["denoiser"] + self.arenas + self.step + self.logits
        others = (self.weights["text_encoder"], self.weights["conditioner"] + self.arenas)
        return max(step, self.weights["vae"] + self.decoder, *others)


def memory(shape: Shape, work: Work, precision: str, *, padded: bool = False) -> Memory:
    """Return the memory of a request with products in 16 bits: a lower bound, without what runtime and driver take.

    Args:
        padded: attention of TensorRT's own operators, which holds logits; a plugin holds none.
    """
    tokens = work.tokens(shape)
    packed = tokens * work.branches
    rows = (work.calls + 1) * work.branches
    text = 2 * shape.depth * work.text * work.branches * shape.kv_heads * shape.head_dim * 4
    width, height = work.side
    latent = (width // 8) * (height // 8)
    return Memory(
        weights={part: weight_bytes(shape, part, precision) for part in shape.parameters},
        # the residual stream in fp32, a normed copy and an output, then both halves of the feed-forward layer
        step=packed * (shape.hidden * (4 + 2 + 2) + 2 * shape.ffn * 2),
        logits=8 * work.branches * shape.heads * tokens * tokens if padded else 0,
        arenas=text + rows * (4 * shape.depth + 1) * shape.hidden * 4,
        decoder=max(LIVE * DECODER_WIDTH * width * height * 4, 2 * latent * latent * 4),  # late; in the middle
    )
