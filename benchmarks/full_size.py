"""The published configuration with random weights on a device, as baselines hold it and as backend "triton" does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hoisted
import numpy as np
import torch
from baseline import SOFTCAP, PublishedNextDiT
from torch import Tensor

from framert.kernels.quantize_rows.api import quantize_rows
from framert.runtime import tables
from framert.runtime.backends.triton.denoiser import TritonDenoiser
from framert.runtime.backends.triton.forward import FrameModel
from framert.runtime.backends.triton.products import COMPUTE, Precision, Projection
from framert.runtime.backends.triton.settings import Settings
from framert.runtime.backends.triton.weights import Layer, StepWeights
from framert.runtime.manifest import ModelSpec

PUBLISHED = {
    "hidden_size": 3840, "depth": 16, "num_heads": 32, "num_kv_heads": 8, "caption_channels": 2048, "in_channels": 16,
    "patch_size": [1, 2, 2], "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5,
    "rotary_max_length": 128, "rotary_max_length_t": None,
}  # fmt: skip
TINY = PUBLISHED | {
    "hidden_size": 96,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "caption_channels": 24,
    "rotary_max_length": 32,
}
BRANCHES = 4  # width of the guidance tables
TEXT = 80  # tokens of either prompt
GUIDANCE = 4.0


def random_model(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> PublishedNextDiT:
    """Return the published model with random weights under which every part of it matters."""
    with torch.device(device):
        model = PublishedNextDiT(config).to(dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, parameter.shape[1] ** -0.5 * (0.5 if "adaLN" in name else 1))
        elif name.endswith((".q_norm.weight", ".k_norm.weight")):
            parameter.normal_(1.7, 0.2)
        elif name.endswith("attention.gate"):
            parameter.normal_(0, 0.5)
        else:
            parameter.normal_(1 if name.endswith("weight") else 0, 0.1)
    return model


@dataclass(frozen=True, slots=True)
class Member:
    """One request of a pack, as ``tables`` reads it: sizes in tokens."""

    frames: int
    height: int
    width: int
    branches: Sequence[tables.BranchRows] = ()

    @property
    def slots(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True, slots=True)
class Inputs:
    """One request's inputs. latents: (frames, 16, h, w) fp32; text: (2, TEXT, channels), negative prompt first."""

    latents: Tensor
    text: Tensor
    levels: Tensor
    delta: Tensor

    @classmethod
    def random(cls, member: Member, config: Mapping[str, Any], device: torch.device) -> "Inputs":
        """The first frame is generated, the others are conditions."""
        shape = (member.frames, config["in_channels"], 2 * member.height, 2 * member.width)
        frames = member.frames
        return cls(
            latents=torch.randn(shape, device=device),
            text=torch.randn(2, TEXT, config["caption_channels"], device=device),
            levels=torch.tensor([500.0] + [20.0] * (frames - 1), device=device),
            delta=torch.tensor([-0.02] + [0.0] * (frames - 1), device=device),
        )


def step_weights(
    model: PublishedNextDiT, config: Mapping[str, Any], precision: Precision, device: torch.device, impl: Any
) -> StepWeights:
    """Return what backend "triton" reads from a bundle's denoiser, taken from the model itself."""
    quantize = precision if precision in ("int8", "fp8") else None
    dtype, eps, head_dim = COMPUTE[precision], config["norm_eps"], config["hidden_size"] // config["num_heads"]

    def project(*parts: Tensor) -> Projection:
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        if quantize is None:
            return Projection(joined.to(dtype).contiguous(), None, dtype, impl)
        return Projection(*quantize_rows(joined.contiguous(), quantize, impl=impl), dtype, impl)

    def layer(block: Any) -> Layer:
        own, feed = block.attention, block.feed_forward
        return Layer(
            qkv=project(own.wq.weight, own.wk.weight, own.wv.weight),
            q_weight=own.q_norm.weight.float(), q_bias=own.q_norm.bias.float(),
            k_weight=own.k_norm.weight.float(), k_bias=own.k_norm.bias.float(),
            gate=own.gate.tanh().float(), wo=project(own.wo.weight), wo_eps=eps,
            gate_up=project(feed.w1.weight, feed.w3.weight), w2=project(feed.w2.weight), w2_eps=eps,
        )  # fmt: skip

    places = torch.arange(config["rotary_max_length"], device=device, dtype=torch.float32)
    frequency = 10000.0 ** -(torch.arange(head_dim // 6, device=device, dtype=torch.float32) * (6 / head_dim))
    angle = places[:, None] * frequency
    return StepWeights(
        layers=tuple(layer(block) for block in model.layers),
        embed=model.x_embedder.weight.float(), embed_bias=model.x_embedder.bias.float(),
        final=model.final_layer.linear.weight.float(), final_bias=model.final_layer.linear.bias.float(),
        cosine=angle.cos().contiguous(), sine=angle.sin().contiguous(), softcap=SOFTCAP, scale=head_dim**-0.5,
        norm_eps=eps, qk_eps=1e-5, final_eps=1e-6, quantize=quantize, dtype=dtype,
    )  # fmt: skip


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Return what the runtime would read from the bundle's manifest."""
    return ModelSpec(
        hidden_size=config["hidden_size"], depth=config["depth"], heads=config["num_heads"],
        kv_heads=config["num_kv_heads"], head_dim=config["hidden_size"] // config["num_heads"], softcap=SOFTCAP,
        patch=2, latent_channels=config["in_channels"], vae_factor=8, scaling_factor=1.0,
        text_width=config["caption_channels"], max_positions=config["rotary_max_length"],
        max_frames=config["rotary_max_length"],
    )  # fmt: skip


class Framert:
    """Backend "triton"'s denoiser with a pack of requests in it; a call is one step.

    reuse: keep keys and values of condition frames, so that ``skip`` makes further calls run without those frames.
    """

    def __init__(
        self,
        model: PublishedNextDiT,
        config: Mapping[str, Any],
        weights: StepWeights,
        settings: Settings,
        members: Sequence[Member],
        inputs: Sequence[Inputs],
        *,
        reuse: bool = False,
    ) -> None:
        spec = model_spec(config)
        self.denoiser = TritonDenoiser(FrameModel(weights, spec, settings), spec.token_width, BRANCHES, settings)
        total = sum(member.frames for member in members)
        self.denoiser.reserve(text=2 * TEXT * len(members), rows=2 * total)
        placed, row, cache = [], 0, 0
        for number, (member, given) in enumerate(zip(members, inputs, strict=True)):
            mask = torch.ones(given.text.shape[:2], device=given.text.device)
            modulation, keys, values, _ = hoisted.condition(model, given.text, mask, given.levels)
            branches = []
            for branch, weight in enumerate((1 - GUIDANCE, GUIDANCE)):
                begin = (2 * number + branch) * TEXT
                first = [x[:, branch, : config["num_kv_heads"]].transpose(1, 2) for x in (keys, values)]  # untiled
                self.denoiser.write_text(begin, *first)
                self.denoiser.write_modulation(row, modulation[:, branch, :, 0].transpose(0, 1))
                branches.append(tables.BranchRows(begin, TEXT, row, weight, cache if reuse else None))
                row += member.frames
                cache += member.slots
            placed.append(Member(member.frames, member.height, member.width, branches))
        if reuse:
            self.denoiser.reserve_cache(cache)
        self._whole = self._built(placed, None)
        self._part = self._built(placed, [[0] for _ in placed]) if reuse else None
        latents = np.concatenate([_tokens(given.latents) for given in inputs])
        self.denoiser.bind(self._whole, latents, np.zeros_like(latents))
        self._row = np.arange(2 * total, dtype=np.int32)
        self._update = np.zeros((self._whole.slots, 6), np.float32)
        self._update[:, 0] = 1
        deltas = [np.repeat(g.delta.cpu().numpy(), m.height * m.width) for g, m in zip(inputs, members, strict=True)]
        self._update[:, 1] = np.concatenate(deltas)
        self._still = self._update * [1, 0, 1, 1, 1, 1]  # measured steps stay where they are

    def _built(self, members: Sequence[Member], running: Sequence[Sequence[int]] | None) -> tables.Tables:
        cached = self.denoiser.cache_rows or None
        count = sum(tables.token_count(member, run) for member, run in
                    zip(members, running or [None] * len(members), strict=True))  # fmt: skip
        return tables.build(
            members, guidance_branches=BRANCHES, tokens=self.denoiser.padded(count), running=running, cache_rows=cached
        )

    def __call__(self) -> None:
        """Queue one step of all frames."""
        self.denoiser.switch(self._whole)
        self._step(self._whole)

    def skip(self) -> None:
        """Queue one step of the generated frames alone."""
        assert self._part is not None
        self.denoiser.switch(self._part)
        self._step(self._part)

    def velocity(self) -> np.ndarray:
        """Return the guided velocity of the last call, (slots, token_width)."""
        return self.denoiser.velocity()

    def _step(self, current: tables.Tables) -> None:
        row = np.concatenate([self._row, np.zeros(current.frames - len(self._row), np.int32)])
        self.denoiser.step(row, self._still.astype(np.float32))


def _tokens(latents: Tensor) -> np.ndarray:
    """(frames, channels, 2 h, 2 w) -> (frames * h * w, 4 * channels), a token's values by row, column, channel."""
    frames, channels, height, width = latents.shape
    patched = latents.reshape(frames, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return patched.reshape(-1, 4 * channels).cpu().numpy()


def tokens_of(velocity: Tensor) -> np.ndarray:
    """Return a baseline's velocity as ``Framert.velocity`` has it."""
    return _tokens(velocity)
