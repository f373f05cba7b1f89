"""The solvers, by the name a request gives. Each is a list of table rows; none runs a loop."""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from framert.runtime.errors import ConfigError
from framert.runtime.solvers import dpmpp_2m, euler, heun
from framert.runtime.solvers.evaluation import Evaluation

Solver = Callable[[Sequence[float]], list[Evaluation]]

SOLVERS = MappingProxyType({
    "euler": euler.evaluations,
    "heun": heun.evaluations,
    "dpmpp_2m": dpmpp_2m.evaluations,
})  # fmt: skip


def find(name: str) -> Solver:
    """Raises: ConfigError for an unknown name."""
    if not isinstance(name, str) or name not in SOLVERS:
        raise ConfigError(f"unknown solver {name!r}; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[name]
