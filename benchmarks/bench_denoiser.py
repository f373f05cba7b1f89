"""The full-size denoiser on a GPU, per step: framert beside the published algorithm and beside a hoisted writing of it.

    python benchmarks/bench_denoiser.py                      # under 8 minutes on an H200; rows to results/DEVICE.csv
    python benchmarks/bench_denoiser.py --device cpu --tiny  # every path without a GPU, no rows

Published configuration (2.8 B parameters), random weights, guidance on. Baselines in the same run: the published
algorithm eager in bf16 with softcap in plain operators, with flash-attn's softcap where that is installed, and with
torch's fused attention without softcap (as fast as it can be, and another model); the last with compiled layers; and
the hoisted one compiled for one shape, also without softcap. Then: where a step's time goes against what each operator
could reach, different requests packed against one after another, host time per step, and condition frames whose keys
and values are kept for 2 and 4 steps.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from baseline import GuidedStep, PublishedNextDiT, SelfAttention
from device import Bench, Side, run
from full_size import GUIDANCE, PUBLISHED, TINY, Framert, Inputs, Member, random_model, step_weights, tokens_of
from hoisted import HoistedStep
from ledger import ledger

from framert.runtime.backends.triton.settings import Settings

CASES = {
    "512x512, 1 frame": Member(1, 32, 32), "1024x1024, 1 frame": Member(1, 64, 64),
    "512x512, 2 frames": Member(2, 32, 32), "1024x1024, 2 frames": Member(2, 64, 64),
    "4 views of 512x512 with rays": Member(8, 32, 32),
}  # fmt: skip
MIX = {"mixed": [Member(1, 32, 32), Member(2, 32, 32), Member(1, 48, 48), Member(4, 16, 16)]}
TINY_CASES = {"64x64, 1 frame": Member(1, 4, 4), "64x96, 2 frames": Member(2, 4, 6)}
TINY_MIX = {"mixed": [Member(1, 4, 4), Member(2, 4, 6), Member(1, 6, 6), Member(4, 2, 2)]}
PRECISIONS = ("bf16", "fp8", "int8")
COMPILE_SECONDS = 60.0  # left of the budget before another baseline is compiled


class Setup:
    """The model, and framert's weights of it by precision."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.config: dict[str, Any] = TINY if bench.tiny else PUBLISHED
        self.dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
        bench.say("drawing the model")
        self.model = random_model(self.config, self.dtype, bench.device)
        self._weights: dict[str, Any] = {}

    def framert(self, precision: str, members: list[Member], inputs: list[Inputs], *, reuse: bool = False) -> Framert:
        impl = self.bench.impl
        computed: Any = "fp32" if precision == "bf16" and self.bench.device.type == "cpu" else precision
        if precision not in self._weights:
            self._weights[precision] = step_weights(self.model, self.config, computed, self.bench.device, impl)
        settings = Settings(device=self.bench.device, impl=impl, precision=computed)  # type: ignore[arg-type]
        return Framert(self.model, self.config, self._weights[precision], settings, members, inputs, reuse=reuse)

    def forget(self, precision: str) -> None:
        self._weights.pop(precision, None)
        self.bench.free()

    def eager(self, inputs: Inputs, attention: SelfAttention, *, compiled: bool = False) -> Side:
        """One step of the published algorithm; "sdpa" is torch's attention without softcap."""
        mask = torch.ones(inputs.text.shape[:2], device=self.bench.device)
        step = GuidedStep(_attending(self.model, attention, compiled), inputs.text, mask, GUIDANCE, self.dtype)
        return lambda: step(inputs.latents, inputs.levels, inputs.delta)

    def hoisted(self, member: Member, inputs: Inputs) -> Side:
        mask = torch.ones(inputs.text.shape[:2], device=self.bench.device)
        step = HoistedStep(
            self.model, self.config, inputs.text, mask, inputs.levels, shape=(member.height, member.width),
            guidance=GUIDANCE, attention="sdpa", compiled=not self.bench.tiny,
        )  # fmt: skip
        return lambda: step(inputs.latents, inputs.delta)


def _attending(model: PublishedNextDiT, attention: SelfAttention, compiled: bool) -> Callable[..., torch.Tensor]:
    """Return the model, switched to an attention when it is called; layers share their compiled code."""

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        for layer in model.layers:
            layer.attention.attention = attention
        if not compiled:
            return model(*arguments)
        plain = [layer.forward for layer in model.layers]
        try:
            for layer, forward in zip(model.layers, compiled_forwards, strict=True):
                layer.forward = forward
            return model(*arguments)
        finally:
            for layer, forward in zip(model.layers, plain, strict=True):
                layer.forward = forward

    compiled_forwards = [torch.compile(layer.forward, dynamic=False) for layer in model.layers] if compiled else []
    return call


def measure(bench: Bench) -> None:
    setup = Setup(bench)
    cases = TINY_CASES if bench.tiny else CASES
    accuracy(setup, *next(iter(cases.items())))
    for name, member in cases.items():
        steps(setup, name, member)
    for precision in ("fp8", "int8"):
        setup.forget(precision)
    packed(setup, (TINY_MIX if bench.tiny else MIX)["mixed"])
    for name, member in cases.items():
        if member.frames == 2:
            reuse(setup, name, member)
    name, member = list(cases.items())[1]
    ledger(bench, name, setup.framert("bf16", [member], [Inputs.random(member, setup.config, bench.device)]))


def accuracy(setup: Setup, name: str, member: Member) -> None:
    """Note how far every precision's velocity, and the eager baseline's in its dtype, is from eager fp32's."""
    bench = setup.bench
    inputs = Inputs.random(member, setup.config, bench.device)
    mask = torch.ones(inputs.text.shape[:2], device=bench.device)
    exact = GuidedStep(random_copy(setup), inputs.text, mask, GUIDANCE, torch.float32)
    expected = tokens_of(exact(inputs.latents, inputs.levels, inputs.delta)[1])
    del exact
    bench.free()

    def note(side: str, velocity: np.ndarray) -> None:
        error = float(np.linalg.norm(velocity - expected) / np.linalg.norm(expected))
        bench.add(side, f"{name}; guidance", "velocity_error", "1", [error])

    step = setup.eager(inputs, "softcap")
    note("eager", tokens_of(step()[1]))  # type: ignore[index]
    for precision in PRECISIONS:
        makers = {f"framert-{precision}": lambda precision=precision: setup.framert(precision, [member], [inputs])}
        for side, built in bench.build(makers, name).items():
            note(side, built.velocity())


def random_copy(setup: Setup) -> PublishedNextDiT:
    """Return the model in fp32 with the very weights of the other, which are bf16."""
    copy = random_model(setup.config, torch.float32, setup.bench.device)
    for target, source in zip(copy.parameters(), setup.model.parameters(), strict=True):
        target.copy_(source)
    return copy


def steps(setup: Setup, name: str, member: Member) -> None:
    """Time a step of one request on every side."""
    bench, case = setup.bench, f"{name}; guidance"
    inputs = Inputs.random(member, setup.config, bench.device)
    makers: dict[str, Callable[[], Side]] = {
        f"framert-{precision}": lambda precision=precision: setup.framert(precision, [member], [inputs])
        for precision in PRECISIONS
    }
    makers["eager"] = lambda: setup.eager(inputs, "softcap")
    makers["eager-flash"] = lambda: setup.eager(inputs, "flash")
    makers["eager-sdpa"] = lambda: setup.eager(inputs, "sdpa")
    if bench.left() > 2 * COMPILE_SECONDS:
        makers["compiled-sdpa"] = lambda: setup.eager(inputs, "sdpa", compiled=not bench.tiny)
    if bench.left() > COMPILE_SECONDS:
        makers["hoisted-compiled"] = lambda: setup.hoisted(member, inputs)
    else:
        bench.say(f"no time left to compile baselines for {name}")
    built = bench.build(makers, case)
    seconds = bench.seconds(built)
    for side, values in seconds.items():
        bench.add(side, case, "step", "ms", [1000 * each for each in values])
    for precision in PRECISIONS:
        ours = f"framert-{precision}"
        for theirs in ("eager", "eager-flash", "eager-sdpa", "compiled-sdpa", "hoisted-compiled"):
            if ours in seconds and theirs in seconds:
                ratios = [slow / fast for fast, slow in zip(seconds[ours], seconds[theirs], strict=True)]
                bench.add(f"{ours}/{theirs}", case, "rate_ratio", "x", ratios)
    if "framert-bf16" in built:
        host_time(bench, case, built["framert-bf16"])
    del built, makers
    torch.compiler.reset()  # or the next size counts as a recompilation
    bench.free()


def host_time(bench: Bench, case: str, step: Side) -> None:
    """Note how long the host takes to queue a step, the device being idle before each."""
    samples = []
    for _ in range(bench.rounds):
        bench.wait()
        begin = time.perf_counter()
        step()
        samples.append(1000 * (time.perf_counter() - begin))
        bench.wait()
    bench.add("framert-bf16", case, "host_time", "ms", samples)


def packed(setup: Setup, members: list[Member]) -> None:
    """Time four different requests in one call and one after another."""
    bench, case = setup.bench, "4 different requests; guidance"
    inputs = [Inputs.random(member, setup.config, bench.device) for member in members]
    alone = [setup.framert("bf16", [member], [given]) for member, given in zip(members, inputs, strict=True)]
    together = setup.framert("bf16", members, inputs)
    sides: dict[str, Callable[[], Side]] = {
        "framert-bf16 packed": lambda: together,
        "framert-bf16 alone": lambda: lambda: [each() for each in alone],
    }
    seconds = bench.seconds(bench.build(sides, case))
    for side, values in seconds.items():
        bench.add(side, case, "steps", "ms", [1000 * each for each in values])
    pairs = zip(seconds["framert-bf16 packed"], seconds["framert-bf16 alone"], strict=True)
    bench.add("framert-bf16 packed/framert-bf16 alone", case, "rate_ratio", "x", [slow / fast for fast, slow in pairs])


def reuse(setup: Setup, name: str, member: Member) -> None:
    """Time the steps of a request whose condition frame's keys and values are kept for k steps."""
    bench, case = setup.bench, f"{name}; guidance"
    inputs = Inputs.random(member, setup.config, bench.device)
    step = setup.framert("bf16", [member], [inputs], reuse=True)
    step()  # fills the cache

    def cycle(count: int) -> Side:
        def call() -> None:
            step()
            for _ in range(count - 1):
                step.skip()

        return call

    makers = {f"framert-bf16 reuse {count}": lambda count=count: cycle(count) for count in (1, 2, 4)}
    seconds = bench.seconds(bench.build(makers, case))
    per_step = {side: [each / int(side[-1]) for each in values] for side, values in seconds.items()}
    for side, values in per_step.items():
        bench.add(side, case, "step", "ms", [1000 * each for each in values])
    for side in list(per_step)[1:]:
        pairs = zip(per_step[side], per_step["framert-bf16 reuse 1"], strict=True)
        bench.add(f"{side}/framert-bf16 reuse 1", case, "rate_ratio", "x", [slow / fast for fast, slow in pairs])


if __name__ == "__main__":
    sys.exit(run("denoiser", __doc__, measure))
