"""``framert export``: checkpoint to bundle."""

import argparse

from framert.runtime.cli.lazy import export_module

NAME = "export"
SUMMARY = "make a bundle of a checkpoint"
DESCRIPTION = """Make a bundle of a checkpoint: a folder of ONNX graphs, tokenizer and manifest that runs without torch.
It appears whole or not at all. Needs the extra framert[export]."""
EPILOG = """examples:
  framert export models/blocks -o blocks.bundle
  framert export lehduong/OneDiffusion -o onediffusion.bundle
  framert export models/blocks -o small.bundle --precision int8
  framert export models/blocks -o mixed.bundle --precision denoiser=int8,text_encoder=fp32
  framert export models/blocks -o exact.bundle --precision int8 --keep-high denoiser=first,last
  framert export my_checkpoint -o my.bundle --native-side 256 --force"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder of safetensors, or a Hugging Face hub id")
    parser.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="the folder to make")
    parser.add_argument(
        "--native-side",
        type=int,
        metavar="N",
        help="side in pixels of the pictures the model was trained on (default: the checkpoint's, or 512)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="WORD|PART=WORD,...",
        help="fp32, fp16, bf16, int8, int4 or fp8 for denoiser and text encoder; or by part: text_encoder, vae, "
        "conditioner, denoiser; or auto, the best for the target (default: fp32)",
    )
    parser.add_argument(
        "--keep-high",
        nargs="+",
        metavar="PART=ITEM,...",
        help="products of a quantized part that stay in fp32: first, last, a block's number, or a product's name "
        "(of the denoiser wq wk wv wo w1 w2 w3), such as denoiser=first,last,w2",
    )
    parser.add_argument(
        "--target",
        default="onnx",
        metavar="TARGET",
        help="onnx, or tensorrt for quantized graphs in the form that its builder takes (default: onnx)",
    )
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="do not run real tasks to measure a precision below fp32; a large model takes long for them",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    pipeline = export_module("pipeline", NAME)
    path = pipeline.export(
        arguments.checkpoint,
        arguments.output,
        native_side=arguments.native_side,
        precision=arguments.precision,
        target=arguments.target,
        keep_high=" ".join(arguments.keep_high) if arguments.keep_high else None,
        check=not arguments.unchecked,
        force=arguments.force,
        progress=not arguments.quiet,
    )
    print(path)
    return 0
