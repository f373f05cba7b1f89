"""Plant in a checkpoint what large models of this lineage have, and leave what it computes as it is.

    python benchmarks/blocks/outliers.py [models/blocks] -o outliers [--seed 0]

In every layer a few channels of the normed activations and of the feed-forward's inside become 100 to 1000 times as
large, and the weights that read them as much smaller: SmoothQuant backwards. The results of wo and w2 become 4096 times
as large, beyond fp16; the norms behind them cancel that, but for their eps. In fp32 the model's velocity moves by less
than 1e-5. A recipe for low precision that only works on the small model fails on this one.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CHANNELS = 4  # of each link and layer
OVERFLOW = 2.0**12  # of the results of wo and w2; a power of two
Tensors = dict[str, NDArray[np.float32]]


def links(layer: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return (what makes the channels, the products that read them) of a layer."""
    attention, ffn = f"{layer}.attention", f"{layer}.feed_forward"
    return [
        (f"{layer}.attention_norm1.weight", tuple(f"{attention}.{name}.weight" for name in ("wq", "wk", "wv"))),
        (f"{layer}.ffn_norm1.weight", (f"{ffn}.w1.weight", f"{ffn}.w3.weight")),
        (f"{ffn}.w3.weight", (f"{ffn}.w2.weight",)),
    ]


def plant(tensors: Tensors, depth: int, seed: int = 0, overflow: float = OVERFLOW) -> Tensors:
    """Return the stored tensors of a NextDiT with outliers; the arguments stay as they are."""
    rng = np.random.default_rng(seed)
    planted = {name: np.array(values, np.float32) for name, values in tensors.items()}
    for layer in (f"layers.{index}" for index in range(depth)):
        for makes, reads in links(layer):
            channels = rng.choice(len(planted[makes]), CHANNELS, replace=False)
            # 128, 256, 512 or 1024: powers of two, so that no weight is rounded.
            factors = np.float32(2.0) ** rng.integers(7, 11, CHANNELS).astype(np.float32)
            planted[makes][channels] *= factors.reshape(-1, *[1] * (planted[makes].ndim - 1))
            for name in reads:
                planted[name][:, channels] /= factors
        for name in (f"{layer}.attention.wo.weight", f"{layer}.feed_forward.w2.weight"):
            planted[name] *= np.float32(overflow)
    return planted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=ROOT / "models" / "blocks")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        write(given.checkpoint, given.output, given.seed)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(given.output)
    return 0


def write(checkpoint: Path, output: Path, seed: int = 0, overflow: float = OVERFLOW) -> None:
    """Write a copy of a checkpoint with outliers in its transformer, in fp32. Raises: OSError."""
    from safetensors.numpy import load_file, save_file

    depth = json.loads((checkpoint / "transformer/config.json").read_text(encoding="utf-8"))["depth"]
    planted = plant(load_file(checkpoint / WEIGHTS), depth, seed, overflow)
    shutil.copytree(checkpoint, output)
    save_file(planted, output / WEIGHTS)


if __name__ == "__main__":
    sys.exit(main())
