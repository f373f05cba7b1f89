"""What several folders of tests share."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


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
