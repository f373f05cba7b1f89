"""Launches of FrameAttention as ``kernels.aot`` describes them, without compiling any, for the tests of its plugins."""

from typing import Any

from framert.kernels.frame_attention import kernel
from framert.kernels.plugin.launch import Launch
from framert.kernels.specialization import ModelShape

SHAPE = ModelShape(
    name="tiny", hidden=96, depth=2, heads=4, kv_heads=2, head_dim=24, ffn=64, token_width=8, softcap=30.0
)


def launches(dtype: Any = "fp16", targets: tuple[str, ...] = ("sm_86", "sm_89"), *, text: bool = True) -> list[Launch]:
    made = []
    for target in targets:
        one = kernel.specializations(SHAPE, dtype, int(target.removeprefix("sm_")), text=text)[0]
        arguments = tuple((name, kind) for name, kind in one.signature.items() if kind != "constexpr")
        made.append(
            Launch(
                target=target,
                entry=f"kernel_{target}",
                arguments=arguments,
                divisible=tuple(name for name, _ in arguments if name in one.divisible),
                constants=dict(one.constants),
                grid=one.grid,
                threads=32 * one.warps,
                shared_memory=1 << 16,
                kernel_hash=target,
                image=b"cubin",
            )
        )
    return made


def shapes(tokens: int = 50, sequences: int = 3, capacity: int = 7, *, text: bool = True) -> list[tuple[int, ...]]:
    """Return the shapes of FrameAttention's inputs, ``capacity`` being that of the text arenas."""
    kv = (tokens, SHAPE.kv_heads, SHAPE.head_dim)
    arena = (capacity, *kv[1:])
    own = [(tokens, SHAPE.heads, SHAPE.head_dim), kv, kv, (sequences, 2), (sequences, 2)]
    return [*own, arena, arena, (sequences, 2), (SHAPE.heads,)] if text else own
