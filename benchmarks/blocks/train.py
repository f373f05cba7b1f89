"""Train Blocks, the small checkpoints that come with framert: of OneDiffusion's architecture, and of UniVG's.

    python benchmarks/blocks/train.py --preset cpu -o models/blocks [--part PART] [--minutes M]
    python benchmarks/blocks/train.py --family univg -o models/blocks-univg [--minutes M]

Parts are trained in the order vae, text-encoder, image-encoder (univg), transformer, decoder (onediffusion, where the
preset has steps for it). Resumes from the output folder: encoders already there stay, other parts are continued. The
optimizer's state is kept in its .train folder, rendered pictures in --cache. Where only weights are left, the
transformer goes on at the step that losses.csv ends with, and the autoencoder stays unless --part vae is given. UniVG
takes the trained autoencoder of --vae, and never changes it.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from autoencoder import build_autoencoder, load_autoencoder, save_autoencoder
from autoencoder_training import train_autoencoder
from batches import encode_all
from dataset import open_pictures
from diffusers import AutoencoderKL
from encoders import Encoders
from frames import Story
from heldout import training_stories
from loop import train
from losses import Losses
from losses import read as read_losses
from numpy.typing import NDArray
from recipes import RECIPES, Encoded, Preset
from trainer import Schedule, Trainer

ENCODERS = ("text-encoder", "image-encoder")
VAE = Path(__file__).resolve().parents[2] / "models" / "blocks" / "vae"


def report(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=RECIPES, default="onediffusion")
    parser.add_argument("--preset", choices=RECIPES["onediffusion"].presets, default="cpu")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint folder, resumed if it exists")
    parser.add_argument(
        "--part",
        choices=("vae", *ENCODERS, "transformer", "decoder", "all"),
        default="all",
        help="default: all in this order, each where the family has it",
    )
    parser.add_argument("--minutes", type=float, help="stop after this much wall clock, to be resumed")
    parser.add_argument("--steps", type=int, help="of the part trained; the last quarter lowers the rate to zero")
    parser.add_argument("--open-ended", action="store_true", help="no end to the steps; finish later with --steps")
    parser.add_argument("--scenes", type=int, help="instead of the preset's")
    parser.add_argument("--vae", type=Path, help=f"for univg: folder of a trained autoencoder, default {VAE}")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/framert/blocks").expanduser())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--compile", action="store_true", help="compile the training step; pays on a GPU")
    given = parser.parse_args()
    for name in ("minutes", "steps", "scenes"):
        if (value := getattr(given, name)) is not None and value <= 0:
            parser.error(f"--{name} must be above 0, got {value}")
    recipe = RECIPES[given.family]
    if given.part in ENCODERS and (given.minutes or given.open_ended):
        parser.error(f"--part {given.part} is short, and trained to its end: leave out --minutes and --open-ended")
    if given.steps and given.part == "vae" and not recipe.trains_autoencoder:
        parser.error(f"{given.family} copies a trained autoencoder: there is nothing to take --steps for")
    stepless = given.part in ENCODERS or (given.part == "all" and recipe.trains_autoencoder)
    if given.steps and (given.open_ended or stepless):
        parser.error("--steps is for --part vae, transformer or decoder and not beside --open-ended")
    if given.part == "image-encoder" and not recipe.image_encoder:
        parser.error(f"{given.family} has no image encoder to train")
    if recipe.trains_autoencoder:
        if given.vae is not None:
            parser.error(f"{given.family} trains an autoencoder of its own; leave out --vae")
    elif given.part == "decoder":
        parser.error(f"{given.family} takes a trained autoencoder as it is: there is no decoder to train")
    said = given.steps or given.open_ended or given.minutes
    if given.part == "decoder" and not (said or recipe.presets[given.preset].decoder_steps):
        parser.error(f"preset {given.preset} leaves the decoder as it is; say how long it is to learn, with --steps")
    return given


def run_autoencoder(given: argparse.Namespace, preset: Preset, device: str) -> None:
    """Train or continue the autoencoder in ``vae/``; or copy the trained one there."""
    folder = given.output / "vae"
    if not RECIPES[given.family].trains_autoencoder:
        copy_autoencoder(given.vae or VAE, folder)
        return
    there = (folder / "config.json").exists()
    if there and given.part == "all" and not state_of(given, "autoencoder").exists():
        report(f"{folder} is there already, and stays; --part vae trains it on")
        return
    vae = load_autoencoder(folder) if there else build_autoencoder(preset.vae_channels, preset.side)
    seeds = [story.seed for story in training_stories(given.scenes or preset.scenes)]
    pictures = open_pictures(given.cache, seeds, preset.side, workers=given.threads)
    alone = given.part == "vae"
    steps = None if alone and given.open_ended else (alone and given.steps) or preset.vae_steps
    if not learn_autoencoder(given, preset, device, vae, pictures, None, steps, "autoencoder") and not alone:
        sys.exit("stopped before the autoencoder's end, and the transformer needs it whole: run this again to go on")


def learn_autoencoder(
    given: argparse.Namespace,
    preset: Preset,
    device: str,
    vae: AutoencoderKL,
    pictures: NDArray[np.uint8],
    latents: NDArray[np.float16] | None,
    steps: int | None,
    name: str,
) -> bool:
    """Train both parts of ``vae/``, or with latents its decoder alone, and return whether all ``steps`` were taken.

    The state of the other kind of training no longer fits the folder's weights, and goes.
    """
    other = {"autoencoder": "decoder", "decoder": "autoencoder"}[name]
    state_of(given, other).unlink(missing_ok=True)
    try:
        _, whole = train_autoencoder(
            vae, pictures, latents, state=state_of(given, name),
            schedule=Schedule(rate=preset.vae_rate, warmup=50, plateau=4000, steps=steps),
            batch=preset.vae_batch, threads=threads_of(given, device), minutes=given.minutes, seed=given.seed,
            device=device, report=report, save=lambda each: save_autoencoder(each, given.output / "vae"),
        )  # fmt: skip
    except ValueError as error:
        sys.exit(f"error: {error}")
    return whole


def state_of(given: argparse.Namespace, name: str) -> Path:
    """Return the file of everything that a training needs to go on."""
    folder: Path = given.output / ".train"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}-state.pt"


def copy_autoencoder(trained: Path, folder: Path) -> None:
    """Copy a trained autoencoder into a checkpoint that has none yet."""
    if (folder / "config.json").exists():
        return
    if not (trained / "config.json").exists():
        sys.exit(f"error: {trained} holds no autoencoder; give the vae folder of a checkpoint with --vae")
    part = folder.with_name(".vae")  # a stop leaves the whole autoencoder or none
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(trained, part)
    part.rename(folder)


def encoders_of(given: argparse.Namespace, preset: Preset) -> Encoders:
    """Return the tokenizer and encoders of the checkpoint, trained when they are asked for if it has none."""
    stories = training_stories(given.scenes or preset.scenes)
    return Encoders(
        RECIPES[given.family], preset, given.output, given.cache, stories, given.seed, given.threads, report
    )


def run_encoder(given: argparse.Namespace, preset: Preset) -> None:
    """Train the text or the image encoder, unless the checkpoint has it."""
    name = given.part.replace("-", "_")
    if (given.output / name).exists():
        report(f"{given.output / name} is there already, and stays")
    getattr(encoders_of(given, preset), name)


def run_transformer(given: argparse.Namespace, preset: Preset, device: str) -> None:
    """Train or continue the transformer on latents of the trained autoencoder and prompts of the text encoder."""
    if not (given.output / "vae" / "config.json").exists():
        sys.exit(f"error: {given.output}/vae is missing; train it first with --part vae, or use --part all")
    recipe, encoders = RECIPES[given.family], encoders_of(given, preset)
    vae = load_autoencoder(given.output / "vae").eval().to(device)
    _, latents = data(given, preset, vae, device, encoders.stories)
    encoded = Encoded(encoders.stories, latents, encoders.features())
    text_encoder = encoders.text_encoder.to(device)
    torch.manual_seed(given.seed)
    model, average = (recipe.model(preset).to(device) for _ in range(2))
    state = state_of(given, "transformer")
    weights_alone = not state.exists() and (given.output / "transformer" / "config.json").exists()
    if weights_alone:
        model.load(given.output)
    average.load_state_dict(model.state_dict())
    threads = threads_of(given, device)
    schedule = Schedule(rate=preset.rate, steps=None if given.open_ended else given.steps or preset.steps)
    try:
        trainer = Trainer(model, average, state, schedule, recipe.matrix, threads)
    except ValueError as error:
        sys.exit(f"error: {error}")
    curve = given.output / "losses.csv"
    if weights_alone and curve.exists() and (rows := read_losses(curve)):
        trainer.go_on_from(int(rows[-1]["step"]), rows[-1]["seconds"], rows[-1]["cpu_seconds"])
        report(f"weights of step {trainer.step} without the optimizer's state: its moments begin anew")
    if schedule.steps is not None and trainer.step >= schedule.steps:
        report(f"all {schedule.steps} steps are taken; --steps with a larger number trains the transformer on")
        return
    if given.compile and threads > 1:
        from unlocked import unlock_compiled_kernels  # imports torch's compiler

        if not unlock_compiled_kernels():
            report("this torch's compiled kernels keep Python's lock: threads will wait for each other")
    report(f"{sum(each.numel() for each in model.transformer.parameters()) / 1e6:.2f} M parameters, {threads} threads")
    train(
        trainer, recipe.maker(encoded, preset, given.seed, trainer.step),
        recipe.loss_of(model, text_encoder, encoders.tokenizer, device, compiled=given.compile),
        Losses(curve, recipe.weights, trainer.step), recipe.emphasis,
        minutes=given.minutes, report=report, output=given.output,
    )  # fmt: skip


def run_decoder(given: argparse.Namespace, preset: Preset, device: str) -> None:
    """Train the decoder of ``vae/`` on, beside or after the transformer: its latents stay."""
    folder = given.output / "vae"
    vae = load_autoencoder(folder)
    pictures, latents = data(given, preset, vae.eval(), device, training_stories(given.scenes or preset.scenes))
    steps = None if given.open_ended else given.steps or preset.decoder_steps or None
    learn_autoencoder(given, preset, device, vae, pictures, latents, steps, "decoder")


def data(
    given: argparse.Namespace, preset: Preset, vae: AutoencoderKL, device: str, stories: Sequence[Story]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return pictures and latents of ``stories``, made if they are not in the cache."""
    seeds = [story.seed for story in stories]
    kind = RECIPES[given.family].kind
    pictures = open_pictures(given.cache, seeds, preset.side, workers=given.threads, kind=kind)
    tag = "-" + Path(str(pictures.filename)).stem.rsplit("-", 1)[-1]
    latents = encode_all(vae.to(device), pictures, given.cache, device, tag, threads_of(given, device))
    report(f"latents {latents.shape}")
    return pictures, latents


def threads_of(given: argparse.Namespace, device: str) -> int:
    """Return how many threads train; on a CPU each of them computes alone."""
    return given.threads if device == "cpu" else 1


def main() -> None:
    """Train the asked parts in order."""
    given = arguments()
    given.threads = given.threads or torch.get_num_threads()
    preset = RECIPES[given.family].presets[given.preset]
    given.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1 if device == "cpu" else given.threads)  # one each: threads that share operations stall
    if given.part in ("vae", "all"):
        run_autoencoder(given, preset, device)
    if given.part in ENCODERS:
        run_encoder(given, preset)
    if given.part in ("transformer", "all"):
        run_transformer(given, preset, device)
    if given.part == "decoder" or (given.part == "all" and preset.decoder_steps):
        run_decoder(given, preset, device)


if __name__ == "__main__":
    main()
