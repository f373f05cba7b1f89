"""How large a bundle's calls become, read from its manifest: sequences, text tokens, native pictures, free axes."""

from collections.abc import Mapping

from framert.runtime.manifest import Manifest, TensorSpec


def free_axes(inputs: Mapping[str, TensorSpec]) -> list[str]:
    """Return the names of the free axes of inputs, each once."""
    return list(dict.fromkeys(side for spec in inputs.values() for side in spec.shape if isinstance(side, str)))


def text_length(manifest: Manifest) -> int:
    """Return how many text tokens the longest prompt has for the transformer: CLIP's and T5's stand in a row."""
    if "text_encoder" not in manifest.graphs:  # a denoiser alone, as benchmarks make it
        return manifest.prompt_tokens
    graph = manifest.graphs["text_encoder"]
    length = graph.outputs["hidden_states"].shape[0]
    if isinstance(length, int):
        return length
    given = [graph.inputs[name].shape[1] for name in manifest.tokenizer_specs() if name in graph.inputs]
    return manifest.prompt_tokens + max((side for side in given if isinstance(side, int)), default=0)


def carries_text(manifest: Manifest) -> bool:
    """Return whether text tokens are part of a denoiser's call, beside the picture's."""
    return "text_source" in manifest.graphs["denoiser"].inputs


def guided_sequences(manifest: Manifest) -> int:
    """Return the sequences of a guided request: guidance by a picture beside the prompt has one more."""
    return 3 if manifest.model.condition_channels else 2


def usual_buckets(manifest: Manifest) -> list[int]:
    """Return the buckets where none are given: for guided requests of one, two and eight native pictures."""
    native = (manifest.native_side // manifest.model.multiple) ** 2
    return [pictures * guided_sequences(manifest) * native for pictures in (1, 2, 8)]
