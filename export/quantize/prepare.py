"""Before any graph is written: calibrate what the precisions ask for, and make the weights of each part ready."""

from collections.abc import Mapping, Sequence

import framert
from framert.export.checkpoint import Checkpoint, alias
from framert.export.families.find import find_family
from framert.export.oracle import Oracle
from framert.export.quantize import calibration
from framert.export.quantize.calibration import Activation
from framert.export.quantize.recipe import SMOOTHED, Recipe
from framert.export.rehearsal import rehearse
from framert.export.weights import Weight
from framert.runtime.bundle import Bundle

STEPS = 8  # of the calibrating runs: every part of the schedule is seen
SEED = 1000  # other noise than verify's
DECIDES = {"transformer": "denoiser", "text_encoder": "text_encoder"}  # whose precision asks for a part's calibration


def prepare(bundle: Bundle, checkpoint: Checkpoint, oracle: Oracle, words: Mapping[str, str]) -> dict[str, Recipe]:
    """Return the recipe of every checkpoint part.

    Args:
        bundle: the one that is being made, with its tokenizer and a manifest without graphs.
        oracle: runs the checkpoint. words: precision by part of the bundle.
    Raises: ConfigError for a precision that the family does not have in a part.
    """
    stored = {part: _stored(checkpoint, part) for part in checkpoint.tensors}
    wanted = [part for part, name in DECIDES.items() if words[name] in SMOOTHED]
    if not wanted:
        return {part: Recipe(weights) for part, weights in stored.items()}
    family = find_family(checkpoint)
    links = {part: family.links(part, checkpoint) for part in wanted}
    found = calibrate(bundle, oracle, wanted)
    recipes = {
        part: Recipe.smoothed(weights, links[part], found[part]) if part in wanted else Recipe(weights)
        for part, weights in stored.items()
    }
    if words["denoiser"] == "fp16":
        recipes["transformer"] = family.folded(recipes["transformer"], checkpoint)
    return recipes


def calibrate(bundle: Bundle, oracle: Oracle, wanted: Sequence[str]) -> dict[str, dict[str, Activation]]:
    """Run real tasks on the checkpoint in fp32; return the inputs of the products of the wanted parts."""
    with calibration.observe({f"{part}/": oracle.part(part) for part in wanted}) as seen:
        rehearse(framert.Pipeline(bundle, oracle), steps=STEPS, seed=SEED)
    found: dict[str, dict[str, Activation]] = {part: {} for part in wanted}
    for name, activation in seen.items():
        part, _, own = name.partition("/")
        found[part][own] = activation
    return found


def _stored(checkpoint: Checkpoint, part: str) -> dict[str, Weight]:
    tensors = {name: Weight(tensor.shape, tensor.read) for name, tensor in checkpoint.tensors[part].items()}
    others = {other: tensor for name, tensor in tensors.items() if (other := alias(name)) is not None}
    return others | tensors
