"""Where the time of a step goes: every operator alone, replayed as in a step, beside its bound, bytes or products."""

from collections.abc import Callable
from typing import Any

import torch
from device import Bench, Side
from full_size import Framert
from torch.nn import functional

from framert.kernels.frame_attention.api import frame_attention
from framert.kernels.gated_residual.api import gated_residual
from framert.kernels.norm_modulate.api import norm_modulate
from framert.kernels.qk_norm_rope.api import qk_norm_rope
from framert.kernels.swiglu.api import swiglu
from framert.kernels.update.api import update

SIDE = "framert-bf16"


def ledger(bench: Bench, name: str, framert: Framert) -> None:
    """Note milliseconds and bound of every operator of one step, and the share of the step that they explain."""
    framert()  # makes the tables' place
    bench.wait()
    denoiser: Any = framert.denoiser
    step, weights, arenas = denoiser._current(), denoiser._model.weights, denoiser._arenas
    text_k, text_v = arenas.text
    tables, layer, impl = step.tables, weights.layers[0], bench.impl
    tokens, depth = len(tables.source), len(weights.layers)
    hidden, dtype, low = weights.embed.shape[0], weights.dtype, weights.dtype.itemsize
    heads, (kv_heads, head_dim) = len(layer.gate), text_k.shape[2:]
    multiplier, row, frame = arenas.modulation[:, 0], tables.row, tables.frame
    residual = torch.randn(tokens, hidden, device=bench.device).to(step._settings.residual)
    wide = residual.element_size()
    x, y = (torch.randn(tokens, hidden, device=bench.device).to(dtype) for _ in range(2))
    qkv, gate_up = layer.qkv(x), layer.gate_up(x)
    ffn = gate_up.shape[1] // 2
    inner = swiglu(gate_up, impl=impl)
    split = qkv.view(tokens, heads + 2 * kv_heads, head_dim)
    parts = split[:, :heads], split[:, heads:-kv_heads], split[:, -kv_heads:]
    output = functional.linear(x.float(), weights.final, weights.final_bias)
    state = step.state
    pairs, words = (
        int((tables.q_range[:, 1].long() * ranges[:, 1].long()).sum())
        for ranges in (tables.kv_range, tables.text_range)
    )
    norm = {"eps": 1e-5, "impl": impl}

    def product(k: int, n: int) -> tuple[float, float]:
        return 2.0 * tokens * k * n, float(low * (tokens * (k + n) + k * n))

    slots, width = state.latents.shape
    # name -> (call, times per step, operations, bytes)
    work: dict[str, tuple[Side, int, float, float]] = {
        "qkv": (lambda: layer.qkv(x), depth, *product(hidden, qkv.shape[1])),
        "wo": (lambda: layer.wo(x), depth, *product(hidden, hidden)),
        "gate_up": (lambda: layer.gate_up(x), depth, *product(hidden, 2 * ffn)),
        "w2": (lambda: layer.w2(inner), depth, *product(ffn, hidden)),
        "frame_attention": (
            lambda: frame_attention(
                *parts, tables.q_range, tables.kv_range, text_k[0], text_v[0], tables.text_range,
                layer.gate, softcap=weights.softcap, scale=weights.scale, impl=impl,
            ),
            depth, 4.0 * (pairs + words) * heads * head_dim, low * tokens * 2 * (heads + kv_heads) * head_dim,
        ),
        "qk_norm_rope": (
            lambda: qk_norm_rope(
                qkv, layer.q_weight, layer.q_bias, layer.k_weight, layer.k_bias, tables.position, weights.cosine,
                weights.sine, heads=heads, kv_heads=kv_heads, eps=1e-5, impl=impl, q_out=parts[0], k_out=parts[1],
            ),
            depth, 0.0, 2.0 * low * tokens * (heads + kv_heads) * head_dim,
        ),
        "swiglu": (lambda: swiglu(gate_up, impl=impl), depth, 0.0, 3.0 * low * tokens * ffn),
        "gated_residual": (
            lambda: gated_residual(residual, y, multiplier, row, frame, next_multiplier=multiplier, **norm),
            2 * depth, 0.0, 2.0 * tokens * hidden * (wide + low),
        ),
        "norm_modulate": (
            lambda: norm_modulate(residual, multiplier, row, frame, **norm), 1, 0.0, 2.0 * tokens * hidden * wide,
        ),
        "embed and final": (
            lambda: (functional.linear(state.latents, weights.embed, weights.embed_bias),
                     functional.linear(x.float(), weights.final, weights.final_bias)),
            1, 0.0, 4.0 * (tokens + slots) * (hidden + width),
        ),
        "update": (
            lambda: update(
                output, state.latents, state.history, step._guidance_index, step._guidance_weight,
                state.update, velocity=state.velocity, impl=impl,
            ),
            1, 0.0, 4.0 * slots * width * 7,
        ),
    }  # fmt: skip
    rate, copy = _limits(bench, tokens, hidden, ffn, dtype)
    built = bench.build({name: (lambda side=side: side) for name, (side, *_) in work.items()}, name)
    whole = bench.seconds({"step": framert})["step"]
    total = 0.0
    for operator, values in bench.seconds(built, captured=True).items():
        _, times, operations, moved = work[operator]
        milliseconds = [1000 * times * each for each in values]
        total += sorted(milliseconds)[len(milliseconds) // 2]
        bound = 1000 * times * max(operations / rate, moved / copy)
        bench.add(f"{SIDE} {operator}", f"ledger: {name}", "time", "ms", milliseconds)
        bench.add(f"{SIDE} {operator}", f"ledger: {name}", "bound", "ms", [bound])
        share = [bound / each for each in milliseconds]
        bench.add(f"bound/{SIDE} {operator}", f"ledger: {name}", "time_ratio", "x", share)
    bench.add(SIDE, f"ledger: {name}", "step", "ms", [1000 * each for each in whole])
    explained = total / (1000 * sorted(whole)[len(whole) // 2])
    bench.add(SIDE, f"ledger: {name}", "explained", "share", [explained])
    flops = depth * sum(work[product_name][2] for product_name in ("qkv", "wo", "gate_up", "w2", "frame_attention"))
    bench.add(f"{SIDE}/gemm", f"ledger: {name}", "rate_ratio", "x", [flops / each / rate for each in whole])


def _limits(bench: Bench, tokens: int, hidden: int, ffn: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the best product's operations per second and the copy's bytes per second, measured here."""
    a, b = (torch.randn(n, hidden, device=bench.device).to(dtype) for n in (tokens, 2 * ffn))
    source = torch.randn(64 if bench.tiny else 2**28, device=bench.device)
    target = torch.empty_like(source)
    makers: dict[str, Callable[[], Side]] = {
        "gemm": lambda: lambda: functional.linear(a, b),
        "copy": lambda: lambda: target.copy_(source),
    }
    timed = bench.seconds(bench.build(makers, "limits"), captured=True)
    seconds = {side: sorted(values)[len(values) // 2] for side, values in timed.items()}
    rate, copy = 2.0 * tokens * hidden * 2 * ffn / seconds["gemm"], 8.0 * source.numel() / seconds["copy"]
    bench.add("gemm", "limits", "rate", "TFLOP/s", [rate / 1e12])
    bench.add("copy", "limits", "bandwidth", "GB/s", [copy / 1e9])
    return rate, copy
