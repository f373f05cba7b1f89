"""One denoiser step on the CPU: framert on its CPU backends beside the published algorithm in PyTorch, in one run.

    python benchmarks/bench_step.py [--rounds 15] [--threads 2] [--dry-run]

A random model is exported as any checkpoint is; every side is first shown to compute the same velocity, then all are
timed in turn. Rows go to benchmarks/results/step_cpu.csv; benchmarks/README.md says what each side does.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baseline
import hoisted
import numpy as np
import torch
from torch import Tensor

import framert
from framert.export.pipeline import export
from framert.runtime import backends, doctor, patches, tables
from framert.runtime.backends.base import Backend
from framert.runtime.bench.alternate import alternate, rate_ratios
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.bundle import Bundle
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
BENCH = "step_cpu"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SEED = 20241118
NOISE_LEVELS = np.linspace(1000, 20, 50, dtype=np.float32)  # 50 steps; their times do not depend on the values
STEP = 25  # the step that is timed
EXACT = ("framert", "openvino-fp32")  # sides of ours that must be the baseline
TOLERANCE = 1e-4  # relative L2 between framert and the baseline that computes the same thing
MORE = ("eager-bf16", "compiled", "hoisted-compiled", "hoisted-compiled-bf16")  # sides that --short leaves out
# framert's other sides: name -> the denoiser's precision in the bundle, the backend, its precision option
OURS: Mapping[str, tuple[str, str, str | None]] = {
    "openvino-fp32": ("fp32", "openvino", "fp32"),
    "openvino-bf16": ("fp32", "openvino", "bf16"),
    "onnxruntime-int8": ("int8", "onnxruntime", None),
    "openvino-int8": ("int8", "openvino", "fp32"),
    "openvino-int8+bf16": ("int8", "openvino", "bf16"),
}
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


class CheckFailedError(Exception):
    """The sides do not compute the same velocity, so their times must not be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one step is made of. side: tokens along a frame's side; text: tokens of either prompt before padding.

    Heads of 96 rather than 64: three rotary axes need a head_dim divisible by 6. 8 heads on 2 key-value heads keep the
    published model's group of four and come closest to its head_dim of 120.
    """

    depth: int = 12
    width: int = 768
    heads: int = 8
    kv_heads: int = 2
    frames: int = 2
    side: int = 16
    text: int = 80
    text_width: int = 768
    guidance: float = 4.0

    def __str__(self) -> str:
        model = f"{self.depth} layers {self.width} wide of {self.heads} heads"
        return f"{model}; {self.frames} frames of {self.side**2} tokens; guidance"

    @property
    def config(self) -> dict[str, Any]:
        """transformer/config.json."""
        return {
            "_class_name": "NextDiT", "hidden_size": self.width, "depth": self.depth, "num_heads": self.heads,
            "num_kv_heads": self.kv_heads, "caption_channels": self.text_width, "in_channels": 16,
            "patch_size": [1, 2, 2], "input_size": [1, 2 * self.side, 2 * self.side], "multiple_of": 256,
            "ffn_dim_multiplier": None, "norm_eps": 1e-5, "qk_norm": True, "pred_sigma": False,
            "rotary_max_length": max(self.side, 32), "rotary_max_length_t": None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inputs:
    """latents: (frames, 16, h, w); prompt, negative: (text, text_width); frame 0 is generated, the rest condition."""

    latents: Tensor
    prompt: Tensor
    negative: Tensor
    levels: Tensor  # (frames,), in 0..1000
    delta: Tensor  # (frames,), change of sigma in this step

    @classmethod
    def random(cls, case: Case) -> "Inputs":
        generator = torch.Generator().manual_seed(SEED + 1)
        text = torch.randn(2, case.text, case.text_width, generator=generator)
        frame_levels = [NOISE_LEVELS[STEP]] + [NOISE_LEVELS[-1]] * (case.frames - 1)
        return cls(
            latents=torch.randn(case.frames, 16, 2 * case.side, 2 * case.side, generator=generator),
            prompt=text[0],
            negative=text[1],
            levels=torch.tensor(frame_levels),
            delta=torch.tensor([-0.02] + [0.0] * (case.frames - 1)),
        )


def random_weights(case: Case) -> dict[str, Tensor]:
    """Return seeded weights under which every part of the model matters: the softcap bends logits, gates are open."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(name: str, parameter: Tensor) -> Tensor:
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            return noise * parameter.shape[1] ** -0.5 * (0.5 if "adaLN" in name else 1)
        if name.endswith((".q_norm.weight", ".k_norm.weight")):
            return 1.7 + 0.2 * noise
        if name.endswith("attention.gate"):
            return 0.5 * noise
        return 1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise

    shapes = baseline.PublishedNextDiT(case.config).state_dict()
    return {name: draw(name, parameter) for name, parameter in shapes.items()}


def write_checkpoint(case: Case, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the published layout: the random transformer, and the golden checkpoint's small parts around it."""
    from safetensors.torch import save_file
    from transformers import T5Config, T5EncoderModel

    golden = ROOT / "tests" / "golden" / "checkpoint"
    shutil.copytree(golden, folder, ignore=shutil.ignore_patterns("transformer", "*.safetensors"))
    shutil.copy(golden / "vae" / WEIGHTS, folder / "vae" / WEIGHTS)
    text_config = json.loads((golden / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    text_config["d_model"] = case.text_width
    (folder / "text_encoder" / "config.json").write_text(json.dumps(text_config), encoding="utf-8")
    text_encoder = T5EncoderModel(T5Config(**text_config)).state_dict()
    text_encoder.pop("encoder.embed_tokens.weight", None)  # shares its memory with shared.weight
    save_file(text_encoder, folder / "text_encoder" / "model.safetensors")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps(case.config), encoding="utf-8")
    save_file(dict(weights), folder / "transformer" / WEIGHTS)


@dataclass(frozen=True, slots=True)
class Member:
    """The one sequence of the pack, as ``tables`` reads it."""

    frames: int
    height: int
    width: int
    branches: list[tables.BranchRows]


class FramertStep:
    """A bundle's step on a backend; text keys, values and modulation rows are made once, before the first step."""

    def __init__(self, bundle: Bundle, backend: Backend, case: Case, inputs: Inputs) -> None:
        self.inputs = inputs
        self.backend = backend
        self._denoiser = self.backend.denoiser()
        rows = len(NOISE_LEVELS)
        self._denoiser.reserve(text=2 * case.text, rows=2 * rows)
        for number, prompt in enumerate((inputs.negative, inputs.prompt)):
            made = self.condition(prompt)
            self._denoiser.write_text(number * case.text, made["text_k"], made["text_v"])
            self._denoiser.write_modulation(number * rows, made["modulation"])
        branches = [
            tables.BranchRows(0, case.text, 0, 1 - case.guidance),
            tables.BranchRows(case.text, case.text, rows, case.guidance),
        ]
        member = Member(case.frames, case.side, case.side, branches)
        self._tables = tables.build([member], guidance_branches=bundle.manifest.guidance_branches)
        level_rows = [STEP] + [rows - 1] * (case.frames - 1)
        self._row = np.asarray(level_rows + [rows + row for row in level_rows], np.int32)
        self._update = np.zeros((self._tables.slots, 6), np.float32)
        self._update[:, 0] = 1
        self._update[:, 1] = np.repeat(inputs.delta.numpy(), case.side**2)
        self._latents = patches.to_tokens(inputs.latents.numpy(), bundle.manifest.model.patch)
        self._history = np.zeros_like(self._latents)

    def condition(self, prompt: Tensor) -> dict[str, Any]:
        """Run the conditioner for one prompt and the whole schedule."""
        return self.backend.run("conditioner", {"hidden_states": prompt.numpy(), "noise_level": NOISE_LEVELS})

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the next latents and the guided velocity, (slots, token_width) each."""
        self._denoiser.bind(self._tables, self._latents, self._history)
        self._denoiser.step(self._row, self._update)
        return self._denoiser.state()[0], self._denoiser.velocity()

    def frames(self, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(patches.to_frames(tokens, 2, tuple(self.inputs.latents.shape)))


def published(case: Case, weights: Mapping[str, Tensor], inputs: Inputs, kind: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return one step of the published algorithm.

    kind: eager, eager-sdpa, eager-bf16, compiled; or hoisted-compiled and hoisted-compiled-bf16, see ``hoisted``.
    """
    dtype = BFLOAT16 if kind.endswith("-bf16") else FLOAT32
    attention: baseline.SelfAttention = "sdpa" if kind == "eager-sdpa" else "softcap"
    model = baseline.build(case.config, weights, attention=attention, dtype=dtype)
    text = torch.stack((inputs.negative, inputs.prompt))
    if kind.startswith("hoisted-compiled"):
        hoisted_step = hoisted.HoistedStep(
            model, case.config, text, torch.ones(text.shape[:2]), inputs.levels,
            shape=(case.side, case.side), guidance=case.guidance,
        )  # fmt: skip
        return lambda: hoisted_step(inputs.latents, inputs.delta)
    step = baseline.GuidedStep(
        torch.compile(model) if kind == "compiled" else model, text, torch.ones(text.shape[:2]), case.guidance, dtype
    )
    return lambda: step(inputs.latents, inputs.levels, inputs.delta)


def our_sides(names: list[str], bundles: Mapping[str, Bundle], threads: int) -> dict[str, tuple[Bundle, Backend]]:
    """Return bundle and backend of each named side that this machine has; "framert" first."""
    able = doctor.examine().backends
    sides = {"framert": ("fp32", "onnxruntime", None)} | {name: OURS[name] for name in names}
    return {
        name: (bundles[made], backends.create(backend, bundles[made], threads=threads, precision=precision))
        for name, (made, backend, precision) in sides.items()
        if made in bundles and able[backend].usable and precision in (None, *able[backend].precisions)
    }


def velocity_errors(
    ours: Mapping[str, FramertStep], theirs: Mapping[str, Callable[[], tuple[Tensor, ...]]], inputs: Inputs
) -> dict[str, float]:
    """Return each side's relative L2 distance to the eager softcap baseline's velocity.

    Raises: CheckFailedError if the velocity or next latents of an fp32 side of ours are not the baseline's.
    """
    expected_latents, expected = theirs["eager"]()
    errors: dict[str, float] = {}
    for name, side in ours.items():
        latents, velocity = (side.frames(tokens) for tokens in side())
        errors[name] = _relative(velocity, expected)
        moved = _relative(latents - inputs.latents, expected_latents - inputs.latents)
        exact = name in EXACT
        if exact and not (errors[name] <= TOLERANCE and moved <= 10 * TOLERANCE):  # a difference of near-equal numbers
            raise CheckFailedError(
                f"{name} is {errors[name]:.2g} (its step {moved:.2g}) from eager; {TOLERANCE} allowed"
            )
    return errors | {name: _relative(step()[1], expected) for name, step in theirs.items() if name != "eager"}


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def measure(
    case: Case,
    kinds: list[str],
    environment: Environment,
    rounds: int,
    log: Callable[[str], None],
    names: list[str] | None = None,
) -> list[Row]:
    """Export a random model of ``case``, check all sides against each other, time them and return the rows.

    Args:
        kinds: sides of the published algorithm, see ``published``; "eager" among them.
        names: sides of ours beside ONNX Runtime in fp32; None for all of ``OURS`` that this machine has.
    """
    weights, inputs = random_weights(case), Inputs.random(case)
    wanted = list(OURS) if names is None else names
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, weights, Path(folder) / "checkpoint")
        bundles: dict[str, Bundle] = {}
        for precision in dict.fromkeys(["fp32", *(OURS[name][0] for name in wanted)]):
            log(f"exporting a random model in {precision}: {case}")
            output = Path(folder) / f"{precision}.bundle"
            chosen = {"denoiser": precision}
            side = 16 * min(case.side, 8)  # pixels, 16 to a token: int8 is calibrated at this size, quickly
            # random weights, so what int8 does to a picture is no measure of anything
            export(Path(folder) / "checkpoint", output, precision=chosen, native_side=side, check=False, progress=False)
            bundles[precision] = Bundle.open(output, check_files=False)
        shutil.rmtree(Path(folder) / "checkpoint")
        made = our_sides(wanted, bundles, environment.threads)
        for name in set(wanted) - set(made):
            log(f"  left out, as this machine has no such backend or precision: {name}")
        ours = {name: FramertStep(bundle, backend, case, inputs) for name, (bundle, backend) in made.items()}
        theirs = {kind: published(case, weights, inputs, kind) for kind in kinds}
        log("checking that all sides compute the same velocity")
        errors = velocity_errors(ours, theirs, inputs)
        for name, error in errors.items():
            log(f"  {name}: {error:.2g} from eager")
        seconds = alternate({**ours, **theirs}, rounds=rounds, on_round=lambda done: log(f"round {done} of {rounds}"))
        condition = ours["framert"].condition
        once = alternate({"framert": lambda: [condition(t) for t in (inputs.negative, inputs.prompt)]}, rounds=5)

    def row(impl: str, metric: str, unit: str, samples: list[float]) -> Row:
        return environment.row(bench=BENCH, impl=impl, case=str(case), metric=metric, unit=unit, samples=samples)

    pairs = [("framert", name) for name in theirs]
    pairs += [(name, kind) for name in ours if name != "framert" for kind in ("eager", "eager-bf16") if kind in theirs]
    return [
        *(row(name, "step", "s", samples) for name, samples in seconds.items()),
        *(row(f"{a}/{b}", "rate_ratio", "x", rate_ratios(seconds, a, b)) for a, b in pairs),
        *(row(name, "velocity_error", "relative L2", [error]) for name, error in errors.items()),
        row("framert", "conditioner_two_prompts_50_levels", "s", once["framert"]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each side (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every side (default 2)")
    parser.add_argument("--heads", type=int, default=8, help="heads, four on each key-value head (default 8)")
    parser.add_argument("--short", action="store_true", help="leave out all but fp32 in ONNX Runtime and eager PyTorch")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write no rows")
    options = parser.parse_args()
    if not Path(framert.__file__).resolve().is_relative_to(ROOT):
        print(f"error: framert is imported from {framert.__file__}, not from this checkout", file=sys.stderr)
        return 2
    kinds = ["eager", "eager-sdpa", *([] if options.short else MORE)]
    case = Case(heads=options.heads, kv_heads=options.heads // 4)

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 1:
        log(f"warning: the load average is {load:.1f}; other programs are running, and the times will be theirs too")
    try:
        environment = Environment.capture(ROOT, threads=options.threads, record=not options.dry_run)
        torch.set_num_threads(options.threads)
        rows = measure(case, kinds, environment, options.rounds, log, names=[] if options.short else None)
        for row in rows:
            print(f"{row.impl:24} {row.metric:36} {row.p50:10.4g} {row.unit:12} ({row.p20:.4g} to {row.p80:.4g})")
        if not options.dry_run:
            log(f"rows appended to {environment.append(f'{BENCH}.csv', rows)}")
    except CheckFailedError as error:
        log(f"error: {error}")
        return 1
    except FramertError as error:
        log(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
