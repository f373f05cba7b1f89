"""UniVG and Stable Diffusion 3 on the export side: graphs against diffusers, text, tokenizers, what is refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framert.export import pipeline
from framert.export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from framert.export.clip_tokenizer import write_clip_tokenizer
from framert.export.families import univg_cases
from framert.export.families.find import find_family
from framert.export.families.univg import UniVG
from framert.export.inspect import describe, render
from framert.export.model_shape import model_shape
from framert.export.oracle import load_model, run_model
from framert.export.plan import GraphPlan
from framert.export.quantize.prepare import _stored
from framert.export.quantize.recipe import Recipe
from framert.export.trace import stored_shapes
from framert.export.verify import relative_error, table, verify
from framert.runtime.bundle import Bundle
from framert.runtime.errors import CheckpointError
from framert.runtime.manifest import Manifest, TokenizerSpec

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

Make = Callable[..., Path]
ALL, ALONE = ("clip", "clip_2", "t5"), ("t5 alone",)
CONFIGS: Mapping[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "sd3": (ALL, {"num_layers": 2}),
    "sd3.5-medium": (ALL, {"num_layers": 2, "dual_attention_layers": [0], "qk_norm": "rms_norm"}),
    "univg": (ALONE, {"num_layers": 2, "in_channels": 33, "qk_norm": "rms_norm"}),
}


def plans_of(checkpoint: Checkpoint) -> dict[str, GraphPlan]:
    return {plan.name: plan for plan in find_family(checkpoint).plans(checkpoint)}


def manifest_of(checkpoint: Checkpoint) -> Manifest:
    """Return what export would write, without files."""
    family = find_family(checkpoint)
    return Manifest(
        family=family.name, native_side=64, model=family.model(checkpoint), schedule=family.schedule(checkpoint),
        prompt_tokens=family.prompt_tokens, guidance_branches=family.guidance_branches, target={"kind": "onnx"},
        graphs={name: pipeline._signature(plan, "float32") for name, plan in plans_of(checkpoint).items()}, files={},
    )  # fmt: skip


def sessions_of(checkpoint: Checkpoint, names: tuple[str, ...], folder: Path, open_session: Any) -> dict[str, Any]:
    """Export some of a checkpoint's graphs and open them."""
    plans = plans_of(checkpoint)
    for name in names:
        recipe = Recipe(_stored(checkpoint, plans[name].part))
        pipeline._export_graph(plans[name], recipe, "fp32", 0.0, folder, "onnx")
    return {name: open_session(folder / f"{name}.onnx") for name in names}


def picture(tokens: Any, rows: int, columns: int) -> torch.Tensor:
    """Return (channels, height, width) of tokens (rows * columns, 2 * 2 * channels)."""
    grid = torch.from_numpy(np.ascontiguousarray(tokens)).view(rows, columns, 2, 2, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(tokens.shape[1] // 4, 2 * rows, 2 * columns)


@pytest.mark.parametrize("name", CONFIGS)
def test_packs_in_onnxruntime_equal_diffusers(
    name: str, two_stream_checkpoint: Make, tmp_path: Path, open_session: Any
) -> None:
    encoders, config = CONFIGS[name]
    folder = two_stream_checkpoint(*encoders, **config)
    checkpoint = open_checkpoint(folder)
    sessions = sessions_of(checkpoint, ("conditioner", "denoiser"), tmp_path, open_session)
    theirs = diffusers.SD3Transformer2DModel.from_pretrained(folder / "transformer").eval()
    given: list[dict[str, Any]] = []

    def condition(feeds: dict[str, Any]) -> dict[str, Any]:
        given.append(feeds)
        return dict(
            zip(("text", "modulation"), sessions["conditioner"].run(["text", "modulation"], feeds), strict=True)
        )

    manifest = manifest_of(checkpoint)
    for members in univg_cases.PACKS:
        given.clear()
        case = univg_cases.pack(members, manifest, condition, np.random.default_rng(0))
        _, _, velocity = sessions["denoiser"].run(None, case)
        exact, branch, begin = [], 0, 0
        for member in members:
            count, combined = int(np.prod(member.grid)), np.zeros(())
            for length, weight in zip(member.texts, member.weights, strict=True):
                feeds, rows = given[branch], slice(*np.cumsum(case["q_range"][branch]))
                seen = [case["latents"][case["source"][rows]]]
                if "conditions" in case:
                    seen.append(case["conditions"][case["condition_source"][rows]])
                level = feeds["noise_level"][case["row"][branch] - 2 * branch]
                with torch.no_grad():
                    sample = theirs(
                        torch.cat([picture(tokens, *member.grid) for tokens in seen])[None],
                        encoder_hidden_states=torch.from_numpy(feeds["hidden_states"][None, :length]),
                        pooled_projections=torch.from_numpy(feeds["pooled"][None]),
                        timestep=torch.tensor([level]),
                    ).sample[0]
                combined = combined + weight * sample.numpy()
                branch += 1
            exact.append((combined, picture(velocity[begin : begin + count], *member.grid).numpy()))
            begin += count
        assert branch == len(given)
        for expected, found in exact:
            assert relative_error(found, expected) <= 1e-5


@pytest.mark.parametrize("encoders", [ALL, ("clip", "clip_2")], ids=["all", "no t5"])
def test_text_is_that_of_diffusers_pipeline(encoders: tuple[str, ...], two_stream_checkpoint: Make) -> None:
    folder = two_stream_checkpoint(*encoders)
    checkpoint = open_checkpoint(folder)
    parts: dict[str, Any] = {"tokenizer_3": None, "text_encoder_3": None}
    for number, encoder, tokenizer in (
        ("", transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer),
        ("_2", transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer),
        ("_3", transformers.T5EncoderModel, transformers.T5Tokenizer),
    ):
        if number != "_3" or "t5" in encoders:
            parts[f"text_encoder{number}"] = encoder.from_pretrained(folder / f"text_encoder{number}").eval()
            parts[f"tokenizer{number}"] = tokenizer.from_pretrained(folder / f"tokenizer{number}")
    parts["transformer"] = diffusers.SD3Transformer2DModel.from_pretrained(folder / "transformer")
    theirs = diffusers.StableDiffusion3Pipeline(**parts, vae=None, scheduler=None)
    prompt = "The red cube, 3 blue ones!"

    def text_of(dtype: torch.dtype) -> tuple[Any, Any]:
        with torch.no_grad():
            embedded, _, pooled, _ = theirs.to(dtype).encode_prompt(
                prompt, None, None, do_classifier_free_guidance=False
            )
        assert embedded.dtype == pooled.dtype == dtype
        return embedded[0].numpy(), pooled[0].numpy()

    plan = plans_of(checkpoint)["text_encoder"]
    ids = {"clip_ids": parts["tokenizer"], "clip_2_ids": parts["tokenizer_2"], "input_ids": parts["tokenizer_3"]}
    feeds = [
        np.array([ids[name](prompt, padding="max_length", max_length=256 if name == "input_ids" else 77).input_ids])
        for name in plan.inputs
    ]
    found = run_model(load_model(plan, checkpoint), feeds)
    plain, exact = text_of(torch.float32), text_of(torch.float64)
    for ours, reference, truth in zip(found, plain, exact, strict=True):
        assert relative_error(ours, truth) <= 2 * relative_error(reference, truth) + np.finfo(np.float32).eps


def test_a_lone_clip_leaves_the_others_place_empty(two_stream_checkpoint: Make) -> None:
    both = open_checkpoint(two_stream_checkpoint("clip", "clip_2"))
    ids = np.arange(300, 377)[None]
    exact, pooled = run_model(load_model(plans_of(both)["text_encoder"], both), [ids, ids])
    checkpoint = open_checkpoint(two_stream_checkpoint("clip_2"))
    plan = plans_of(checkpoint)["text_encoder"]
    assert list(plan.inputs) == ["clip_2_ids"]
    hidden, own = run_model(load_model(plan, checkpoint), [ids])
    assert hidden.shape == (77 + 256, 64)
    assert not hidden[:, :24].any()
    assert not own[:24].any()
    assert hidden[:77, 24:56].any()
    assert not hidden[77:].any()
    assert (exact.shape, pooled.shape) == (hidden.shape, own.shape)


def test_features_take_the_places_of_their_ids(two_stream_checkpoint: Make, tmp_path: Path, open_session: Any) -> None:
    checkpoint = open_checkpoint(two_stream_checkpoint("t5 alone", "image", in_channels=33))
    check_tensors(checkpoint, {plan.part: stored_shapes(plan) for plan in plans_of(checkpoint).values()})
    sessions = sessions_of(checkpoint, ("image_encoder", "text_encoder"), tmp_path, open_session)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, 28, 28)).astype(np.float32)
    (feature,) = sessions["image_encoder"].run(None, {"pixels": pixels})
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(checkpoint.folder / "image_encoder").eval()
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    with torch.no_grad():
        seen = processor((pixels[0] + 1) / 2, return_tensors="pt", input_data_format="channels_first")
        exact = theirs(seen["pixel_values"]).image_embeds.numpy()
    assert relative_error(feature, exact) <= 1e-5
    t5 = transformers.T5EncoderModel.from_pretrained(checkpoint.folder / "text_encoder").eval()
    ids = np.array([[9, 30, 12, 31, 1]])
    for places in ([], [1], [3, 1]):
        features = np.repeat(feature, len(places), axis=0) * np.arange(1, len(places) + 1)[:, None].astype(np.float32)
        feeds = {"input_ids": ids, "feature": features, "feature_index": np.array(places, np.int32)}
        (found,) = sessions["text_encoder"].run(None, feeds)
        with torch.no_grad():
            embedded = t5.shared(torch.from_numpy(ids))
            embedded[0, places] = torch.from_numpy(features)
            states = t5(inputs_embeds=embedded).last_hidden_state[0].numpy()
        assert relative_error(found, states) <= 1e-5


@pytest.mark.parametrize(
    "text",
    ["", "a red cube", "The  RED cube's 42 corners,\tit'll do", "naïve Ünïcødé 立方体 🙂 ...!!", "<|endoftext|> cube"],
)
def test_clip_ids_are_those_of_transformers(text: str, two_stream_checkpoint: Make, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = two_stream_checkpoint(*ALL) / "tokenizer_2"
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    assert write_clip_tokenizer(folder, tmp_path / "built.json") == theirs.pad_token_id
    theirs.save_pretrained(tmp_path / "saved")  # with a tokenizer.json of its own
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    assert write_clip_tokenizer(tmp_path / "saved", tmp_path / "read.json") == theirs.pad_token_id
    for name in ("built", "read"):
        assert Tokenizer.from_file(str(tmp_path / f"{name}.json")).encode(text).ids == theirs(text).input_ids


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        (ALL, {"input_ids": (256, 256), "clip_ids": (77, 77), "clip_2_ids": (77, 77)}),
        (("clip", "clip_2"), {"clip_ids": (77, 77), "clip_2_ids": (77, 77)}),
        (("clip_2",), {"clip_2_ids": (77, 77)}),
        (("t5",), {"input_ids": (256, 256)}),
        (ALONE, {"input_ids": (256, 0)}),
    ],
    ids=["all", "no t5", "one clip", "t5", "univg"],
)
def test_tokenizers_of_a_bundle(
    encoders: tuple[str, ...], expected: dict[str, tuple[int, int]], two_stream_checkpoint: Make, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(two_stream_checkpoint(*encoders))
    specs = UniVG().write_tokenizers(checkpoint, tmp_path)
    assert {name: (spec.max_tokens, spec.pad_to) for name, spec in specs.items()} == expected
    assert {spec.file for spec in specs.values()} == {file.name for file in tmp_path.iterdir()}
    assert "tokenizer.json" in {spec.file for spec in specs.values()}
    if "clip_2" in encoders:
        assert (
            specs["clip_2_ids"].pad_id
            == json.loads((tmp_path / specs["clip_2_ids"].file).read_text())["model"]["vocab"]["!"]
        )


def test_manifest_of_a_checkpoint(two_stream_checkpoint: Make) -> None:
    plain = manifest_of(open_checkpoint(two_stream_checkpoint(*ALL)))
    assert (plain.family, plain.schedule.static_shift, plain.schedule.max_shift) == ("univg", 3.0, 1.15)
    assert (plain.model.shift, plain.model.scaling_factor) == (0.0609, 1.5305)
    assert (plain.model.condition_channels, plain.model.pooled_width, plain.model.max_positions) == (0, 44, 12)
    assert (plain.model.modulation_count, plain.model.max_frames, plain.model.softcap) == (2 * 12 + 8 + 2, 1, 0.0)
    assert "conditions" not in plain.graphs["denoiser"].inputs
    assert plain.graphs["text_encoder"].outputs["pooled"].shape == (44,)
    conditioned = manifest_of(open_checkpoint(two_stream_checkpoint(*ALONE, in_channels=33, dual_attention_layers=[1])))
    assert conditioned.model.condition_channels == 17
    assert conditioned.model.modulation_count == plain.model.modulation_count + 3
    assert conditioned.graphs["denoiser"].inputs["conditions"].shape == ("condition_rows", 68)
    assert Manifest.from_json(json.loads(json.dumps(plain.to_json()))) == plain


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vae/config.json", {"latent_channels": 8}, "makes 16 channels and the autoencoder reads 8"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "scheduler/ asks for use_karras_sigmas"),
        ("text_encoder/config.json", {"model_type": "bert"}, "text_encoder/config.json has model_type 'bert'"),
        ("text_encoder/config.json", {"projection_dim": 30}, "the CLIPs are .* pooled text"),
        ("text_encoder_3/config.json", {"d_model": 32}, "gives 32 values a token, the transformer takes 64"),
        ("text_encoder_3/config.json", {"model_type": "clip_text_model"}, "text_encoder_3/config.json has model_type"),
        ("transformer/config.json", {"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
    ],
    ids=[
        "latent channels",
        "schedule",
        "kind of encoder",
        "pooled width",
        "text width",
        "clip in third",
        "transformer",
    ],
)
def test_checkpoints_that_do_not_fit(
    part: str, change: dict[str, Any], message: str, two_stream_checkpoint: Make, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(two_stream_checkpoint(*ALL), tmp_path / "copy"))
    edit(folder / part, **change)
    with pytest.raises(CheckpointError, match=message):
        manifest_of(open_checkpoint(folder))


def test_missing_and_variant_files(two_stream_checkpoint: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_stream_checkpoint(*ALL), tmp_path / "copy"))
    encoder = folder / "text_encoder_2" / "model.safetensors"
    shutil.copy(encoder, encoder.with_name("model.fp16.safetensors"))  # as the published repositories have them
    checkpoint = open_checkpoint(folder)
    assert all("fp16" not in tensor.file.name for tensor in checkpoint.tensors["text_encoder"].values())
    assert {"tokenizer_2/vocab.json", "text_encoder_3/config.json"} <= set(checkpoint.digests())
    (folder / "tokenizer_2" / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_2/merges.txt is missing"):
        UniVG().write_tokenizers(checkpoint, tmp_path)
    encoder.unlink()
    encoder.with_name("model.fp16.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder_2 has no .safetensors file"):
        open_checkpoint(folder)


@pytest.mark.slow
def test_a_checkpoint_with_everything_becomes_a_bundle_that_verifies(
    two_stream_checkpoint: Make, tmp_path: Path
) -> None:
    folder = two_stream_checkpoint(*ALL, **CONFIGS["sd3.5-medium"][1])
    bundle = pipeline.export(folder, tmp_path / "sd3.bundle", progress=False)
    report = verify(bundle, folder, progress=False)
    assert report["passed"], table(report)
    assert set(report["graphs"]["text_encoder"]["errors"]) == {"hidden_states", "pooled"}
    manifest = Bundle.open(bundle).manifest
    assert (manifest.native_side, manifest.prompt_tokens) == (64, 256)
    assert manifest.tokenizers["clip_ids"] == TokenizerSpec(
        file="tokenizer_2.json", max_tokens=77, pad_to=77, pad_id=523
    )
    assert "256 tokens for input_ids, 77 for clip_ids and clip_2_ids" in render(describe(bundle))
    assert (model_shape(bundle).ffn, model_shape(bundle).norm_eps, model_shape(bundle).softcap) == (256, 1e-6, 0.0)
    with pytest.raises(CheckpointError, match="is of the family onediffusion"):
        verify(bundle, Path(__file__).parents[1] / "golden" / "checkpoint", progress=False)
