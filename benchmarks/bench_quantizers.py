"""The recipe for int8 beside the standard ones of NNCF and NVIDIA ModelOpt, on the same products of the same model.

    python benchmarks/bench_quantizers.py [models/blocks] [--sides framert nncf ...] [--steps 20] [--rows]

Every side quantizes the denoiser of a checkpoint after the same calibrating tasks, and is measured beside fp32 as
``framert export`` measures a bundle: velocity error by noise level from fp32's own latents, latents' PSNR after the
solver, and whether requests that share calls get what they get alone. All of it twice: on the checkpoint, and with
planted outliers (blocks/outliers.py), which leave fp32 as it is. Nothing is timed.

| side | what quantizes | what runs it |
|---|---|---|
| framert | per-token scales, smoothing where it is exact | ONNX Runtime |
| nncf | nncf.quantize, model type transformer, SmoothQuant, mixed preset: everything that it takes | OpenVINO |
| nncf-products | the same, on the products that framert quantizes alone | OpenVINO |
| nncf-half | nncf-products with SmoothQuant's alpha at 0.5 instead of NNCF's 0.95 | OpenVINO |
| modelopt | ModelOpt's INT8_SMOOTHQUANT_CFG, on these products | torch, which rounds as int8 does |
"""

import argparse
import copy
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "blocks"))

import outliers

import framert
from framert.export import fidelity
from framert.export.checkpoint import Checkpoint, open_checkpoint
from framert.export.oracle import Oracle
from framert.export.pipeline import export
from framert.export.quantize.prepare import SEED, STEPS
from framert.export.rehearsal import PROMPTS, rehearse
from framert.export.verify import _matching_plans as matching_plans
from framert.runtime import backends
from framert.runtime.backends.openvino import OpenVinoBackend, import_openvino
from framert.runtime.bench.plan import identity
from framert.runtime.bench.quality import decibels
from framert.runtime.bench.rows import Environment, Row
from framert.runtime.bundle import Bundle
from framert.runtime.errors import FramertError

ROOT = Path(__file__).resolve().parents[1]
BENCH = "quantizers"
THREADS = 2
PRODUCTS = re.compile(r"layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])(\.|$)")  # what framert quantizes
PACKAGES = {"nncf": "nncf", "modelopt": "nvidia-modelopt"}  # module -> name of its distribution


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, its bundles, and the checkpoint's own modules. planted: whether outliers were planted in it."""

    checkpoint: Checkpoint
    fp32: Bundle
    int8: Bundle
    planted: bool

    def oracle(self) -> Oracle:
        """Return new modules of the checkpoint."""
        return Oracle(matching_plans(self.fp32, self.checkpoint), self.checkpoint, self.fp32.manifest.model)


class Watched(OpenVinoBackend):
    """Keeps what the denoiser is given."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, threads=THREADS)
        self.calls: list[dict[str, Any]] = []

    def infer(self, graph: str, request: Any, arrays: Mapping[str, Any]) -> None:
        if graph == "denoiser":
            inputs = self._bundle.manifest.graphs[graph].inputs
            self.calls.append({name: np.array(array) for name, array in arrays.items() if name in inputs})
        super().infer(graph, request, arrays)


class Nncf(OpenVinoBackend):
    """A bundle in fp32 whose denoiser NNCF quantizes when it is loaded.

    Args:
        calls: what the denoiser is calibrated on. everything: not only framert's products. alpha: of SmoothQuant; None
            is NNCF's own.
    """

    def __init__(self, bundle: Bundle, calls: list[dict[str, Any]], *, everything: bool, alpha: float | None) -> None:
        super().__init__(bundle, threads=THREADS)
        self._calls, self._everything, self._alpha = calls, everything, alpha

    def _compile(self, path: Path, config: dict[str, Any]) -> Any:
        if path != self._bundle.graph_path("denoiser"):
            return super()._compile(path, config)
        nncf = import_nncf()
        model = self._core.read_model(path)
        ignored = nncf.IgnoredScope() if self._everything else nncf.IgnoredScope(names=_other_products(model))
        quantized = nncf.quantize(
            model,
            nncf.Dataset(self._calls),
            subset_size=len(self._calls),
            model_type=nncf.ModelType.TRANSFORMER,  # which switches SmoothQuant and the mixed preset on
            ignored_scope=ignored,
            advanced_parameters=None if self._alpha is None else _with_alpha(self._alpha),
        )
        return self._core.compile_model(quantized, "CPU", config)


def import_nncf() -> Any:
    """Return nncf, imported as openvino is: without what reports to a server."""
    os.environ["NNCF_CI"] = "1"  # its own way to switch that off
    import_openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def _with_alpha(alpha: float) -> Any:
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters

    return AdvancedQuantizationParameters(smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha))


def _other_products(model: Any) -> list[str]:
    """Return the names of the matrix products whose second factor is no weight of a repeated layer."""
    found = []
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            weight = node.input_value(1).get_node().get_friendly_name()
            if PRODUCTS.match(weight) is None:
                found.append(node.get_friendly_name())
    return found


def modelopt_backend(model: Model) -> Oracle:
    """Return the checkpoint's modules with ModelOpt's quantizers in them."""
    with warnings.catch_warnings():  # of versions it was not tested with
        warnings.simplefilter("ignore")
        import modelopt.torch.quantization as quantization
    from torch import nn

    oracle = model.oracle()
    part = oracle.part("transformer")
    config = copy.deepcopy(quantization.INT8_SMOOTHQUANT_CFG)
    config["quant_cfg"] += [
        {"quantizer_name": f"{name}.*quantizer", "enable": False}
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and PRODUCTS.match(name) is None
    ]
    with warnings.catch_warnings():  # that the others are not smoothed
        warnings.simplefilter("ignore")
        quantization.quantize(part, config, lambda _: calibrate(model, oracle))
    return oracle


def nncf_backend(model: Model, *, everything: bool = False, alpha: float | None = None) -> Nncf:
    """Return the bundle in fp32 with NNCF between it and OpenVINO."""
    watched = Watched(model.fp32)
    calibrate(model, watched)
    return Nncf(model.fp32, watched.calls, everything=everything, alpha=alpha)


def calibrate(model: Model, backend: Any) -> None:
    """Run what ``framert export`` calibrates on."""
    rehearse(framert.Pipeline(model.fp32, backend), steps=STEPS, seed=SEED)


SIDES: Mapping[str, Callable[[Model], Any]] = {
    "framert": lambda model: backends.create("onnxruntime", model.int8, threads=THREADS),
    "nncf": lambda model: nncf_backend(model, everything=True),
    "nncf-products": nncf_backend,
    "nncf-half": lambda model: nncf_backend(model, alpha=0.5),
    "modelopt": modelopt_backend,
}


def packed_psnr(bundle: Bundle, backend: Any) -> float:
    """Return how near three requests that share calls are to themselves alone, in dB: the worst."""
    pipe = framert.Pipeline(bundle, backend)
    side = bundle.manifest.native_side
    requests = [
        framert.Request(task="text_to_image", prompt=PROMPTS[0], steps=3, seed=1, size=(side, side)),
        framert.Request(task="text_to_image", prompt=PROMPTS[1], steps=4, seed=2, size=(side // 2, side)),
        framert.Request(task="text_to_image", prompt=PROMPTS[0], steps=3, seed=3, size=(side // 2, side // 2)),
    ]
    alone = [pipe.engine().submit(request).result().latents for request in requests]
    engine = pipe.engine()
    tickets = [engine.submit(request) for request in requests]
    pairs = [(ticket.result().latents, latents) for ticket, latents in zip(tickets, alone, strict=True)]
    return min(decibels(packed, latents, float(np.ptp(latents))) for packed, latents in pairs)


def measure(name: str, model: Model, steps: int, environment: Environment) -> list[Row]:
    """Return a side's rows."""
    bundle = model.int8 if name == "framert" else model.fp32
    backend = SIDES[name](model)
    found = fidelity.measure(bundle, backend, model.oracle(), steps=steps)
    package = PACKAGES.get(name.partition("-")[0])
    impl = f"{name} {metadata.version(package)}" if package else name
    rest = f"{steps} steps; {'planted outliers' if model.planted else 'as trained'}; {identity(model.int8.manifest)}"

    def row(what: str, metric: str, unit: str, value: float) -> Row:
        case = f"{what}; {rest}"
        return environment.row(bench=BENCH, impl=impl, case=case, metric=metric, unit=unit, samples=[value])

    rows = []
    for level, errors in found["velocity"].items():
        rows += [row(f"noise {level}", "velocity_error", "1", errors["rms"])]
        rows += [row(f"noise {level}", "velocity_error_largest", "1", errors["max"])]
    rows += [row(task, "latents_psnr", "dB", value) for task, value in found["latents_psnr"].items()]
    if not isinstance(backend, Oracle):  # torch promises no bits, whatever it is that it computes
        rows.append(row("three requests packed", "packed_psnr", "dB", packed_psnr(bundle, backend)))
    return rows


def models(checkpoint: Path, folder: Path) -> list[Model]:
    """Return the checkpoint and the same with planted outliers."""
    outliers.write(checkpoint, folder / checkpoint.name)
    made = []
    for planted, source in enumerate((checkpoint, folder / checkpoint.name)):
        bundles = [
            export(source, folder / f"{word}-{planted}", precision=f"denoiser={word}", check=False, progress=False)
            for word in ("fp32", "int8")
        ]
        made.append(Model(open_checkpoint(source), *map(Bundle.open, bundles), planted=bool(planted)))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=ROOT / "models" / "blocks")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", action="store_true", help=f"append to benchmarks/results/{BENCH}.csv")
    given = parser.parse_args()
    missing = {name for name in PACKAGES if util.find_spec(name) is None}
    sides = [name for name in given.sides if name.partition("-")[0] not in missing]
    for name in set(given.sides) - set(sides):
        print(f"{name} is left out: its package is not installed", file=sys.stderr)
    try:
        environment = Environment.capture(ROOT, threads=THREADS, record=given.rows)
        with tempfile.TemporaryDirectory() as folder:
            for model in models(given.checkpoint, Path(folder)):
                for name in sides:
                    rows = measure(name, model, given.steps, environment)
                    for row in rows:
                        print(f"{row.impl:24} {row.case}: {row.metric} {row.p50:.4g} {row.unit}", flush=True)
                    if given.rows:
                        environment.append(f"{BENCH}.csv", rows)
    except (FramertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
