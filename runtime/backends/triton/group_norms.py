"""Put group norms back together, which the bundle writes as reshape, instance norm, reshape, scale and shift.

That form suits ONNX Runtime; on a GPU its reshapes would turn channels-last pictures around before and after each norm.
"""

from collections.abc import Sequence

from framert.runtime.backends.triton.graph_file import GraphFile, Node


def merged(file: GraphFile) -> list[Node]:
    """Return the nodes of a file with every group norm written out as one GroupNormalization."""
    readers: dict[str, list[Node]] = {}
    writer = {output: node for node in file.nodes for output in node.outputs}
    for node in file.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    gone: set[int] = set()
    found: dict[int, Node] = {}
    for node in file.nodes:
        if node.op != "InstanceNormalization":
            continue
        chain = _chain(node, readers, writer, file)
        if chain is not None:
            before, back, scaled, shifted = chain
            gone |= {id(item) for item in (before, node, back, scaled)}
            norm = Node(
                "GroupNormalization",
                (before.inputs[0], _other(scaled, back), _other(shifted, scaled)),
                shifted.outputs,
                {"num_groups": file.tensor(before.inputs[1])[1].item(), **node.attributes},
            )
            found[id(shifted)] = norm
    return _without_unread(
        [found.get(id(node), node) for node in file.nodes if id(node) not in gone], set(file.outputs)
    )


def _chain(
    norm: Node, readers: dict[str, list[Node]], writer: dict[str, Node], file: GraphFile
) -> tuple[Node, Node, Node, Node] | None:
    """Return the Reshape before an instance norm and the Reshape, Mul and Add after it, or None if it is another."""
    before = writer.get(norm.inputs[0])
    if before is None or before.op != "Reshape" or before.inputs[1] not in file.weights:
        return None
    shape, ones, zeros = (file.tensor(name) for name in (before.inputs[1], *norm.inputs[1:]))
    if shape.tolist() != [0, len(ones), -1] or not bool((ones == 1).all()) or bool(zeros.any()):
        return None
    after: list[Node] = []
    for op in ("Reshape", "Mul", "Add"):
        users = readers.get((after[-1] if after else norm).outputs[0], [])
        if len(users) != 1 or users[0].op != op:
            return None
        after.append(users[0])
    back, scaled, shifted = after
    whole = writer.get(back.inputs[1])
    if whole is None or whole.op != "Shape" or whole.inputs != before.inputs[:1] or whole.attributes:
        return None
    if _other(scaled, back) not in file.weights or _other(shifted, scaled) not in file.weights:
        return None
    return before, back, scaled, shifted


def _other(node: Node, known: Node) -> str:
    """Return the input of a node of two inputs that ``known`` does not write."""
    return node.inputs[1] if node.inputs[0] in known.outputs else node.inputs[0]


def _without_unread(nodes: Sequence[Node], needed: set[str]) -> list[Node]:
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(name in needed for name in node.outputs):
            needed |= set(node.inputs)
            kept.append(node)
    return kept[::-1]
