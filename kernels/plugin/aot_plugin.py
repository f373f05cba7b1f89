"""FrameAttention as a quickly deployable plugin of TensorRT 10.9 and later, whose PTX TensorRT puts into the engine.

Such an engine needs neither Python nor framert where it runs. TensorRT passes a kernel the addresses of its inputs,
then whole numbers, then the addresses of its outputs: the order of the attention kernel's own arguments. It gives no
workspace, so the kernel has no hidden pointers (``kernels.aot`` takes them off). Up to 11.2 at least, it loads the
kernel anew whenever a shape changes and never gives it back (NVIDIA/TensorRT issue 4849): give it few buckets.
"""

from types import GenericAlias
from typing import Any

from framert.kernels.plugin.frame_attention import INPUTS, KINDS, NAME, NAMESPACE, inputs_of, kernel_values
from framert.kernels.plugin.launch import ALIGNMENT, Launch
from framert.runtime.errors import BackendError

IDENTITY = f"{NAMESPACE}::{NAME}"


class AotPlugin:
    """The plugin's two callbacks; one per process, as definitions cannot be taken back.

    Args:
        trtp: the module ``tensorrt.plugin``.
    """

    def __init__(self, trtp: Any) -> None:
        self.trtp = trtp
        self.launch: Launch | None = None  # what is embedded; set it before a network is built

    def define(self, *, lazy: bool = False) -> None:
        """Tell TensorRT of the plugin. lazy: leave the registry alone until the first network has one."""
        trtp = self.trtp

        # TensorRT reads names and order of parameters here, and takes the annotations for types.
        def describe(
            query: Any, key: Any, value: Any, q_range: Any, kv_range: Any, text_k: Any, text_v: Any, text_range: Any,
            gate: Any,
        ) -> Any:  # fmt: skip
            return query.like()

        def implement(
            query: Any, key: Any, value: Any, q_range: Any, kv_range: Any, text_k: Any, text_v: Any, text_range: Any,
            gate: Any, outputs: Any, tactic: Any,
        ) -> Any:  # fmt: skip
            return self.implement((query, key, value, q_range, kv_range, text_k, text_v, text_range, gate))

        describe.__annotations__ = dict.fromkeys((*INPUTS, "return"), trtp.TensorDesc)
        result = (str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs)
        implement.__annotations__ = {"return": GenericAlias(tuple, result)}
        trtp.register(IDENTITY, lazy_register=lazy)(describe)
        trtp.aot_impl(IDENTITY)(implement)

    def implement(self, inputs: tuple[Any, ...]) -> tuple[str, bytes, Any, Any]:
        """Return kernel name, PTX, launch parameters and scalars, for descriptions of the inputs in order.

        Raises: BackendError if no kernel is set, or the one set is for other tensors.
        """
        if self.launch is None:
            raise BackendError(f"no kernel is set for {NAME}; build with framert build --attention aot")
        launch, trtp = self.launch, self.trtp
        check_order(launch)
        shapes = [[tensor.shape_expr[axis] for axis in range(tensor.ndim)] for tensor in inputs]
        self._check(launch, inputs[0].dtype, shapes)
        values = kernel_values(shapes, [0] * len(INPUTS), 0)
        names = [name for name, kind in launch.arguments if not kind.startswith("*")]
        numbers = {name: values[name] for name in names}
        for name in launch.divisible:
            value = _constant(numbers[name]) if name in numbers else None
            if value is not None and value % ALIGNMENT:
                raise BackendError(f"{launch.entry}: {name} is {value}, which {ALIGNMENT} does not divide")
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x, parameters.grid_y, parameters.grid_z = launch.blocks(numbers, trtp.SymInt32)
        parameters.block_x = launch.threads
        parameters.shared_mem = launch.shared_memory
        scalars = trtp.SymIntExprs(len(names))
        for place, name in enumerate(names):
            scalars[place] = trtp.SymInt32(numbers[name])
        return launch.entry, launch.image, parameters, scalars

    def _check(self, launch: Launch, dtype: Any, shapes: list[list[Any]]) -> None:
        """Raises: BackendError if the kernel was compiled for another type or for other heads."""
        constants = launch.constants
        compiled = (constants["HEADS"], constants["KV_HEADS"], constants["HEAD_DIM"])
        given = (_constant(shapes[0][1]), _constant(shapes[1][1]), _constant(shapes[0][2]))
        kind = dict(launch.arguments)["query_ptr"]
        if any(one not in (None, own) for own, one in zip(compiled, given, strict=True)):
            raise BackendError(
                f"the kernel {launch.entry} is for {compiled[0]} heads on {compiled[1]} of {compiled[2]}; the node has "
                f"{given[0]} on {given[1]} of {given[2]}"
            )
        if KINDS.get(dtype.name) != kind:
            raise BackendError(f"the kernel {launch.entry} is for {kind[1:]} tensors; given are {dtype.name}")


def check_order(launch: Launch) -> None:
    """Raises: BackendError unless a kernel takes its arguments as TensorRT passes them: inputs, i32 scalars, output."""
    names = [name for name, _ in launch.arguments]
    kinds = [kind for _, kind in launch.arguments]
    inputs = [f"{name}_ptr" for name in inputs_of(launch)]
    scalars = kinds[len(inputs) : -1]
    if names[: len(inputs)] != inputs or names[-1] != "out_ptr" or any(kind != "i32" for kind in scalars):
        raise BackendError(f"{launch.entry} takes {', '.join(names)}; TensorRT gives inputs, int32 scalars, outputs")


def _constant(expression: Any) -> int | None:
    """Return the value of an expression of shapes, None for one that is not known. Fake ones must not be asked."""
    if isinstance(expression, int):
        return expression
    if getattr(expression, "is_fake", False) or not expression.is_constant:
        return None
    value: int = expression.constant_value()
    return value
