"""Guidance combination and solver row of all latent slots in one pass, in place."""

import torch
from torch import Tensor

from framert.kernels.checks import FLOATS, check
from framert.kernels.dispatch import Impl, use_triton
from framert.kernels.update import reference
from framert.runtime.errors import ConfigError

FP32 = (torch.float32,)


def update(
    output: Tensor,
    latents: Tensor,
    history: Tensor,
    guidance_index: Tensor,
    guidance_weight: Tensor,
    update: Tensor,
    *,
    velocity: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Combine the guidance branches to a velocity and advance latents and history by their solver rows, in place.

    ``v[slot] = sum over b of weight[slot, b] * output[index[slot, b]]``, added in branch order; then
    ``x' = a x + b v + c h`` and ``h' = d x + e v + f h``, both from the old x and h.

    Args:
        output: (tokens, width), the model's result, bf16, fp16 or fp32, contiguous.
        latents, history: (slots, width) fp32, contiguous; written.
        guidance_index: (slots, branches) int32, values in [0, tokens).
        guidance_weight: (slots, branches) fp32; entries of weight 0 are not read, whatever they point to.
        update: (slots, 6) fp32: a, b, c, d, e, f.
        velocity: (slots, width) fp32, where to write the velocity; None allocates.
        impl: "auto" is triton for CUDA tensors and the reference elsewhere.
    Returns: the velocity, (slots, width) fp32.
    Raises: ShapeError if shapes, dtypes or devices disagree; ConfigError where a tensor to be written is another
        one too; BackendError where ``impl`` cannot run.
    """
    name = "update"
    check(name, "output", output, (None, None), FLOATS)
    device, width = output.device, output.shape[1]
    check(name, "latents", latents, (None, width), FP32, device=device)
    slots = latents.shape[0]
    check(name, "history", history, (slots, width), FP32, device=device)
    check(name, "guidance_index", guidance_index, (slots, None), (torch.int32,), device=device)
    check(name, "guidance_weight", guidance_weight, tuple(guidance_index.shape), FP32, device=device)
    check(name, "update", update, (slots, 6), FP32, device=device)
    if velocity is None:
        velocity = torch.empty_like(latents)
    else:
        check(name, "velocity", velocity, (slots, width), FP32, device=device)
    written = [tensor.data_ptr() for tensor in (latents, history, velocity, output)]
    if slots and len(set(written)) < len(written):
        raise ConfigError(f"{name}: latents, history, velocity and output must be four different buffers")
    if use_triton(impl, output, name):
        from framert.kernels.update import kernel

        kernel.launch(output, latents, history, guidance_index, guidance_weight, update, velocity)
    else:
        results = reference.update(output, latents, history, guidance_index, guidance_weight, update)
        for target, value in zip((latents, history, velocity), results, strict=True):
            target.copy_(value)
    return velocity
