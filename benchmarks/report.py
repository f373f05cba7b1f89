"""Write README's tables from what they are about, and the plots: benchmark rows, the task table, the models' scores.

python benchmarks/report.py            rewrite the blocks between <!-- bench:NAME --> and <!-- /bench:NAME -->, and the
                                       plots under benchmarks/results whose rows changed (needs matplotlib)
python benchmarks/report.py --check    change nothing; exit 1 if a block or a plot differs from its rows
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks" / "blocks"))  # its files are scripts beside each other

import plots  # noqa: E402  # found beside this file
from floors import format_table  # noqa: E402
from quality_tables import quantizer_table, task_quality_table  # noqa: E402
from tables import device_table, memory_table, precision_table, serve_table, step_table, triton_table  # noqa: E402

from framert.runtime.errors import ConfigError, FramertError  # noqa: E402
from framert.runtime.families import find_family  # noqa: E402


def task_table(family: str, root: Path) -> str:
    """Return the task table of a family."""
    tasks = find_family(family).tasks().values()
    two = any(task.image_guidance is not None for task in tasks)
    head = "steps, guidance, image guidance" if two else "steps, guidance"
    lines = [f"| task | makes | pictures given | also takes | {head} |", "|---|---|---|---|---|"]
    for task in tasks:
        fewest, most = task.images
        count = "none" if most == 0 else f"{fewest}" if fewest == most else f"{fewest} to {most or 'any number'}"
        extras = [*task.needs, *(f"({name})" for name in task.takes)]
        scales = [task.guidance] + ([] if task.image_guidance is None else [task.image_guidance])
        values = ", ".join([str(task.steps), *(f"{scale:g}" for scale in scales)])
        lines.append(f"| `{task.name}` | {task.summary} | {count} | {', '.join(extras)} | {values} |")
    return "\n".join(lines)


def blocks_table(model: str, root: Path) -> str:
    """Return those of a bundled model's scores that have a floor; nothing while there are none. The card has all."""
    file = root / "models" / model / "scores.json"
    return format_table(json.loads(file.read_text(encoding="utf-8")), floors_only=True) if file.exists() else ""


def precision_block(root: Path) -> str:
    """Return the table of precisions with its plot."""
    shown = plots.picture("speed_quality", "speed of a step against its quality, by precision", root)
    return "\n\n".join(part for part in (precision_table(root), shown) if part)


BLOCKS: Mapping[str, Callable[[Path], str]] = {
    "step": step_table,
    "precision": precision_block,
    "quality": task_quality_table,
    "quantizers": quantizer_table,
    "scaling": lambda root: plots.picture("scaling", "seconds of a step against tokens, with the roofline", root),
    "kernels": partial(device_table, "kernels"),
    "denoiser": partial(device_table, "denoiser"),
    "serve": serve_table,
    "memory": memory_table,
    "triton": triton_table,
    "tasks": partial(task_table, "onediffusion"),
    "univg-tasks": partial(task_table, "univg"),
    "blocks": partial(blocks_table, "blocks"),
    "blocks-univg": partial(blocks_table, "blocks-univg"),
}


def rewritten(text: str, root: Path) -> str:
    """Return ``text`` with every block made anew.

    Raises: ConfigError if a marker is unknown or has no partner, or a file of rows is damaged.
    """
    names = re.findall(r"<!-- (/?)bench:([\w-]+) -->", text)
    for (opening, name), (closing, partner) in zip(names[::2], [*names[1::2], ("", "nothing")], strict=False):
        if opening or not closing or name != partner:
            raise ConfigError(f"README.md: <!-- bench:{name} --> and <!-- /bench:{name} --> must enclose one block")
        if name not in BLOCKS:
            raise ConfigError(f"README.md has a block {name!r}; known are {', '.join(BLOCKS)}")
    return re.sub(
        r"(<!-- bench:([\w-]+) -->)\n.*?(<!-- /bench:\2 -->)",
        lambda found: "\n".join(part for part in (found[1], BLOCKS[found[2]](root), found[3]) if part),
        text,
        flags=re.DOTALL,
    )


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md differs")
    options = parser.parse_args(arguments)
    readme = root / "README.md"
    try:
        text = readme.read_text(encoding="utf-8")
        new = rewritten(text, root)
        stale = plots.stale(root)
    except (FramertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        if new != text:
            print("README.md differs from benchmarks/results; run python benchmarks/report.py", file=sys.stderr)
        for name in stale:
            print(f"{name}.png is not drawn from the rows; run python benchmarks/report.py", file=sys.stderr)
        return 1 if stale or new != text else 0
    if new != text:
        readme.write_text(new, encoding="utf-8")
        print(f"{readme} rewritten", file=sys.stderr)
    for file in plots.redraw(root):
        print(f"{file} drawn", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
