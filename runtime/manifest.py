"""What manifest.json says, as values: the part of the contract between export and runtime that is not files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, get_origin

FORMAT = 1
# A graph's precision -> the word for it on the command line and in benchmarks.
PRECISION_WORDS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8e4m3fn": "fp8",
    "int8": "int8",
    "int4": "int4",
}
Spec = TypeVar("Spec", bound="ModelSpec | ScheduleSpec | TokenizerSpec | FileSpec | Graph | Manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One graph input or output. shape holds sizes, and names where the size is free."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One graph of a bundle. files: the graph first, then the external data it reads."""

    files: tuple[str, ...]
    precision: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the runtime must know of the transformer and the autoencoder to fill the tables."""

    hidden_size: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    softcap: float
    patch: int  # side of a token in latent pixels
    latent_channels: int
    vae_factor: int  # picture pixels per latent pixel
    scaling_factor: float  # transformer's latent = (encoder's latent - shift) * scaling_factor
    text_width: int
    max_positions: int  # largest latent row or column, in tokens
    max_frames: int
    shift: float = 0.0
    condition_channels: int = 0  # of what is seen beside the noisy latent: the condition's latent and its mask
    pooled_width: int = 0  # of the pooled text that conditions every layer; 0: there is none
    modulations: int = 0  # multipliers of one modulation row; 0: four per layer and one

    @property
    def multiple(self) -> int:
        """Picture sides must be multiples of this."""
        return self.patch * self.vae_factor

    @property
    def max_side(self) -> int:
        """Largest side of a picture, in pixels."""
        return self.max_positions * self.multiple

    @property
    def token_width(self) -> int:
        return self.patch * self.patch * self.latent_channels

    @property
    def condition_width(self) -> int:
        """Values of one token of the condition."""
        return self.patch * self.patch * self.condition_channels

    @property
    def modulation_count(self) -> int:
        """Multipliers of one modulation row, ``hidden_size`` wide each."""
        return self.modulations or 4 * self.depth + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """Constants of the flow-matching schedule; sequence lengths are in tokens.

    static_shift: the shift of every size, as Stable Diffusion 3 has it; 0: it follows the number of tokens.
    """

    num_train_timesteps: int
    base_shift: float
    max_shift: float
    base_image_seq_len: int
    max_image_seq_len: int
    static_shift: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """How the ids of one input of the text encoder are made.

    max_tokens: a prompt is truncated to this many, those that the tokenizer adds included; pad_to: and filled up to
    this many with pad_id, 0: not at all.
    """

    file: str
    max_tokens: int
    pad_to: int = 0
    pad_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything manifest.json says. verified and provenance are records for people, the rest is relied on.

    tokenizers: by input of the text encoder; a bundle that names none has one, ``tokenizer_specs`` tells which.
    """

    family: str
    native_side: int
    model: ModelSpec
    schedule: ScheduleSpec
    prompt_tokens: int  # a prompt is truncated to this many tokens, end token included
    guidance_branches: int  # width of guidance_index
    target: Mapping[str, str]
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileSpec]
    tokenizers: Mapping[str, TokenizerSpec] = field(default_factory=dict)
    verified: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def tokenizer_specs(self) -> Mapping[str, TokenizerSpec]:
        """Return the tokenizer of every input of the text encoder that holds ids."""
        return self.tokenizers or {"input_ids": TokenizerSpec(file="tokenizer.json", max_tokens=self.prompt_tokens)}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Raises: KeyError, TypeError or ValueError if a field is missing, unknown or of another type."""
        graphs = {
            name: Graph(
                files=tuple(graph["files"]),
                precision=graph["precision"],
                inputs=_tensors(graph["inputs"]),
                outputs=_tensors(graph["outputs"]),
            )
            for name, graph in data["graphs"].items()
        }
        tokenizers = {name: TokenizerSpec(**spec) for name, spec in data.get("tokenizers", {}).items()}
        own = {"model", "schedule", "graphs", "files", "tokenizers"}
        rest = {key: value for key, value in data.items() if key not in own}
        return _checked(
            cls(
                model=_checked(ModelSpec(**data["model"])),
                schedule=_checked(ScheduleSpec(**data["schedule"])),
                graphs={name: _checked(graph) for name, graph in graphs.items()},
                files={name: _checked(FileSpec(**spec)) for name, spec in data["files"].items()},
                tokenizers={name: _checked(spec) for name, spec in tokenizers.items()},
                **rest,
            )
        )


def _checked(spec: Spec) -> Spec:
    """Return ``spec`` if its numbers and texts are what their fields say. Raises: TypeError that names the field."""
    for item in fields(spec):
        value = getattr(spec, item.name)
        if item.type in (int, float):
            kinds = (int,) if item.type is int else (int, float)
            # Only a file may be empty, and what an older manifest does not name.
            least = 1 if item.type is int and item.name != "size" and item.default != 0 else 0
            good = isinstance(value, kinds) and not isinstance(value, bool) and least <= value < float("inf")
        elif item.type is str:
            good = isinstance(value, str)
        elif get_origin(item.type) is Mapping:
            texts = value.values() if item.type == Mapping[str, str] and isinstance(value, Mapping) else ()
            good = isinstance(value, Mapping) and all(isinstance(text, str) for text in texts)
        else:
            good = True
        if not good:
            raise TypeError(f"{item.name} is {value!r}")
    return spec


def _tensors(data: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(dtype=spec["dtype"], shape=tuple(spec["shape"])) for name, spec in data.items()}
