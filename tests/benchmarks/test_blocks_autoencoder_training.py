"""Training the autoencoder or its decoder: pictures come nearer, latents stay or follow, a resumed run goes on."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import autoencoder  # noqa: E402
import autoencoder_training  # noqa: E402
import batches  # noqa: E402
import dataset  # noqa: E402
import muon  # noqa: E402
import stop  # noqa: E402
import trainer  # noqa: E402

sys.path.remove(FOLDER)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a small autoencoder, pictures, their latents, and what trains it to so many steps in all."""
    monkeypatch.setattr(autoencoder, "HELD_OUT_SEEDS", range(1))
    torch.manual_seed(0)
    vae = autoencoder.build_autoencoder((8, 8, 8, 8), 16)
    pictures = np.stack([dataset.render_scene(seed, 16) for seed in range(2)])
    latents = autoencoder.encode(vae, pictures.reshape(-1, 16, 16, 3), "cpu").half().numpy()
    said, saved = [], []

    def run(steps, latents=None):
        decibels, whole = autoencoder_training.train_autoencoder(
            vae, pictures, latents, state=tmp_path / "state.pt",
            schedule=trainer.Schedule(rate=2e-3, warmup=2, steps=steps), batch=8, threads=2, minutes=None, seed=0,
            device="cpu", report=said.append, save=saved.append,
        )  # fmt: skip
        assert whole
        return decibels

    return SimpleNamespace(
        vae=vae, latents=latents.reshape(*pictures.shape[:2], 16, 2, 2), pictures=pictures, run=run, said=said,
        saved=saved,
    )  # fmt: skip


def test_decoder_learns_and_the_encoder_stays(start):
    before, digest = autoencoder.held_out_decibels(start.vae, 16, "cpu"), batches._digest(start.vae)
    first = start.run(12, start.latents)
    assert first > before + 0.3
    assert batches._digest(start.vae) == batches._digest(start.saved[-1]) == digest  # latents in the cache still hold
    assert start.saved[-1] is not start.vae  # the average is what is written
    assert start.run(24, start.latents) > first
    assert [line.split()[2] for line in start.said] == ["12,", "24,"]


def test_both_parts_learn_and_the_scale_follows(start):
    before, digest = autoencoder.held_out_decibels(start.vae, 16, "cpu"), batches._digest(start.vae)
    first = start.run(12)
    assert first > before + 0.3
    saved = start.saved[-1]
    assert batches._digest(saved) != digest
    latents = autoencoder.encode(saved, start.pictures.reshape(-1, 16, 16, 3), "cpu")
    assert float(latents.std()) == pytest.approx(1, abs=0.02)
    assert start.run(24) > first


def test_a_state_of_the_other_kind_is_refused(start):
    start.run(2)
    with pytest.raises(ValueError, match="is of another model"):
        start.run(4, start.latents)


def test_the_loss_of_a_picture_does_not_depend_on_the_others(start):
    target = autoencoder.to_tensor(start.pictures[0, :4])
    noise = torch.randn(4, 16, 2, 2)
    together = autoencoder_training.autoencoder_loss(start.vae, target, noise)
    alone = [
        autoencoder_training.autoencoder_loss(start.vae, *pair)
        for pair in zip(target.split(1), noise.split(1), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=2e-2, atol=1e-3)  # computed in bf16
    assert together.std() > 0.01


@pytest.mark.parametrize(
    ("name", "shape", "taken"),
    [
        ("encoder.mid_block.resnets.0.conv1.weight", (8, 8, 3, 3), True),
        ("decoder.mid_block.attentions.0.to_q.weight", (8, 8), True),
        ("encoder.conv_in.weight", (8, 3, 3, 3), False),
        ("decoder.conv_out.weight", (3, 8, 3, 3), False),
        ("decoder.mid_block.resnets.0.norm1.weight", (8,), False),
    ],
)
def test_muon_takes_what_lies_inside(name, shape, taken):
    assert autoencoder_training.matrix(name, torch.zeros(shape)) == taken


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 4, 3, 3)], ids=["wide", "tall"])
def test_muon_moves_a_kernel_as_the_matrix_it_is(shape):
    """A convolution's kernel and the same numbers as a matrix take the same step, orthogonal up to Newton-Schulz."""
    torch.manual_seed(0)
    start, gradient = torch.randn(shape), torch.randn(shape)
    kernel = torch.nn.Parameter(start.clone(memory_format=torch.channels_last))
    plain = torch.nn.Parameter(start.flatten(1).clone())
    for parameter, grad in ((kernel, gradient), (plain, gradient.flatten(1))):
        parameter.grad = grad.clone()
        muon.Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.0).step()
        moved = (start.flatten(1) - parameter.detach().flatten(1)) / (0.1 * 0.2 * max(start.flatten(1).shape) ** 0.5)
        singular = torch.linalg.svdvals(moved)
        assert 0.5 < singular.min() <= singular.max() < 1.4
    assert torch.equal(kernel.detach().flatten(1), plain.detach())


def test_a_training_is_over_when_its_minutes_are(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    timer, endless = stop.Timer(0.5), stop.Timer(None)
    assert not timer.over
    assert not timer.due
    now[0] += stop.SAVE_SECONDS
    assert timer.over
    assert not endless.over
    assert timer.due
    assert not timer.due  # until as long again has passed


def test_a_signal_asks_to_stop_and_does_not_interrupt(monkeypatch):
    import os
    import signal

    earlier = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        asked = stop.Stop()
        assert not asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), earlier, strict=True):
            signal.signal(number, handler)
