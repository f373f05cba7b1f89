"""The graphs around the denoiser, as functions of arrays: text, pictures in, conditioning, pictures out."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from framert.runtime import tiling
from framert.runtime.arrays import Array, Floats
from framert.runtime.backends.base import Backend
from framert.runtime.bundle import Bundle
from framert.runtime.images import fit
from framert.runtime.tokenizer import Ids, Tokenizers

REMEMBERED_PROMPTS = 64
REMEMBERED_PICTURES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What the text encoder made of a prompt. key: of the prompt and its references. values: its outputs by name."""

    key: Hashable
    values: Mapping[str, Floats]

    @property
    def length(self) -> int:
        """Text tokens, those of padding included where the model reads padding."""
        return len(self.values["hidden_states"])


class Components:
    """Runs the graphs that are not the step, and adds up the seconds each takes.

    Args:
        bundle: gives the tokenizers and the latent scale.
        backend: runs the graphs.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._backend = backend
        self._manifest = bundle.manifest
        self._model = bundle.manifest.model
        self._tokenizers = Tokenizers(bundle)
        self._texts: OrderedDict[Hashable, Text] = OrderedDict()
        self._features: OrderedDict[bytes, Floats] = OrderedDict()
        self._latents: OrderedDict[bytes, Floats] = OrderedDict()
        self._remembering = threading.Lock()  # several engines share one pipeline's components

    def read(self, prompt: str, seconds: dict[str, float], references: Sequence[Image] = ()) -> Text:
        """Return what the text encoder makes of a prompt; recent ones are remembered.

        Args:
            references: one picture per placeholder of the prompt, whose feature takes its place.
        Warns: PromptTruncatedWarning, every time.
        Raises: TaskError if the prompt is not text, or its placeholders are not as many as the references.
        """
        ids = self._tokenizers.encode(prompt, len(references))
        features = [self._feature(reference, seconds) for reference in references]
        key: Hashable = (prompt, tuple(feature.tobytes() for feature in features)) if features else prompt
        with self._remembering:
            if key not in self._texts:
                self._texts[key] = Text(key, self._encode_text(ids, features, seconds))
                if len(self._texts) > REMEMBERED_PROMPTS:
                    self._texts.popitem(last=False)
            self._texts.move_to_end(key)
            return self._texts[key]

    def _encode_text(self, ids: Ids, features: list[Floats], seconds: dict[str, float]) -> dict[str, Floats]:
        feeds: dict[str, Array] = {name: np.asarray([values], np.int64) for name, values in ids.by_input.items()}
        inputs = self._manifest.graphs["text_encoder"].inputs
        if "feature" in inputs:
            width = inputs["feature"].shape[1]
            assert isinstance(width, int)
            feeds["feature"] = np.concatenate([np.zeros((0, width), np.float32), *features])
            feeds["feature_index"] = np.asarray(ids.placeholders, np.int32)
        with clocked(seconds, "text_encoder"):
            outputs = self._backend.run("text_encoder", feeds)
        return {name: np.ascontiguousarray(value, np.float32) for name, value in outputs.items()}

    def _feature(self, reference: Image, seconds: dict[str, float]) -> Floats:
        """Return the (1, width) feature of a picture; recent ones are remembered."""
        side = self._manifest.graphs["image_encoder"].inputs["pixels"].shape[2]
        assert isinstance(side, int)

        def compute(planes: Floats) -> Floats:
            with clocked(seconds, "image_encoder"):
                feature = self._backend.run("image_encoder", {"pixels": planes})["feature"]
            return np.ascontiguousarray(feature, np.float32)

        return self._seen(self._features, fit(reference, (side, side)), compute)

    def condition(
        self, text: Mapping[str, Floats], noise_levels: Sequence[float], seconds: dict[str, float]
    ) -> Mapping[str, Any]:
        """Return what the conditioner makes of a text under noise levels in 0..1000, for the denoiser alone.

        Args:
            text: what the text encoder made of it, by name; without a pooled text that is zeros.
        """
        inputs = self._manifest.graphs["conditioner"].inputs
        given = {"pooled": np.zeros(self._model.pooled_width, np.float32), **text}
        feeds: dict[str, Array] = {name: given[name] for name in inputs if name != "noise_level"}
        feeds["noise_level"] = np.asarray(noise_levels, np.float32)
        with clocked(seconds, "conditioner"):
            return self._backend.run("conditioner", feeds)

    def encode(self, pixels: Floats, seconds: dict[str, float]) -> Floats:
        """Return latents (channels, h, w), in the transformer's scale, of a picture (height, width, 3) in -1..1.

        Recent pictures are remembered: several results of one picture encode it once.
        """
        model = self._model

        def compute(planes: Floats) -> Floats:
            with clocked(seconds, "vae_encoder"):
                mean = self._backend.run("vae_encoder", {"pixels": planes})["mean"][0]
            return np.asarray((mean - np.float32(model.shift)) * np.float32(model.scaling_factor), np.float32)

        return self._seen(self._latents, pixels, compute)

    def _seen(self, memory: OrderedDict[bytes, Floats], pixels: Floats, compute: Any) -> Floats:
        """Return what ``compute`` makes of a picture's (1, 3, height, width) planes, or made of it before."""
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        key = hashlib.sha256(repr(planes.shape).encode() + planes.tobytes()).digest()
        with self._remembering:
            if key not in memory:
                memory[key] = compute(planes)
                if len(memory) > REMEMBERED_PICTURES:
                    memory.popitem(last=False)
            memory.move_to_end(key)
            return memory[key]

    def decode(self, latents: Floats, seconds: dict[str, float]) -> Floats:
        """Return the picture (height, width, 3) in 0..1 of latents (channels, h, w) in the transformer's scale."""
        scaled = latents / np.float32(self._model.scaling_factor) + np.float32(self._model.shift)
        with clocked(seconds, "vae_decoder"):
            pixels = tiling.decode(self._decode_tile, scaled, self._model.vae_factor)
        picture: Floats = np.clip(pixels.transpose(1, 2, 0) * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
        return picture

    def _decode_tile(self, latents: Floats) -> Floats:
        feeds: dict[str, Array] = {"latents": np.ascontiguousarray(latents[None])}
        return np.asarray(self._backend.run("vae_decoder", feeds)["pixels"][0], np.float32)


@contextmanager
def clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the block's wall time to ``seconds[name]``."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin
