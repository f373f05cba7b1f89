"""Ways to compute attention of packed sequences, framert's and others', on one set of inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from framert.kernels.dispatch import Impl
from framert.kernels.frame_attention import reference
from framert.kernels.frame_attention.api import frame_attention

SOFTCAP = 30.0
CHECKED = 64  # queries that are compared with plain torch
TEXT = 80  # tokens of each sequence's prompt


@dataclass(frozen=True, slots=True)
class Case:
    """Packed inputs: query (tokens, heads, head_dim), key and value (tokens, kv_heads, head_dim), and their text."""

    lengths: tuple[int, ...]
    query: Tensor
    key: Tensor
    value: Tensor
    ranges: Tensor
    text_k: Tensor
    text_v: Tensor
    text_range: Tensor
    gate: Tensor

    @classmethod
    def random(
        cls,
        lengths: tuple[int, ...],
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Case":
        """Draw inputs whose logits reach the softcap."""
        tokens = sum(lengths)
        packed = torch.randn(tokens, heads + 2 * kv_heads, head_dim, device=device).to(dtype)
        begins = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
        ranges = torch.stack((begins, torch.tensor(lengths)), 1).int().to(device)
        text = torch.randn(2, TEXT * len(lengths), kv_heads, head_dim, device=device).to(dtype)
        places = torch.tensor([(TEXT * index, TEXT) for index in range(len(lengths))], dtype=torch.int32, device=device)
        return cls(
            lengths, 2 * packed[:, :heads], packed[:, heads:-kv_heads], packed[:, -kv_heads:], ranges, text[0], text[1],
            places, torch.full((heads,), 0.5, device=device),
        )  # fmt: skip

    @property
    def scale(self) -> float:
        return float(self.query.shape[-1] ** -0.5)

    def flops(self, *, text: bool) -> float:
        """Useful work: two products per pair of query and key of the same sequence."""
        pairs = sum(length * (length + (TEXT if text else 0)) for length in self.lengths)
        return 4.0 * pairs * self.query.shape[1] * self.query.shape[2]

    def batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return query, key and value as (batch, heads, length, head_dim): one batch if all are equally long."""
        if len(set(self.lengths)) == 1:
            shape = (len(self.lengths), self.lengths[0])
            return [tuple(x.unflatten(0, shape).transpose(1, 2) for x in (self.query, self.key, self.value))]  # type: ignore[list-item]
        parts = (x.split(self.lengths) for x in (self.query, self.key, self.value))
        return [tuple(x.transpose(0, 1)[None] for x in part) for part in zip(*parts, strict=True)]  # type: ignore[misc]


def attention_sides(case: Case, impl: Impl, *, compiled: bool) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return {side: a function that makes it}; making raises where a side cannot run here."""
    own = (case.query, case.key, case.value, case.ranges, case.ranges)
    text = (case.text_k, case.text_v, case.text_range, case.gate)
    scale = case.scale
    return {
        "frame_attention": lambda: lambda: frame_attention(*own, softcap=SOFTCAP, scale=scale, impl=impl),
        "frame_attention-tile64": lambda: (
            lambda: frame_attention(*own, softcap=SOFTCAP, scale=scale, impl=impl, query_tile=64)
        ),
        "frame_attention+text": lambda: lambda: frame_attention(*own, *text, softcap=SOFTCAP, scale=scale, impl=impl),
        "frame_attention-nocap": lambda: lambda: frame_attention(*own, softcap=0.0, scale=scale, impl=impl),
        "sdpa-cudnn": lambda: _sdpa(case, SDPBackend.CUDNN_ATTENTION),
        "sdpa-flash": lambda: _sdpa(case, SDPBackend.FLASH_ATTENTION),
        "flex-softcap": lambda: _flex(case, compiled),
        "flash-attn-softcap": lambda: _flash(case),
    }


def check(case: Case, side: str, call: Callable[[], object]) -> float:
    """Return a side's relative L2 distance to plain torch in fp32, over some queries of the longest sequence."""
    number = case.lengths.index(max(case.lengths))
    begin, length = case.ranges[number].tolist()
    few = min(CHECKED, length)
    part = slice(begin + length - few, begin + length)
    query, key, value = case.query[part], case.key[begin : begin + length], case.value[begin : begin + length]
    query, key, value = (x.float().cpu() for x in (query, key, value))
    asked, among = (torch.tensor([[0, count]], dtype=torch.int32) for count in (few, length))
    place = case.text_range[number : number + 1].cpu()
    gate = case.gate.cpu() * (1 if side.endswith("+text") else 0)
    capped = side.startswith("frame_attention") != side.endswith("-nocap") or side.endswith("-softcap")
    softcap = SOFTCAP if capped else 0.0
    expected = reference.frame_attention(
        query, key, value, asked, among, case.text_k.float().cpu(), case.text_v.float().cpu(), place, gate,
        softcap=softcap, scale=case.scale,
    )  # fmt: skip
    made = call()
    if isinstance(made, list):  # (batch, heads, length, head_dim) each
        made = torch.cat([each.transpose(1, 2).flatten(0, 1) for each in made])
    assert isinstance(made, Tensor)
    actual = made[part].float().cpu()
    return float((actual - expected).norm() / expected.norm())


def _sdpa(case: Case, backend: SDPBackend) -> Callable[[], list[Tensor]]:
    """torch's fused attention without softcap: as it is, or with heads padded to 128 or repeated where it must be.

    Equal sequences are one batch, others are called one by one.
    """
    if not case.query.is_cuda and backend == SDPBackend.CUDNN_ATTENTION:
        raise RuntimeError("cuDNN needs a GPU")
    width, group, scale = case.query.shape[-1], case.query.shape[1] // case.key.shape[1], case.scale
    failure = RuntimeError("not tried")
    for repeated in (False, True):
        for padding in dict.fromkeys((0, 128 - width)):
            batches = [
                tuple(
                    functional.pad(x if x is q or not repeated else x.repeat_interleave(group, 1), (0, padding))
                    for x in (q, k, v)
                )
                for q, k, v in case.batches()
            ]

            def call(batches: list = batches, grouped: bool = not repeated) -> list[Tensor]:
                with sdpa_kernel(backend):
                    return [
                        functional.scaled_dot_product_attention(*each, scale=scale, enable_gqa=grouped)[..., :width]
                        for each in batches
                    ]

            try:
                call()
            except RuntimeError as error:
                failure = error
            else:
                return call
    raise failure


def _flex(case: Case, compiled: bool) -> Callable[[], Tensor]:
    """FlexAttention with the softcap, packed by a block mask over sequences."""
    tokens, device, scale, width = len(case.query), case.query.device, case.scale, case.query.shape[-1]
    lengths = torch.tensor(case.lengths, device=device)
    sequence = torch.repeat_interleave(torch.arange(len(case.lengths), device=device), lengths)

    def softcap(score: Tensor, *_: Tensor) -> Tensor:
        return SOFTCAP * torch.tanh(score / SOFTCAP)

    def together(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sequence[query] == sequence[key]

    mask = create_block_mask(together, None, None, tokens, tokens, device=str(device))
    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (case.query, case.key, case.value))

    def call() -> Tensor:
        made = attend(q, k, v, score_mod=softcap, block_mask=mask, scale=scale, enable_gqa=True)
        return made[0, ..., :width].transpose(0, 1)

    try:
        call()
    except Exception as error:  # the compiler's own types
        if width == 128:
            raise RuntimeError(str(error)) from error
        q, k, v = (functional.pad(x, (0, 128 - width)) for x in (q, k, v))
        try:
            call()
        except Exception as again:
            raise RuntimeError(str(again)) from again
    return call


def _flash(case: Case) -> Callable[[], Tensor]:
    """flash-attn with softcap over packed sequences; raises ImportError where it is not installed."""
    from flash_attn import flash_attn_varlen_func

    edges = torch.tensor([0, *case.lengths], device=case.query.device).cumsum(0).int()
    longest, q, k, v = max(case.lengths), case.query, case.key.contiguous(), case.value.contiguous()
    q = q.contiguous()
    return lambda: flash_attn_varlen_func(
        q, k, v, edges, edges, longest, longest, softmax_scale=case.scale, softcap=SOFTCAP
    )
