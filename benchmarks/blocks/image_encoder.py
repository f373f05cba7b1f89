"""The image encoder of Blocks: what a picture of one thing shows, as a feature that stands in a prompt for its words.

It is trained before the transformer and then kept: to give the sum of the vectors with which the words for a thing's
colour and shape enter the text encoder, which has learned to read such sums. Features that merely told things apart, a
classifier's, were still ignored after 1,200 steps. It is small enough for a CPU everywhere.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from channel_frames import REFERENCE_NAMES
from dataset import Kind
from frames import MAX_THINGS, Story, scene_frames, tell
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from text_encoder import WIDTH, feature_of
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from world import COLOURS, SHAPES, Thing

from framert.export.encoders import make_clip_vision
from framert.export.families.univg_plan import ImageEncoder

HELD_OUT_SEEDS = range(100)
STEPS, BATCH, RATE = 3000, 64, 2e-3
SHIFT = 4  # pixels that pictures are moved by at most while it learns


def render_references(seed: int, side: int) -> NDArray[np.uint8]:
    """Return (MAX_THINGS, side, side, 3) pictures of a scene's things, each alone; black where it has no more."""
    pictures = scene_frames(seed, side, set(REFERENCE_NAMES)).pictures
    stack = np.zeros((MAX_THINGS, side, side, 3), np.uint8)
    for index, picture in enumerate(pictures.values()):
        stack[index] = np.round(picture * 255)
    return stack


REFERENCES = Kind(REFERENCE_NAMES, render_references, tag="references")


def configuration(side: int) -> dict[str, object]:
    """Return image_encoder/config.json as transformers' CLIPVisionModelWithProjection has it; side: in pixels."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model", "image_size": side,
        "patch_size": 8, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "projection_dim": WIDTH, "hidden_act": "gelu",
    }  # fmt: skip


def build_image_encoder(config: dict[str, object]) -> ImageEncoder:
    """Return an untrained encoder: pixels (n, 3, side, side) in -1..1 -> features (n, WIDTH)."""
    return ImageEncoder(make_clip_vision(config), {})


def train_image_encoder(
    pictures: NDArray[np.uint8],
    stories: Sequence[Story],
    words: Mapping[str, Tensor],
    *,
    seed: int,
    report: Callable[[str], None],
) -> ImageEncoder:
    """Return an encoder that learned from the references (scenes, MAX_THINGS, side, side, 3) of ``stories``.

    words: the vector (WIDTH,) of each colour and each shape.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    encoder = build_image_encoder(configuration(pictures.shape[2])).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE, betas=(0.95, 0.98), weight_decay=0.05)
    # the schedule moves the first beta, too, from 0.95 to 0.85 and back
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS, pct_start=0.1)
    places = [(scene, index) for scene, story in enumerate(stories) for index in range(len(story.scene.things))]
    for _ in tqdm(range(STEPS), desc="image encoder", unit="step"):
        drawn = [places[place] for place in random.integers(len(places), size=BATCH)]
        shown = np.stack([pictures[place] for place in drawn])
        told = torch.stack([said_of(stories[scene].scene.things[index], words) for scene, index in drawn])
        loss = functional.mse_loss(encoder(_moved(_pixels(shown), random)), told)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    encoder.eval().requires_grad_(False)
    colours, shapes = _accuracy(encoder, words, pictures.shape[2])
    report(f"image encoder: colour {colours:.3f} and shape {shapes:.3f} of held-out references right")
    return encoder


def said_of(thing: Thing, words: Mapping[str, Tensor]) -> Tensor:
    """Return the feature (WIDTH,) of a thing: as long as one word's vector, and half of it each word's."""
    return feature_of(torch.stack((words[thing.colour], words[thing.shape])))


@torch.no_grad()
def features_of(encoder: ImageEncoder, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Return the features (scenes, MAX_THINGS, WIDTH) of references (scenes, MAX_THINGS, side, side, 3)."""
    found = [
        encoder(_pixels(pictures[at : at + 64].reshape(-1, *pictures.shape[2:]))).half().numpy()
        for at in range(0, len(pictures), 64)
    ]
    return np.concatenate(found).reshape(*pictures.shape[:2], WIDTH)


def save_image_encoder(encoder: ImageEncoder, folder: Path) -> None:
    """Write config.json and fp16 safetensors as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().half().contiguous() for name, value in encoder.model.state_dict().items()}
    part = folder / ".part"  # a stop leaves no weights or all
    save_file(weights, part, metadata={"format": "pt"})
    part.rename(folder / "model.safetensors")
    config = configuration(encoder.model.config.image_size)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_image_encoder(folder: Path) -> ImageEncoder:
    """Return the encoder of a folder in fp32."""
    encoder = build_image_encoder(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    encoder.model.load_state_dict({name: value.float() for name, value in weights.items()})
    return encoder.eval().requires_grad_(False)


def _pixels(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def _moved(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Return pictures moved by some pixels, half the time mirrored: all of a batch alike."""
    side = pixels.shape[-1]
    top, left = (int(each) for each in random.integers(2 * SHIFT + 1, size=2))
    pixels = functional.pad(pixels, (SHIFT,) * 4, mode="replicate")[..., top : top + side, left : left + side]
    return pixels.flip(-1) if random.random() < 0.5 else pixels


@torch.no_grad()
def _accuracy(encoder: ImageEncoder, words: Mapping[str, Tensor], side: int) -> tuple[float, float]:
    """Return the shares of held-out references whose colour and whose shape is right, of all there are together."""
    named = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    table = feature_of(torch.stack([torch.stack((words[colour], words[shape])) for colour, shape in named]))
    right = []
    for seed in HELD_OUT_SEEDS:
        things = tell(seed).scene.things
        features = encoder(_pixels(render_references(seed, side)[: len(things)]))
        found = [named[index] for index in torch.cdist(features, table).argmin(1).tolist()]
        right += [
            (colour == thing.colour, shape == thing.shape) for thing, (colour, shape) in zip(things, found, strict=True)
        ]
    colours, shapes = np.mean(right, 0).tolist()
    return colours, shapes
