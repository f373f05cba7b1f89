"""The graphs around the denoiser, as functions of arrays: text, pictures in, conditioning, pictures out."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from framert.runtime import tiling
from framert.runtime.arrays import Array, Floats
from framert.runtime.backends.base import Backend
from framert.runtime.bundle import Bundle
from framert.runtime.tokenizer import Tokenizer

REMEMBERED_PROMPTS = 64
REMEMBERED_PICTURES = 16


class Components:
    """Runs the four graphs that are not the step, and adds up the seconds each takes.

    Args:
        bundle: gives the tokenizer and the latent scale.
        backend: runs the graphs.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._backend = backend
        self._model = bundle.manifest.model
        self._tokenizer = Tokenizer(Path(bundle.path) / "tokenizer.json", bundle.manifest.prompt_tokens)
        self._hidden: OrderedDict[str, Floats] = OrderedDict()
        self._latents: OrderedDict[bytes, Floats] = OrderedDict()
        self._remembering = threading.Lock()  # several engines share one pipeline's components

    def hidden_states(self, prompt: str, seconds: dict[str, float]) -> Floats:
        """Return the text encoder's (length, text_width) output; recent prompts are remembered."""
        return self._remembered(prompt, self._tokenizer.encode(prompt), seconds)  # it warns if it cuts, every time

    def read_ahead(self, prompts: Iterable[str], seconds: dict[str, float]) -> None:
        """Run the text encoder for all prompts of a request, so that it need not be loaded between conditioner calls.

        ``hidden_states`` then remembers them; warnings are left to it.
        """
        for prompt in prompts:
            self._remembered(prompt, self._tokenizer.encode(prompt, warn=False), seconds)

    def _remembered(self, prompt: str, ids: list[int], seconds: dict[str, float]) -> Floats:
        with self._remembering:
            if prompt not in self._hidden:
                self._hidden[prompt] = self._encode_text(ids, seconds)
                if len(self._hidden) > REMEMBERED_PROMPTS:
                    self._hidden.popitem(last=False)
            self._hidden.move_to_end(prompt)
            return self._hidden[prompt]

    def _encode_text(self, ids: list[int], seconds: dict[str, float]) -> Floats:
        with clocked(seconds, "text_encoder"):
            output = self._backend.run("text_encoder", {"input_ids": np.asarray([ids], np.int64)})["hidden_states"]
        return np.ascontiguousarray(output, np.float32)

    def condition(
        self, hidden_states: Floats, noise_levels: Sequence[float], seconds: dict[str, float]
    ) -> Mapping[str, Any]:
        """Return text_k, text_v and modulation of a prompt under noise levels in 0..1000, for the denoiser alone."""
        feeds: dict[str, Array] = {
            "hidden_states": hidden_states,
            "noise_level": np.asarray(noise_levels, np.float32),
        }
        with clocked(seconds, "conditioner"):
            return self._backend.run("conditioner", feeds)

    def encode(self, pixels: Floats, seconds: dict[str, float]) -> Floats:
        """Return latents (channels, h, w), in the transformer's scale, of a picture (height, width, 3) in -1..1.

        Recent pictures are remembered: several results of one picture encode it once.
        """
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        key = hashlib.sha256(repr(planes.shape).encode() + planes.tobytes()).digest()
        with self._remembering:
            if key not in self._latents:
                with clocked(seconds, "vae_encoder"):
                    mean = self._backend.run("vae_encoder", {"pixels": planes})["mean"][0]
                self._latents[key] = np.asarray(mean * np.float32(self._model.scaling_factor), np.float32)
                if len(self._latents) > REMEMBERED_PICTURES:
                    self._latents.popitem(last=False)
            self._latents.move_to_end(key)
            return self._latents[key]

    def decode(self, latents: Floats, seconds: dict[str, float]) -> Floats:
        """Return the picture (height, width, 3) in 0..1 of latents (channels, h, w) in the transformer's scale."""
        scaled = latents / np.float32(self._model.scaling_factor)
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
