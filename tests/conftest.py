"""What several folders of tests share."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    """Have Triton interpret kernels where there is no CUDA device.

    Triton reads the variable once, when it is imported, which packages under other tests do long before
    tests/kernels is collected. Ahead-of-time compilation needs a process without the variable.
    """
    if find_spec("torch") and find_spec("triton"):
        import torch

        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tests/golden/checkpoint, exported once per session. Read it, never change it."""
    pytest.importorskip("torch")
    from framert.export.pipeline import export

    return export(GOLDEN / "checkpoint", tmp_path_factory.mktemp("bundles") / "golden.bundle", progress=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the golden table, which the tests' output would hide: what tests recorded under "golden"."""
    reports = (report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome))
    rows = [row for report in reports for name, row in report.user_properties if name == "golden"]
    if not rows:
        return
    width = max(len(case) for case, *_ in rows)
    terminalreporter.section("golden vectors, this runtime against the published code")
    for case, quantity, error, allowed in rows:
        terminalreporter.line(f"{case:{width}}  {quantity:24} {error:10.3g}  allowed {allowed:g}")
