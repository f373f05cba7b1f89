"""The cache of encoded training pictures: one file per autoencoder and picture size, whole or not there."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "blocks")
sys.path.insert(0, FOLDER)  # the scripts import each other by name, as when they are run
import batches  # noqa: E402
import samples  # noqa: E402
from dataset import FRAME_NAMES  # noqa: E402
from heldout import training_stories  # noqa: E402

sys.path.remove(FOLDER)


def autoencoder(weight, scale=1.0):
    module = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(module.weight, weight)
    torch.nn.init.zeros_(module.bias)
    module.config = SimpleNamespace(scaling_factor=scale)
    return module


@pytest.fixture
def encoded(tmp_path, monkeypatch):
    """Encode two scenes of three pictures with a stand-in that writes the autoencoder's weight everywhere."""
    calls = []

    def encode(vae, pictures, device):
        calls.append(len(pictures))
        height, width = (length // 8 for length in pictures.shape[1:3])
        return torch.full((len(pictures), 16, height, width), vae.weight.item() * vae.config.scaling_factor)

    monkeypatch.setattr(batches, "encode", encode)
    folder = tmp_path / "cache"
    folder.mkdir()

    def run(vae, side=16):
        return batches.encode_all(vae, np.zeros((2, 3, side, side, 3), np.uint8), folder, "cpu")

    return SimpleNamespace(run=run, calls=calls, folder=folder)


def test_the_same_autoencoder_encodes_once(encoded):
    first, again = encoded.run(autoencoder(0.5)), encoded.run(autoencoder(0.5))
    np.testing.assert_array_equal(first, np.full((2, 3, 16, 2, 2), 0.5, np.float16))
    np.testing.assert_array_equal(again, first)
    assert encoded.calls == [6]


def test_another_autoencoder_scale_or_side_encodes_anew(encoded):
    assert encoded.run(autoencoder(0.5)).max() == 0.5
    assert encoded.run(autoencoder(0.25)).max() == 0.25
    assert encoded.run(autoencoder(0.5, scale=1.0000001)).max() == 0.5  # alike in six digits
    assert encoded.run(autoencoder(0.5), side=32).shape == (2, 3, 16, 4, 4)
    assert encoded.calls == [6] * 4


def test_an_interrupted_write_is_not_taken_for_the_whole(encoded, monkeypatch):
    def save(target, array):
        with target.open("wb") if isinstance(target, Path) else target as stream:
            stream.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save)
        with pytest.raises(KeyboardInterrupt):
            encoded.run(autoencoder(0.5))
    assert not list(encoded.folder.glob("*.npy"))
    assert encoded.run(autoencoder(0.5)).max() == 0.5


@pytest.mark.parametrize("counts", [samples.FRAME_COUNTS, samples.LATER_FRAME_COUNTS], ids=["first", "later"])
def test_shares_of_lengths_are_whole_and_every_task_has_one(counts):
    assert sum(counts.values()) == pytest.approx(1)
    assert all(any(length in counts for length in samples._lengths(task)) for task in samples.WEIGHTS)
    assert set(samples.EMPHASIS) <= set(samples.WEIGHTS)


def test_views_are_drawn_more_often_later():
    stories = training_stories(4)
    latents = np.zeros((4, len(FRAME_NAMES), 16, 2, 2), np.float16)
    drawn = {}
    for step in (0, samples.LATER - 200, samples.LATER):
        maker = batches.BatchMaker(latents, stories, 1, patch=1, seed=0, step=step)
        drawn[step] = np.mean([maker.draw().samples.shape[1] >= 4 for _ in range(400)])
    first, between, later = drawn.values()
    assert first == pytest.approx(0.29, abs=0.07)
    assert later == pytest.approx(0.57, abs=0.07)
    assert first < between < later
