"""The training loop of a transformer: draw, step, note losses, save, stop."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from losses import EVERY, Losses
from stop import Stop, Timer
from torch import Tensor
from trainer import Trainer


class Drawn(Protocol):
    """A batch: sequences that can be shared out among threads. tasks: one per sequence."""

    tasks: list[str]

    def parts(self, count: int) -> Sequence["Drawn"]: ...


class Maker(Protocol):
    def draw(self) -> Drawn: ...


def train(
    trainer: Trainer,
    maker: Maker,
    loss_of: Callable[[Any], Tensor],
    losses: Losses,
    emphasis: Mapping[str, float],
    *,
    minutes: float | None,
    report: Callable[[str], None],
    output: Path,
) -> None:
    """Train until the schedule or ``minutes`` of wall clock end, or SIGTERM; save every few minutes and then.

    Args:
        loss_of: gives the losses (sequences,) of a part of a batch.
        emphasis: of tasks, how much more than another's a loss of theirs counts; ``losses`` notes it without.
        output: folder that the average weights are saved in.
    """

    def save() -> None:
        losses.write()
        trainer.save()
        trainer.average.save(output)  # type: ignore[operator]  # a module of ours

    timer, stopped = Timer(minutes), Stop()
    while not (stopped or timer.over or trainer.step >= (trainer.schedule.steps or np.inf)):
        with timer.step(trainer):
            batch = maker.draw()
            parts = batch.parts(trainer.threads)
            counts = [torch.tensor([emphasis.get(task, 1.0) for task in part.tasks]) for part in parts]
            gradients, errors = trainer.gradients([partial(loss_of, part) for part in parts], counts)
            trainer.update(gradients)
            losses.add(batch.tasks, torch.cat(errors).tolist())
        if trainer.step % EVERY == 0:
            row = losses.row(trainer.step, trainer.seconds, trainer.cpu_seconds)
            values = [row[task] for task in losses.tasks if task in row]
            report(f"step {trainer.step} {trainer.seconds / 60:.1f} min loss {np.mean(values):.4f}")
        if timer.due:
            save()
    save()
    report(f"step {trainer.step}: weights in {output}")
