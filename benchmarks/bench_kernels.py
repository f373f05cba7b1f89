"""framert's kernels on a GPU: attention over packed sequences, memory-bound kernels, products of weights.

    python benchmarks/bench_kernels.py                      # about 4 minutes on an H200; rows to results/DEVICE.csv
    python benchmarks/bench_kernels.py --device cpu --tiny  # every path without a GPU, no rows

Attention: TFLOP/s on useful work, beside torch's fused attention (cuDNN and flash, without the softcap, which flatters
them), FlexAttention with softcap, and flash-attn where it is installed. Memory-bound kernels: the share of the copy
bandwidth of the same run. Every attention side is compared with plain torch before it is timed. Calls are replayed from
CUDA graphs: several kernels here take less time than their launch from Python does.
"""

import sys
from collections.abc import Callable

import torch
from attention_sides import Case, attention_sides, check
from device import Bench, Side, run
from torch import Tensor

from framert.kernels.gated_residual.api import gated_residual
from framert.kernels.norm_modulate.api import norm_modulate
from framert.kernels.qk_norm_rope.api import qk_norm_rope
from framert.kernels.quantize_rows.api import quantize_rows
from framert.kernels.scaled_matmul.api import scaled_matmul
from framert.kernels.swiglu.api import swiglu
from framert.kernels.update.api import update
from framert.kernels.weight_only_matmul.api import weight_only_matmul
from framert.kernels.weight_only_matmul.packing import pack_int4

SETS = {
    "1x1024": (1024,), "1x4096": (4096,), "1x8192": (8192,), "2x4096": (4096,) * 2, "8x1024": (1024,) * 8,
    "ragged 256 to 8192": (256, 1024, 2304, 4096, 8192),
}  # fmt: skip
TINY_SETS = {"2x24": (24, 24), "ragged 1 to 40": (1, 17, 40)}
HIDDEN, HEADS, KV_HEADS, FFN = 3840, 32, 8, 10240  # of the published model
HEAD_DIMS = (120, 72)
TOKENS = 16384  # of the memory-bound kernels: far beyond the caches


def measure(bench: Bench) -> None:
    for head_dim in HEAD_DIMS[:1] if bench.tiny else HEAD_DIMS:
        for name, lengths in (TINY_SETS if bench.tiny else SETS).items():
            attention(bench, name, lengths, 24 if bench.tiny else head_dim)
            bench.free()
    copy = bandwidth(bench)
    products(bench)
    bench.say(f"copy bandwidth {copy / 1e9:.0f} GB/s")


def attention(bench: Bench, name: str, lengths: tuple[int, ...], head_dim: int) -> None:
    """Time all sides of one set of packed sequences."""
    heads, kv_heads = (4, 2) if bench.tiny else (HEADS, KV_HEADS)
    dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    case = Case.random(lengths, heads, kv_heads, head_dim, dtype=dtype, device=bench.device)
    text = f"attention {heads}/{kv_heads} heads of {head_dim}; {name}"
    makers = attention_sides(case, bench.impl, compiled=not bench.tiny)
    built = bench.build(makers, text)
    for side in list(built):
        error = check(case, side, built[side])
        if not error < (1e-4 if dtype == torch.float32 else 2e-2):
            bench.leave_out(side, text, f"it is {error:.2g} from plain torch")
            del built[side]
    seconds = bench.seconds(built, captured=True)
    for side, values in seconds.items():
        flops = case.flops(text=side.endswith("+text"))
        bench.add(side, text, "rate", "TFLOP/s", [flops / each / 1e12 for each in values])
    for side in ("sdpa-cudnn", "sdpa-flash", "flex-softcap", "flash-attn-softcap"):
        if side in seconds and "frame_attention" in seconds:
            pairs = zip(seconds[side], seconds["frame_attention"], strict=True)
            bench.add(f"frame_attention/{side}", text, "rate_ratio", "x", [theirs / ours for theirs, ours in pairs])


def bandwidth(bench: Bench) -> float:
    """Time the memory-bound kernels beside a copy; return the copy's bytes per second."""
    tokens, hidden, heads, kv_heads = (64, 48, 4, 2) if bench.tiny else (TOKENS, HIDDEN, HEADS, KV_HEADS)
    ffn, head_dim, frames, rows = 2 * hidden if bench.tiny else FFN, 12 if bench.tiny else HIDDEN // HEADS, 4, 8
    dtype, device, impl = torch.bfloat16, bench.device, bench.impl

    def drawn(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device).to(kind)

    x, y, gate_up = drawn(tokens, hidden), drawn(tokens, hidden), drawn(tokens, 2 * ffn)
    modulation = drawn(rows, 3, hidden)
    row = torch.arange(frames, dtype=torch.int32, device=device)
    frame = (torch.arange(tokens, device=device) * frames // tokens).int()
    qkv = drawn(tokens, (heads + 2 * kv_heads) * head_dim)
    norms = [drawn(count * head_dim, kind=torch.float32) for count in (heads, heads, kv_heads, kv_heads)]
    position = torch.randint(0, 64, (tokens, 3), dtype=torch.int32, device=device)
    table = drawn(64, head_dim // 6, kind=torch.float32)
    slots, width = tokens // 2, 64
    output, state = drawn(tokens, width, kind=torch.float32), torch.zeros(3, slots, width, device=device).unbind()
    index = torch.arange(slots, dtype=torch.int32, device=device)[:, None] + torch.tensor(
        [0, slots, 0, 0], dtype=torch.int32, device=device
    )
    weight = torch.tensor([-3.0, 4.0, 0.0, 0.0], device=device).expand(slots, 4).contiguous()
    solver = drawn(slots, 6, kind=torch.float32)
    source, target = drawn(tokens, 2 * hidden), torch.empty(tokens, 2 * hidden, dtype=dtype, device=device)
    wide, query_key = x.numel() * 2, tokens * (heads + kv_heads) * head_dim * 2
    # name -> (the call, bytes it has to read and write)
    work: dict[str, tuple[Side, int]] = {
        "copy": (lambda: target.copy_(source), 2 * source.numel() * 2),
        "norm_modulate": (lambda: norm_modulate(x, modulation[:, 0], row, frame, eps=1e-5, impl=impl), 2 * wide),
        "gated_residual": (
            lambda: gated_residual(x, y, modulation[:, 1], row, frame, eps=1e-5, impl=impl),
            3 * wide,
        ),
        "gated_residual+norm": (
            lambda: gated_residual(
                x, y, modulation[:, 1], row, frame, eps=1e-5, next_multiplier=modulation[:, 2], impl=impl
            ),
            4 * wide,
        ),
        "qk_norm_rope": (
            lambda: qk_norm_rope(
                qkv, *norms, position, table, table, heads=heads, kv_heads=kv_heads, eps=1e-5, impl=impl
            ),
            2 * query_key,
        ),
        "swiglu": (lambda: swiglu(gate_up, impl=impl), 3 * tokens * ffn * 2),
        "update": (
            lambda: update(output, state[0], state[1], index, weight, solver, velocity=state[2], impl=impl),
            4 * slots * (width * (2 + 2 + 3) + 4 + 4 + 6),
        ),
    }
    for kind in ("int8", "fp8"):
        work |= {
            f"norm_modulate-{kind}": (
                lambda kind=kind: norm_modulate(x, modulation[:, 0], row, frame, eps=1e-5, quantize=kind, impl=impl),
                wide * 3 // 2,
            ),
            f"swiglu-{kind}": (lambda kind=kind: swiglu(gate_up, quantize=kind, impl=impl), 5 * tokens * ffn),
            f"quantize_rows-{kind}": (lambda kind=kind: quantize_rows(x, kind, impl=impl), wide * 3 // 2),
        }
    case = f"{tokens} tokens of {hidden}, bf16"
    built = bench.build({name: (lambda side=side: side) for name, (side, _) in work.items()}, case)
    seconds = bench.seconds(built, captured=True)
    for name, values in seconds.items():
        bench.add(name, case, "bandwidth", "GB/s", [work[name][1] / each / 1e9 for each in values])
    for name, values in seconds.items():
        if name != "copy":
            share = work[name][1] / work["copy"][1]
            pairs = zip(seconds["copy"], values, strict=True)
            bench.add(f"{name}/copy", case, "bandwidth_ratio", "x", [share * copy / ours for copy, ours in pairs])
    return work["copy"][1] / sorted(seconds["copy"])[len(seconds["copy"]) // 2]


def products(bench: Bench) -> None:
    """Time the products of one layer in bf16, int8 and fp8, and 4-bit weights for few tokens."""
    m, hidden, ffn = (32, 64, 128) if bench.tiny else (8192, HIDDEN, FFN)
    shapes = {"qkv": (hidden, 3 * hidden // 2), "wo": (hidden,) * 2, "gate_up": (hidden, 2 * ffn), "w2": (ffn, hidden)}
    for name, (k, n) in shapes.items():
        a, b = torch.randn(m, k, device=bench.device).bfloat16(), torch.randn(n, k, device=bench.device).bfloat16()
        sides: dict[str, Callable[[], Side]] = {"gemm-bf16": lambda a=a, b=b: lambda: torch.nn.functional.linear(a, b)}
        for kind in ("int8", "fp8"):
            sides[f"gemm-{kind}"] = lambda a=a, b=b, kind=kind: _quantized(a, b, kind, "auto", bench)
            if bench.device.type == "cuda":
                sides[f"gemm-{kind}-triton"] = lambda a=a, b=b, kind=kind: _quantized(a, b, kind, "triton", bench)
        case = f"{name}: {m} x {k} x {n}"
        for side, values in bench.seconds(bench.build(sides, case), captured=True).items():
            bench.add(side, case, "rate", "TFLOP/s", [2 * m * n * k / each / 1e12 for each in values])
    few = 16
    a, b = torch.randn(few, hidden, device=bench.device).bfloat16(), torch.randn(ffn, hidden, device=bench.device)
    packed, scale = pack_int4(b, 64)
    low = b.bfloat16()
    sides = {
        "gemm-bf16": lambda: lambda: torch.nn.functional.linear(a, low),
        "weight_only_matmul": lambda: lambda: weight_only_matmul(a, packed, scale, group=64, impl=bench.impl),
    }
    case = f"4-bit weights: {few} x {hidden} x {ffn}"
    for side, values in bench.seconds(bench.build(sides, case), captured=True).items():
        bench.add(side, case, "rate", "TFLOP/s", [2 * few * hidden * ffn / each / 1e12 for each in values])


def _quantized(a: Tensor, b: Tensor, kind: str, impl: str, bench: Bench) -> Side:
    (qa, a_scale), (qb, b_scale) = (quantize_rows(each, kind, impl=bench.impl) for each in (a, b))
    chosen = impl if bench.device.type == "cuda" else "reference"
    return lambda: scaled_matmul(qa, qb, a_scale, b_scale, out_dtype=torch.bfloat16, impl=chosen)


if __name__ == "__main__":
    sys.exit(run("kernels", __doc__, measure))
