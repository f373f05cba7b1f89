"""Optimizers, moving average, learning rate and their state on disk, for models that threads train together.

On a CPU each thread takes a share of a batch, with one core for itself, and then a share of the parameters: threads
meet three times a step instead of in every operation, which is 1.7 times as fast on two cores and does not stall when
other programs take a core away.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from muon import Muon
from torch import Tensor, nn

CLIP = 1.0  # norm of all gradients together


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate by step: warm-up, ``rate``, from step ``plateau`` on falling with the square root, and an end.

    The rate depends on steps alone. With ``steps`` the last ``DECAY_SHARE`` of so many steps fall to zero on a line;
    without, the end is open, and training can be finished later by giving ``steps``.
    """

    rate: float
    warmup: int = 200
    plateau: int = 8000
    steps: int | None = None

    DECAY_SHARE = 0.25

    def at(self, step: int, since: int = 0) -> float:
        """Return the rate of the update from ``step`` to ``step + 1`` by moments that began at step ``since``."""
        rate = self.rate * min(1.0, (step + 1 - since) / self.warmup, (self.plateau / (step + 1)) ** 0.5)
        if self.steps is None:
            return rate
        return rate * min(1.0, max(0.0, (self.steps - step) / (self.DECAY_SHARE * self.steps)))


def average_weight(step: int) -> float:
    """Return the newest weights' share of the average after ``step`` updates.

    The average looks back over a fixed share of the training, about its last eighth, however long that was: it needs
    no end to be chosen. Source: "power function" averages of EDM2, arXiv:2312.02696, gamma 7.
    """
    return min(1.0, 8 / (step + 7))


class Trainer:
    """Updates ``model`` and its ``average`` with the gradients that ``threads`` threads find.

    Args:
        matrices: says by a parameter's name whether Muon takes it; AdamW takes the others.
        state: the file that holds everything needed to go on.
    """

    def __init__(
        self,
        model: nn.Module,
        average: nn.Module,
        state: Path,
        schedule: Schedule,
        matrices: Callable[[str, Tensor], bool],
        threads: int = 1,
    ) -> None:
        self.model, self.average, self.state, self.schedule = model, average, state, schedule
        self.threads, self.step, self.since, self.seconds, self.cpu_seconds = threads, 0, 0, 0.0, 0.0
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.averages = dict(average.named_parameters())
        self.shares = [_Share(names, self.parameters, matrices) for names in _dealt(self.parameters, threads)]
        if state.exists():
            self._load()

    def go_on_from(self, step: int, seconds: float, cpu_seconds: float) -> None:
        """Count on behind an earlier training whose weights are all that is left: moments are warmed up anew."""
        self.step = self.since = step
        self.seconds, self.cpu_seconds = seconds, cpu_seconds

    def gradients(
        self, losses: Sequence[Callable[[], Tensor]], emphasis: Sequence[Tensor] | None = None
    ) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
        """Return the gradients of each loss's mean and the losses (sequences,); one thread takes one of them.

        emphasis: what each loss's sequences are multiplied by (sequences,) in the mean, not in what is returned.
        """
        pairs = [(loss, None) for loss in losses] if emphasis is None else list(zip(losses, emphasis, strict=True))
        return tuple(zip(*self._each(self._gradient, pairs), strict=True))  # type: ignore[return-value]

    def update(self, gradients: Sequence[dict[str, Tensor]]) -> None:
        """Take one step along the mean of ``gradients``."""
        count = len(gradients)

        def gather(share: "_Share") -> float:
            for name in share.names:
                total = gradients[0][name]
                for other in gradients[1:]:
                    total += other[name]
                self.parameters[name].grad = _laid_out_like(self.parameters[name], total.div_(count))
            return sum(float(self.parameters[name].grad.square().sum()) for name in share.names)

        def apply(share: "_Share") -> None:
            scale = CLIP / max(CLIP, norm)
            for name in share.names:
                self.parameters[name].grad.mul_(scale)
            share.step(rate)
            ours, theirs = ([values[name] for name in share.names] for values in (self.averages, self.parameters))
            with torch.no_grad():
                torch._foreach_lerp_(ours, theirs, weight)

        norm = sum(self._each(gather, self.shares)) ** 0.5
        rate, weight = self.schedule.at(self.step, self.since), average_weight(self.step + 1)
        self._each(apply, self.shares)
        self.step += 1

    def save(self) -> None:
        """Write the state beside and rename, so that a stop never leaves half a file."""
        optimizers: dict[str, dict[str, Tensor]] = {}
        for share in self.shares:
            optimizers |= share.state()
        saved = {
            "model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step,
            "since": self.since, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "optimizers": optimizers,
        }  # fmt: skip
        part = self.state.with_suffix(".part")
        torch.save(saved, part)
        os.replace(part, self.state)

    def _load(self) -> None:
        saved = torch.load(self.state, weights_only=True)
        if saved["model"].keys() != self.model.state_dict().keys():
            raise ValueError(f"{self.state} is of another model; delete it, or give another output folder")
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        counts = ("step", "since", "seconds", "cpu_seconds")
        self.step, self.since, self.seconds, self.cpu_seconds = (saved[name] for name in counts)
        for share in self.shares:
            share.restore(saved["optimizers"])

    def _gradient(self, pair: tuple[Callable[[], Tensor], Tensor | None]) -> tuple[dict[str, Tensor], Tensor]:
        loss, emphasis = pair
        errors = loss()
        mean = (errors if emphasis is None else errors * emphasis.to(errors.device)).mean()
        found = torch.autograd.grad(mean, list(self.parameters.values()))
        return dict(zip(self.parameters, found, strict=True)), errors.detach()

    def _each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        if self.pool is None:
            return [work(item) for item in items]
        return list(self.pool.map(work, items))


class _Share:
    """The parameters that one thread updates, and their optimizers."""

    def __init__(
        self, names: list[str], parameters: dict[str, nn.Parameter], matrices: Callable[[str, Tensor], bool]
    ) -> None:
        self.names, self.parameters = names, {name: parameters[name] for name in names}
        muon = [name for name in names if matrices(name, parameters[name])]
        rest = [name for name in names if name not in set(muon)]
        self.optimizers: list[torch.optim.Optimizer] = []
        if muon:
            self.optimizers.append(Muon([parameters[name] for name in muon], lr=0.0, momentum=0.95, weight_decay=0.01))
        if rest:
            self.optimizers.append(
                torch.optim.AdamW(
                    [parameters[name] for name in rest], lr=0.0, betas=(0.9, 0.97), weight_decay=0.0, fused=True
                )
            )

    def step(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return {parameter: its optimizer's state}: it does not depend on how parameters are shared out."""
        states = {}
        for name, parameter in self.parameters.items():
            for optimizer in self.optimizers:
                if parameter in optimizer.state:
                    states[name] = dict(optimizer.state[parameter])
        return states

    def restore(self, states: dict[str, dict[str, Tensor]]) -> None:
        """Take the states of this share's parameters; one that another optimizer had begins anew."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    (name,) = (name for name, each in self.parameters.items() if each is parameter)
                    if ("momentum" if isinstance(optimizer, Muon) else "exp_avg") in states.get(name, {}):
                        optimizer.state[parameter] = states[name]


def _laid_out_like(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """Return the gradient in its parameter's order in memory: torch's fused AdamW (2.13) pairs numbers by place."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _dealt(parameters: dict[str, nn.Parameter], count: int) -> list[list[str]]:
    """Return names of parameters in ``count`` shares of about equal size, alike shapes apart from each other."""
    shares: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(parameters, key=lambda name: (-parameters[name].numel(), name)):
        least = sizes.index(min(sizes))
        shares[least].append(name)
        sizes[least] += parameters[name].numel()
    return shares
