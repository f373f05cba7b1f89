"""Peak memory of exporting the largest component, in a process of its own, beside its size at output precision."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, struct, sys
from pathlib import Path

import numpy as np

from framert.export.checkpoint import Checkpoint
from framert.export.models.nextdit import NextDiTConfig
from framert.export.pipeline import _export_graph
from framert.export.families.onediffusion_plan import plan_graphs
from framert.export.quantize.prepare import _stored
from framert.export.quantize.recipe import Recipe
from framert.export.safetensors_file import read_header
from framert.export.trace import stored_shapes


def peak():  # of resident memory, in bytes; it starts anew after every write to clear_refs
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")))


def plan_of(width, depth):
    config = NextDiTConfig.from_checkpoint({
        "hidden_size": width, "depth": depth, "num_heads": 8, "num_kv_heads": 2, "caption_channels": 64,
        "in_channels": 16, "patch_size": [1, 2, 2], "multiple_of": 256, "norm_eps": 1e-5, "rotary_max_length": 32,
    })
    vae = {"block_out_channels": [8, 8, 8, 8], "latent_channels": 16, "in_channels": 3}
    return plan_graphs(config, vae, {"d_model": 64})[3]


def write(plan, file):  # random bf16 weights, a tensor at a time
    rng, offset, header = np.random.default_rng(0), 0, {}
    for name, shape in stored_shapes(plan).items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            values = rng.standard_normal(entry["shape"], dtype=np.float32) * 0.02
            stream.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


folder = Path(sys.argv[1])
for name, width, depth in (("warm", 48, 1), ("large", 1536, 4)):
    plan, file = plan_of(width, depth), folder / f"{name}.safetensors"
    write(plan, file)
    checkpoint = Checkpoint(folder, name, {}, {"transformer": read_header(file)})
    (folder / name).mkdir()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    _export_graph(plan, Recipe(_stored(checkpoint, "transformer")), "fp32", 30.0, folder / name, "onnx")
    after = peak()
size = sum(file.stat().st_size for file in (folder / "large").iterdir())
print(json.dumps({"size": size, "peak": after - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory counters")
def test_peak_stays_below_one_and_a_half_times_the_component(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr

    found = json.loads(result.stdout)
    print(f"component {found['size'] / 2**20:.0f} MiB, peak {found['peak'] / 2**20:.0f} MiB above the loaded libraries")
    assert found["size"] > 300 * 2**20
    assert found["peak"] < 1.5 * found["size"]
