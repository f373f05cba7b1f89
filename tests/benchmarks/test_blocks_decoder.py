"""Training the decoder on: pictures come nearer, the encoder and so the latents stay, and a resumed run goes on."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import autoencoder  # noqa: E402
import batches  # noqa: E402
import dataset  # noqa: E402
import decoder  # noqa: E402
import stop  # noqa: E402
import trainer  # noqa: E402

sys.path.remove(FOLDER)


def test_decoder_learns_and_the_encoder_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "HELD_OUT_SEEDS", range(1))
    torch.manual_seed(0)
    vae = autoencoder.build_autoencoder((8, 8, 8, 8), 16)
    pictures = np.stack([dataset.render_scene(seed, 16) for seed in range(2)])
    latents = autoencoder.encode(vae, pictures.reshape(-1, 16, 16, 3), "cpu").half().numpy()
    latents = latents.reshape(*pictures.shape[:2], 16, 2, 2)
    before, digest = autoencoder.held_out_decibels(vae, 16, "cpu"), batches._digest(vae)
    said, saved = [], []

    def run(steps):
        return decoder.train_decoder(
            vae, pictures, latents, state=tmp_path / "state.pt",
            schedule=trainer.Schedule(rate=2e-3, warmup=2, steps=steps), batch=8, threads=2, minutes=None, seed=0,
            device="cpu", report=said.append, save=lambda each: saved.append(each.decoder),
        )  # fmt: skip

    first = run(12)
    assert first > before + 0.3
    assert batches._digest(vae) == digest  # so the latents in the cache are still this autoencoder's
    assert saved[-1] is not vae.decoder  # the average is what is written
    assert run(24) > first
    assert [line.split()[2] for line in said] == ["12,", "24,"]
    with torch.no_grad():
        next(vae.encoder.parameters()).add_(1)
    assert batches._digest(vae) != digest


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
