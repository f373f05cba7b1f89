"""The bundle of the golden checkpoint: its velocities, its bits and the shape of its graphs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL

from framert.export import cases
from framert.export.checkpoint import open_checkpoint
from framert.export.plan import make_vae
from framert.export.verify import relative_error
from framert.runtime.bundle import GRAPHS, Bundle

GOLDEN = Path(__file__).parents[1] / "golden"
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def sessions(golden_bundle: Path, open_session: Callable[[Path], Any]) -> dict[str, Any]:
    return {name: open_session(golden_bundle / f"{name}.onnx") for name in GRAPHS}


def patches(frames: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """(batch, frames, channels, height, width) -> (tokens, side * side * channels), each (row, column, channel)."""
    batch, count, channels, height, width = frames.shape
    split = frames.reshape(batch * count, channels, height // side, side, width // side, side)
    return split.transpose(0, 2, 4, 3, 5, 1).reshape(-1, side * side * channels)


@pytest.mark.parametrize("name", ["one_frame", "two_frames_mixed_noise", "four_frames"])
def test_velocity_equals_the_golden_one(name: str, sessions: dict[str, Any]) -> None:
    golden = np.load(GOLDEN / f"transformer_{name}.npz")
    samples, mask = golden["samples"], golden["text_mask"].astype(bool)
    batch, frames, _, height, width = samples.shape
    grid = (height // 2, width // 2)
    tokens = grid[0] * grid[1]  # of a frame
    levels = golden["timesteps"].astype(np.float32)
    texts = [golden["text"][item][mask[item]].astype(np.float32) for item in range(batch)]
    conditions = [sessions["conditioner"].run(None, {"hidden_states": text, "noise_level": levels}) for text in texts]
    begins = np.cumsum([0, *(len(text) for text in texts)])[:-1]
    latents = patches(samples, 2).astype(np.float32)
    slots = np.arange(len(latents))
    sequences = np.stack((np.arange(batch) * frames * tokens, np.full(batch, frames * tokens)), axis=1)
    position = np.stack(np.meshgrid(np.arange(frames), *map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 3)
    feeds: Arrays = {
        "latents": latents,
        "history": np.zeros_like(latents),
        "source": slots,
        "position": np.tile(position, (batch, 1)),
        "frame": np.repeat(np.arange(batch * frames), tokens),
        "row": np.arange(batch * frames),
        "modulation": np.concatenate([condition[2] for condition in conditions]),
        "q_range": sequences,
        "kv_range": sequences,
        "text_k": np.concatenate([condition[0] for condition in conditions], axis=1),
        "text_v": np.concatenate([condition[1] for condition in conditions], axis=1),
        "text_range": np.stack((begins, [len(text) for text in texts]), axis=1),
        "guidance_index": np.repeat(slots[:, None], 4, axis=1),
        "guidance_weight": np.tile(np.array([1, 0, 0, 0], np.float32), (len(slots), 1)),
        "update": np.tile(np.array([1, 0.5, 0, 0, 1, 0], np.float32), (len(slots), 1)),
    }
    feeds = {key: array.astype(np.int32) if array.dtype == np.int64 else array for key, array in feeds.items()}
    next_latents, history, velocity = sessions["denoiser"].run(None, feeds)
    error = relative_error(velocity, patches(golden["velocity"], 2))
    print(f"{name}: velocity {error:.2e}")
    assert error <= 1e-5
    np.testing.assert_array_equal(history, velocity)
    np.testing.assert_allclose(next_latents, latents + 0.5 * velocity, rtol=1e-6, atol=1e-6)


def packs(bundle: Path, sessions: dict[str, Any]) -> tuple[Arrays, list[Arrays]]:
    """Return a pack of three requests, and each request alone; the same values."""
    manifest = Bundle.open(bundle).manifest
    members = cases.PACKS[2]

    def condition(feeds: cases.Case) -> Any:
        names = ["text_k", "text_v", "modulation"]
        return dict(zip(names, sessions["conditioner"].run(names, feeds), strict=True))

    whole = cases.pack(members, manifest, condition, np.random.default_rng(0))
    rng = np.random.default_rng(0)  # drawn in the same order
    return whole, [cases.pack((member,), manifest, condition, rng) for member in members]


def test_requests_have_the_same_bits_alone_and_packed(golden_bundle: Path, sessions: dict[str, Any]) -> None:
    whole, singles = packs(golden_bundle, sessions)
    together = sessions["denoiser"].run(None, whole)
    begin = 0
    for single in singles:
        end = begin + len(single["latents"])
        np.testing.assert_array_equal(single["latents"], whole["latents"][begin:end])
        for alone, packed in zip(sessions["denoiser"].run(None, single), together, strict=True):
            np.testing.assert_array_equal(alone, packed[begin:end])
        begin = end


def test_a_failing_request_does_not_reach_the_others(golden_bundle: Path, sessions: dict[str, Any]) -> None:
    whole, singles = packs(golden_bundle, sessions)
    clean = sessions["denoiser"].run(None, whole)
    first = len(singles[0]["latents"])
    whole["latents"][:first] = np.nan
    for before, after in zip(clean, sessions["denoiser"].run(None, whole), strict=True):
        assert np.isnan(after[:first]).all()
        np.testing.assert_array_equal(before[first:], after[first:])


def test_graphs_have_the_signatures_of_the_manifest(golden_bundle: Path, sessions: dict[str, Any]) -> None:
    kinds = {"float32": "tensor(float)", "int32": "tensor(int32)", "int64": "tensor(int64)"}
    for name, graph in Bundle.open(golden_bundle).manifest.graphs.items():
        for specs, found in (
            (graph.inputs, sessions[name].get_inputs()),
            (graph.outputs, sessions[name].get_outputs()),
        ):
            assert [(value.name, value.type, tuple(value.shape)) for value in found] == [
                (key, kinds[spec.dtype], spec.shape) for key, spec in specs.items()
            ]


def test_denoiser_has_one_node_for_each_thing_a_layer_does(golden_bundle: Path) -> None:
    graph = onnx.load(golden_bundle / "denoiser.onnx").graph
    count: dict[str, int] = {}
    for node in graph.node:
        count[node.op_type] = count.get(node.op_type, 0) + 1
    layers = 3
    weights = {tensor.name: tensor for tensor in graph.initializer}
    assert count["MatMul"] == 7 * layers + 2  # q k v o, gate up down; the embedder and the final layer
    assert all(node.input[1] in weights for node in graph.node if node.op_type == "MatMul")
    assert (count["RMSNormalization"], count["LayerNormalization"]) == (4 * layers, 2 * layers + 1)
    assert count["RotaryEmbedding"] == 2 * layers
    assert count["Cast"] == 5  # the index inputs, once
    assert not {"Gemm", "Transpose", "Expand", "Shape", "Pow", "Cos", "Sin"} & set(count)
    assert len(graph.node) < 60 * layers + 40


@pytest.mark.parametrize("name", GRAPHS)
def test_files_say_nothing_of_the_machine_that_exported(golden_bundle: Path, name: str) -> None:
    content = (golden_bundle / f"{name}.onnx").read_bytes()
    for words in (b"stack_trace", b".py", b"/home", str(Path.home()).encode(), str(golden_bundle.parent).encode()):
        assert words not in content


def test_autoencoder_attention_is_that_of_diffusers() -> None:
    config = open_checkpoint(GOLDEN / "checkpoint").configs["vae"]
    ours: Any = make_vae(config).double()
    theirs = AutoencoderKL.from_config(dict(config)).eval().double()
    theirs.load_state_dict(ours.state_dict())
    latents = torch.randn(1, 16, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(latents).sample, theirs.decode(latents).sample)


@pytest.mark.parametrize("name", ["vae_encoder", "vae_decoder"])
def test_autoencoder_uses_operators_with_kernels(name: str, golden_bundle: Path) -> None:
    operators = {node.op_type for node in onnx.load(golden_bundle / f"{name}.onnx").graph.node}
    assert "InstanceNormalization" in operators
    assert not {"GroupNormalization", "Attention", "Expand", "Cast"} & operators


@pytest.mark.parametrize("length", [1, 2, 300])
def test_text_encoder_takes_any_length(length: int, sessions: dict[str, Any]) -> None:
    ids = np.random.default_rng(length).integers(3, 70, (1, length))
    (states,) = sessions["text_encoder"].run(None, {"input_ids": ids})
    assert states.shape == (length, 64)
    assert np.isfinite(states).all()


@pytest.mark.parametrize("size", [(8, 8), (40, 72), (128, 64)], ids=str)
def test_autoencoder_takes_any_size(size: tuple[int, int], sessions: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    mean, log_variance = sessions["vae_encoder"].run(None, {"pixels": pixels})
    assert mean.shape == log_variance.shape == (1, 16, size[0] // 8, size[1] // 8)
    (decoded,) = sessions["vae_decoder"].run(None, {"latents": mean})
    assert decoded.shape == pixels.shape
