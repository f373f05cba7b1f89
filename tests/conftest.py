"""What several folders of tests share."""

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    """Have Triton interpret kernels where there is no CUDA device.

    Triton reads the variable once, when it is imported, which packages under other tests do long before
    tests/kernels is collected. Ahead-of-time compilation needs a process without the variable.
    """
    if find_spec("torch") and find_spec("triton"):
        import torch

        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tests/golden/checkpoint, exported once per session. Read it, never change it."""
    pytest.importorskip("torch")
    from framert.export.pipeline import export

    return export(GOLDEN / "checkpoint", tmp_path_factory.mktemp("bundles") / "golden.bundle", progress=False)


@pytest.fixture(scope="session")
def two_stream_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a maker of tiny random checkpoints of MM-DiTs, as diffusers writes them; each is made once a session.

    ``encoders``: those of "clip", "clip_2" and "t5" that it has, "t5 alone" being UniVG's own layout, and "image"; the
    other arguments replace values of transformer/config.json. Read a checkpoint, never change it.
    """
    made: dict[str, Path] = {}

    def make(*encoders: str, **transformer: Any) -> Path:
        key = json.dumps([encoders, transformer])
        if key not in made:
            made[key] = _two_streams(tmp_path_factory.mktemp("checkpoints") / "tiny", encoders, transformer)
        return made[key]

    return make


@pytest.fixture(scope="session")
def sd3_checkpoint(two_stream_checkpoint: Callable[..., Path]) -> Path:
    """Stable Diffusion 3.5 medium in small: three text encoders, a second attention, norms of queries and keys."""
    return two_stream_checkpoint("clip", "clip_2", "t5", num_layers=2, dual_attention_layers=[0], qk_norm="rms_norm")


@pytest.fixture(scope="session")
def sd3_bundle(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``sd3_checkpoint``. Read it, never change it."""
    from framert.export.pipeline import export

    return export(sd3_checkpoint, tmp_path_factory.mktemp("bundles") / "sd3.bundle", native_side=64, progress=False)


@pytest.fixture(scope="session")
def univg_bundle(two_stream_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of UniVG: T5 alone, an image encoder whose features replace ``<p>``, 33 channels. Never change it."""
    from framert.export.pipeline import export
    from framert.runtime.tokenizer import PLACEHOLDER

    folder = tmp_path_factory.mktemp("univg")
    made = two_stream_checkpoint("t5 alone", "image", in_channels=33, qk_norm="rms_norm", num_layers=2)
    shutil.copytree(made, folder / "checkpoint")
    for file in (folder / "checkpoint" / "tokenizer").glob("*.json"):
        file.write_text(file.read_text().replace("<extra_id_0>", PLACEHOLDER))
    return export(folder / "checkpoint", folder / "univg.bundle", native_side=64, progress=False)


def _two_streams(folder: Path, encoders: tuple[str, ...], transformer: dict[str, Any]) -> Path:
    import diffusers
    import torch
    import transformers

    def save(model: Any, name: str) -> None:
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder / name)

    torch.manual_seed(11)
    shape = {
        "sample_size": 8, "patch_size": 2, "in_channels": 16, "num_layers": 3, "attention_head_dim": 16,
        "num_attention_heads": 4, "joint_attention_dim": 64, "caption_projection_dim": 64, "pooled_projection_dim": 44,
        "out_channels": 16, "pos_embed_max_size": 12,
    }  # fmt: skip
    save(diffusers.SD3Transformer2DModel(**shape | transformer), "transformer")
    shutil.copytree(GOLDEN / "checkpoint" / "vae", folder / "vae")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for name, width, projected, act, pad in (
        ("clip", 24, 24, "quick_gelu", "<|endoftext|>"),
        ("clip_2", 32, 20, "gelu", "!"),
    ):
        if name in encoders:
            number = name.removeprefix("clip")
            words = write_clip_tokenizer(folder / f"tokenizer{number}", pad)
            config = transformers.CLIPTextConfig(
                vocab_size=words, hidden_size=width, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                projection_dim=projected, hidden_act=act, bos_token_id=words - 2, eos_token_id=words - 1,
            )  # fmt: skip
            save(transformers.CLIPTextModelWithProjection(config), f"text_encoder{number}")
    for name, number in (("t5", "_3"), ("t5 alone", "")):
        if name in encoders:
            shutil.copytree(GOLDEN / "checkpoint" / "text_encoder", folder / f"text_encoder{number}")
            shutil.copytree(GOLDEN / "checkpoint" / "tokenizer", folder / f"tokenizer{number}")
    if "image" in encoders:
        config = transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, projection_dim=64,
            image_size=28, patch_size=14,
        )  # fmt: skip
        save(transformers.CLIPVisionModelWithProjection(config), "image_encoder")
    return folder


def write_clip_tokenizer(folder: Path, pad: str) -> int:
    """Write vocab.json and merges.txt of CLIP's kind with a few words; return how many ids there are."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["r e", "re d</w>", "c u", "b e</w>", "cu be</w>", "b l", "u e</w>", "bl ue</w>", "t h", "th e</w>"]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(pieces)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the golden table, which the tests' output would hide: what tests recorded under "golden"."""
    reports = (report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome))
    rows = [row for report in reports for name, row in report.user_properties if name == "golden"]
    if not rows:
        return
    width = max(len(case) for case, *_ in rows)
    terminalreporter.section("golden vectors, this runtime against the published code")
    for case, quantity, error, allowed in rows:
        terminalreporter.line(f"{case:{width}}  {quantity:24} {error:10.3g}  allowed {allowed:g}")
