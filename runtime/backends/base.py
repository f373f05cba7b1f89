"""What a backend offers. Its heavy import lives inside the module that implements it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from framert.runtime.arrays import Array, Floats, Ints
from framert.runtime.bundle import Bundle
from framert.runtime.errors import BackendError
from framert.runtime.manifest import Manifest
from framert.runtime.tables import Tables
from framert.runtime.windows import has_windows

ENGINES = ("tensorrt", "tensorrt-rtx")  # kinds of bundles that ``framert build`` makes, as the manifest's target says
CAPACITY = "capacity"  # the manifest's name for an axis of the text arenas


class Denoiser(Protocol):
    """The step graph with its arenas and the latents of the current pack, wherever the backend keeps them."""

    def reserve(self, *, text: int, rows: int) -> None:
        """Make the text arena hold ``text`` tokens and the modulation arena ``rows`` rows; contents stay."""

    def write_text(self, begin: int, *parts: Any) -> None:
        """Store a prompt in the text arenas: what the conditioner returned for each, in the order of ``text_arenas``.

        Of OneDiffusion (depth, length, kv_heads, head_dim) keys and values.
        """

    def write_modulation(self, begin: int, modulation: Any) -> None:
        """Store (rows, multipliers, hidden), as the conditioner returned them."""

    def padded(self, tokens: int) -> int:
        """Return the token bucket that a pack of so many model tokens runs in."""

    def bind(self, tables: Tables, latents: Floats, history: Floats) -> None:
        """Take a pack: its tables and its (slots, token_width) state."""

    def step(self, row: Ints, update: Floats) -> None:
        """Run one call. row: (frames,) modulation row of each packed frame; update: (slots, 6).

        Raises: BackendError; the state is then what it was before the call.
        """

    def state(self) -> tuple[Floats, Floats]:
        """Return latents and history, (slots, token_width) each."""

    def velocity(self) -> Floats:
        """Return the guided velocity of the last call, (slots, token_width)."""


@runtime_checkable
class Reusing(Protocol):
    """What a denoiser has that can keep keys and values of condition frames from one call to the next."""

    @property
    def cache_rows(self) -> int:
        """Rows that ``reserve_cache`` made; see ``tables.build``."""

    def reserve_cache(self, rows: int) -> None:
        """Make the arenas of keys and values hold ``rows`` tokens of every layer; contents stay."""

    def switch(self, tables: Tables) -> None:
        """Take other tables for the slots that are bound; latents and history stay as they are."""


class Limits(Protocol):
    """Largest sizes that a backend's graphs take, asked before anything is computed."""

    text: int  # tokens that the text arenas hold
    rows: int  # modulation rows

    def check_call(self, lengths: Sequence[int], frames: int) -> None:
        """Raises: BackendError if no call takes sequences of so many model tokens, of so many frames together."""

    def check_size(self, height: int, width: int, *, encodes: bool) -> None:
        """Raises: BackendError if pictures of so many pixels cannot be decoded, or with ``encodes`` encoded."""


@runtime_checkable
class Limited(Protocol):
    """What a backend has whose graphs were built for a range of sizes."""

    limits: Limits


class Backend(Protocol):
    """Runs the graphs of one bundle."""

    name: str

    def run(self, graph: str, feeds: Mapping[str, Array]) -> Mapping[str, Any]:
        """Run a graph other than the denoiser; loads it first where it is not loaded.

        Returns: NumPy arrays; those of the conditioner may be the backend's own, wherever they lie, as nobody reads
            them but this backend's denoisers.
        """

    def denoiser(self) -> Denoiser:
        """Return a new denoiser with empty arenas. Each engine has its own; the weights are shared."""


def text_arenas(manifest: Manifest) -> dict[str, int]:
    """Return the denoiser's inputs that hold what the conditioner made of prompts, and which axis of each is tokens."""
    inputs = manifest.graphs["denoiser"].inputs
    return {name: spec.shape.index(CAPACITY) for name, spec in inputs.items() if CAPACITY in spec.shape}


def check_kind(bundle: Bundle, backend: str) -> None:
    """Raises: BackendError unless the bundle's graphs are ONNX files."""
    kind = bundle.manifest.target.get("kind")
    if kind != "onnx":
        other = "; give backend 'tensorrt'" if kind in ENGINES else ""
        raise BackendError(f"{bundle.path} is built for {kind!r}; backend {backend!r} runs kind 'onnx'{other}")


def check_attention(bundle: Bundle, backend: str) -> None:
    """Raises: BackendError if the bundle's attention is padded, to windows that the backend does not give."""
    if has_windows(bundle.manifest.graphs["denoiser"].inputs):
        raise BackendError(
            f"{bundle.path} has padded attention, which backend {backend!r} does not run; give the bundle that framert "
            "export made, or backend 'onnxruntime'"
        )
