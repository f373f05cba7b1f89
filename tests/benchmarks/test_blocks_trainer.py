"""Training Blocks: threads change nothing, a resumed run is the same run, and the rate and the curves go on."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import loop  # noqa: E402
import losses  # noqa: E402
import trainer  # noqa: E402

sys.path.remove(FOLDER)

SCHEDULE = trainer.Schedule(rate=0.02, warmup=3, plateau=10)


def matrix(name, parameter):
    return parameter.ndim == 2 and name.startswith("0")


@pytest.fixture
def start(tmp_path):
    """Return what makes a trainer of a small model, always from the same weights, with its state in ``tmp_path``."""

    def make(threads=1, name="state.pt"):
        torch.manual_seed(0)
        model, average = (torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)) for _ in range(2))
        average.load_state_dict(model.state_dict())
        return trainer.Trainer(model, average, tmp_path / name, SCHEDULE, matrix, threads)

    return make


def run(made, steps, parts=1):
    """Train on the same ten rows each step number has, cut into ``parts``."""

    def loss(x):
        return (made.model(x) - x[:, :4].roll(1, 1)).square().mean(1)

    for _ in range(steps):
        rows = torch.randn(10, 6, generator=torch.Generator().manual_seed(made.step))
        gradients, errors = made.gradients([partial(loss, x) for x in rows.chunk(parts)])
        made.update(gradients)
    return torch.cat(errors)


def weights(made):
    return torch.cat([value.flatten() for model in (made.model, made.average) for value in model.state_dict().values()])


def test_two_threads_take_the_steps_of_one(start):
    one, two = start(), start(threads=2)
    run(one, 6), run(two, 6, parts=2)
    # Muon works in bf16: a last bit of the gradients may change what it rounds to.
    torch.testing.assert_close(weights(two), weights(one), atol=2e-3, rtol=0)
    assert (weights(one) - weights(start(name="none"))).abs().max() > 0.02


@pytest.mark.parametrize("threads", [1, 2])
def test_a_resumed_run_is_the_same_run(start, threads):
    whole, first = start(name="whole.pt"), start()
    run(whole, 7), run(first, 4)
    first.seconds = 12.5
    first.save()
    again = start(threads=threads)
    assert (again.step, again.seconds) == (4, 12.5)
    torch.testing.assert_close(run(again, 3), run(start(), 3), atol=0, rtol=0)
    torch.testing.assert_close(weights(again), weights(whole), atol=0, rtol=0)


def test_weights_alone_go_on_at_their_step_and_warm_up_anew(start):
    made = start()
    made.go_on_from(20, 60.0, 90.0)
    assert (made.step, made.seconds, made.cpu_seconds) == (20, 60.0, 90.0)
    rates = []
    for share in made.shares:
        share.step = lambda rate, step=share.step: (rates.append(rate), step(rate))
    run(made, 3)
    assert rates == pytest.approx([0.02 / 3, 0.04 / 3, 0.02 * (10 / 23) ** 0.5])
    made.save()
    again = start()
    run(again, 1)
    assert (again.step, again.since) == (24, 20)


def test_gradients_in_another_order_in_memory_take_the_same_step(start):
    """As those of convolutions do for pictures whose channels come last."""
    usual, other = start(), start(name="other.pt")
    given = {name: torch.randn(each.shape) for name, each in usual.parameters.items()}
    usual.update([{name: each.clone() for name, each in given.items()}])
    other.update([{name: each.clone() if each.ndim < 2 else each.T.clone().T for name, each in given.items()}])
    torch.testing.assert_close(weights(other), weights(usual), atol=0, rtol=0)


def test_emphasis_weighs_gradients_and_leaves_what_is_reported(start):
    made = start()
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))

    def loss(x):
        return made.model(x).square().mean(1)

    alone = [made.gradients([partial(loss, row[None])]) for row in rows]
    (found,), (errors,) = made.gradients([partial(loss, rows)], [torch.tensor([1.0, 4.0, 1.0, 0.0])])
    for name, value in found.items():
        each = [gradients[0][name] for gradients, _ in alone]
        torch.testing.assert_close(value, (each[0] + 4 * each[1] + each[2]) / 4)
    torch.testing.assert_close(errors, torch.cat([error for _, (error,) in alone]))


def test_the_loop_emphasises_tasks_and_notes_their_plain_losses(start, tmp_path):
    """Between a task that pulls up and one that pulls down, the emphasised one wins."""

    batch = SimpleNamespace(tasks=["up", "down"], parts=lambda count: [batch])
    moved = {}
    for name, emphasis in {"up": {"up": 3.0}, "down": {"down": 3.0}}.items():
        made = start(name=f"{name}.pt")
        made.average.save = lambda folder: None
        made.schedule = replace(SCHEDULE, steps=losses.EVERY)

        def output(model=made.model):
            return model(torch.ones(6)).sum()

        def loss_of(part, output=output):
            return torch.stack([1 - output(), 1 + output()])

        before = output().item()
        curve = losses.Losses(tmp_path / f"{name}.csv", batch.tasks, 0)
        maker = SimpleNamespace(draw=lambda: batch)
        loop.train(made, maker, loss_of, curve, emphasis, minutes=None, report=lambda line: None, output=tmp_path)
        moved[name] = output().item() - before
        (row,) = losses.read(tmp_path / f"{name}.csv")
        assert row["up"] + row["down"] == pytest.approx(2, abs=1e-4)
    assert moved["up"] > 0.05
    assert moved["down"] < -0.05


def test_an_interrupted_save_leaves_the_earlier_state(start, monkeypatch):
    made = start()
    run(made, 2)
    made.save()
    run(made, 1)

    def save(value, path):
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(KeyboardInterrupt):
            made.save()
    assert start().step == 2


def test_the_gradient_is_clipped_to_a_norm_of_one_over_all_shares(start):
    norms = []
    made = start(threads=2)
    for share in made.shares:
        share.step = lambda rate, share=share: norms.append(
            sum(float(each.grad.square().sum()) for each in share.parameters.values())
        )
    gradients, _ = made.gradients([lambda: 1000 * made.model(torch.ones(2, 6)).sum(1)])
    made.update(gradients)
    assert sum(norms) ** 0.5 == pytest.approx(trainer.CLIP, rel=1e-5)


def test_rate_warms_up_holds_falls_with_the_root_and_ends_at_zero():
    open_ended, ended = SCHEDULE, trainer.Schedule(rate=0.02, warmup=3, plateau=10, steps=100)
    assert [round(open_ended.at(step) / 0.02, 3) for step in (0, 1, 2, 9, 39)] == [0.333, 0.667, 1, 1, 0.5]
    assert [ended.at(step) for step in (0, 50, 75)] == [open_ended.at(step) for step in (0, 50, 75)]
    assert ended.at(88) < 0.5 * open_ended.at(88)
    assert ended.at(100) == 0


@pytest.mark.parametrize("steps", [50, 800, 6400])
def test_the_average_looks_back_over_an_eighth_whatever_the_length(steps):
    age, mass = 0.0, 0.0
    for step in range(1, steps + 1):
        weight = trainer.average_weight(step)
        age, mass = (1 - weight) * (age + mass), (1 - weight) * mass + weight
    assert mass == pytest.approx(1)
    assert age / steps == pytest.approx(1 / 9, rel=0.15)


def test_curves_go_on_where_the_state_stands(tmp_path):
    path = tmp_path / "losses.csv"
    first = losses.Losses(path, ["deblur", "edit"], 0)
    for step in (50, 100, 150):
        first.add(["edit", "edit", "deblur"] if step < 150 else ["edit"], [0.5, 0.7, step] if step < 150 else [0.25])
        row = first.row(step, step / 10, step / 5)
        assert row["edit"] == pytest.approx(0.6 if step < 150 else 0.25)
    first.write()
    assert path.read_text().splitlines()[0] == "step,seconds,cpu_seconds,deblur,edit"
    again = losses.Losses(path, ["deblur", "edit"], 100)
    assert [row["step"] for row in again.rows] == [50, 100]
    again.add(["deblur"], [3.0])
    again.row(150, 15, 30)
    again.write()
    assert [row.get("deblur") for row in losses.read(path)] == [50, 100, 3]
    assert "edit" not in losses.read(path)[-1]
    assert SimpleNamespace(**losses.read(path)[0]).seconds == 5
