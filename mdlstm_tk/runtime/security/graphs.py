"""Follow the nodes of a model in their order: what each one is, what it takes, and how large it gets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mdlstm_tk.runtime.security.attributes import read_attributes
from mdlstm_tk.runtime.security.bounds import ABSENT, Bound, with_numbers
from mdlstm_tk.runtime.security.interface import TensorSpec, read_opsets, read_value
from mdlstm_tk.runtime.security.nodes import INPUT, Node, attribute_spans, read_nodes
from mdlstm_tk.runtime.security.operators import FUNCTION_DOMAIN, OPERATORS, OPSET
from mdlstm_tk.runtime.security.protobuf import Reader
from mdlstm_tk.runtime.security.refusal import Refusal, holds, printable
from mdlstm_tk.runtime.security.schema import FUNCTION, GRAPH, MAX_RANK, Content
from mdlstm_tk.runtime.security.tensors import read_tensor

MAX_NODES = 250_000  # with all functions expanded; ONNX Runtime takes 3 KB for each, and 25 µs to load it
MAX_ARGUMENTS = 2_000_000  # inputs and outputs of all nodes together
SCAN = b"Scan"
NODE_TAG = INPUT  # a graph's nodes are field 1, as a node's inputs are

Values = dict[bytes, Bound]
"""The values that have been defined, by name."""

INNER = Bound(MAX_RANK + 1)  # stands for a value inside a Scan, whose name nothing outside it may use


@dataclass(frozen=True)
class Function:
    """A function of the model."""

    name: bytes
    inputs: list[bytes]
    outputs: list[bytes]
    nodes: list[Node]
    size: int  # in bytes
    arguments: int


class _Body(Values):
    """The values that a body may use: its own, and the constants of the graph around it."""

    def __init__(self, constants: Values) -> None:
        self.constants = constants
        self[b""] = ABSENT

    def __missing__(self, name: bytes) -> Bound:
        return self.constants[name]


class GraphCheck:
    """Checks the functions and the graph of one model.

    Args:
        reader: of the file.
        max_bytes: maximum size of the file with all functions expanded.
    """

    def __init__(self, reader: Reader, max_bytes: int) -> None:
        self.reader, self.data = reader, reader.data
        self.max_bytes = max_bytes
        self.functions: dict[bytes, Function] = {}
        self.called: set[bytes] = set()
        self.nodes_left, self.arguments_left = MAX_NODES, MAX_ARGUMENTS
        self.size = len(self.data)  # with all functions expanded
        # What a node returns depends on its operator, its attributes and the bounds of its inputs. Equal
        # nodes are therefore checked once, which is what makes the check of an unrolled sweep fast.
        self.results: dict[tuple[object, ...], list[Bound]] = {}
        self.constants: Values = {}

    def read_function(self, start: int, end: int) -> None:
        """Check what the function in data[start:end] is; `check_graph` checks its nodes where it is called.

        Raises:
            Refusal: it is not like an exported function.
        """
        content = Content(self.reader, FUNCTION, start, end)
        name, domain = content.text("name"), content.text("domain")
        if domain != FUNCTION_DOMAIN:
            raise holds(f"the function {printable(name)} of domain {printable(domain)}")
        if name in self.functions:
            raise holds(f"two functions named {printable(name)}")
        if read_opsets(self.reader, content.spans("opset_import")) != {b"": OPSET}:
            raise holds(f"the function {printable(name)} with other opsets than its model")
        inputs, outputs = content.texts("input"), content.texts("output")
        nodes = list(read_nodes(self.data, content.spans("node")))
        if not nodes or len(set(inputs)) < len(inputs) or len(set(outputs)) < len(outputs) or b"" in inputs:
            raise holds(f"the function {printable(name)} without nodes or with equal or missing names")
        arguments = sum(len(node[2]) + len(node[3]) for node in nodes)
        self.functions[name] = Function(name, inputs, outputs, nodes, end - start, arguments)

    def check_graph(self, start: int, end: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Check the main graph and the functions that it calls.

        Returns:
            Its inputs and outputs.

        Raises:
            Refusal: it holds something that no exported graph holds.
        """
        spans, start = self.reader.leading(NODE_TAG, start, end)
        content = Content(self.reader, GRAPH, start, end)
        inputs, outputs = self._interface(content)
        values: Values = {b"": ABSENT}
        for tensor in inputs:
            # What an input holds is the choice of the user rather than of the file.
            bound = Bound(len(tensor.shape), integer=_is_integer(tensor), divisor=True)
            _define(values, (), tensor.name.encode(), bound)
        tensors = content.spans("initializer")
        if len(tensors) > MAX_NODES:
            raise holds(f"more than {MAX_NODES} tensors")
        for span in tensors:
            stored = read_tensor(self.reader, *span)
            _define(values, (), stored.name, stored.bound)
            self.constants[stored.name] = stored.bound
        spans += content.spans("node")
        self._follow(read_nodes(self.data, spans), values, may_nest=True)
        names = [tensor.name.encode() for tensor in outputs]
        if len(set(names)) < len(names) or any(values.get(name, INNER) is INNER for name in names):
            raise holds("an output that is declared twice or that no node computes")
        uncalled = self.functions.keys() - self.called
        if uncalled:
            raise holds(f"the function {printable(min(uncalled))}, which nothing calls")
        return inputs, outputs

    def _interface(self, content: Content) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        inputs, outputs = (
            tuple(read_value(self.reader, *span) for span in content.spans(field))
            for field in ("input", "output")
        )
        return inputs, outputs

    def _follow(
        self, nodes: Iterable[Node], values: Values, taken: Collection[bytes] = (), *, may_nest: bool
    ) -> None:
        """Check nodes, and add the values that they define.

        Args:
            nodes: in an order in which each value is defined before it is used.
            values: what is defined before the first of them.
            taken: further names that none of them may define.
            may_nest: whether nodes may have bodies and call functions.
        """
        results, find = self.results, values.__getitem__
        for node in nodes:
            domain, operator, inputs, outputs, attributes, _ = node
            try:
                bounds = tuple(map(find, inputs))
            except KeyError as error:
                raise holds(f"the value {printable(error.args[0])} before it is defined") from None
            self.nodes_left -= 1
            self.arguments_left -= len(inputs) + len(outputs)
            if self.nodes_left < 0 or self.arguments_left < 0:
                raise holds(f"more than {MAX_NODES} nodes, or {MAX_ARGUMENTS} inputs and outputs of nodes")
            if domain:
                found = self._call(node, bounds, may_nest)
            elif operator == SCAN:
                found = self._scan(node, bounds, values, may_nest)
            else:
                key = (operator, attributes, bounds, len(outputs))
                found = results.get(key) or self._apply(node, bounds)
                results[key] = found
            for name, bound in zip(outputs, found, strict=True):
                if name in values or name in taken:
                    raise holds(f"two values named {printable(name)}")
                values[name] = bound

    def _apply(self, node: Node, inputs: Sequence[Bound]) -> list[Bound]:
        """Check a node with an operator of the table, and bound its outputs."""
        name, outputs = node[1], node[3]
        operator = OPERATORS.get(name)
        if operator is None:
            raise holds(f"the operator {printable(name)}, which models may not use")
        _check_arity(node, operator.min_inputs, operator.max_inputs, 1, operator.max_outputs)
        _check_inputs(node, inputs, operator.optional)
        spans = attribute_spans(self.reader, node)
        attributes, _ = read_attributes(self.reader, name, operator, spans)
        results = operator.rule(attributes, inputs, len(outputs))
        _check_ranks(results)
        return with_numbers(name, attributes, inputs, results)

    def _call(self, node: Node, inputs: Sequence[Bound], may_nest: bool) -> list[Bound]:
        """Check a node that calls a function, with the function's nodes, and bound its outputs."""
        domain, name, _, _, attributes, _ = node
        if domain != FUNCTION_DOMAIN:
            raise holds(f"the operator {printable(name)} of domain {printable(domain)}")
        function = self.functions.get(name)
        if function is None:
            raise holds(f"a call of the function {printable(name)}, which it does not define")
        if not may_nest:
            raise holds(f"a call of the function {printable(name)} from a function or a body")
        if attributes:
            raise holds(f"a call of the function {printable(name)} with attributes")
        arity = len(function.inputs), len(function.outputs)
        _check_arity(node, arity[0], arity[0], arity[1], arity[1])
        self.called.add(name)
        self.size += function.size
        if self.size > self.max_bytes:
            raise Refusal(
                f"takes more than {self.max_bytes} bytes with its functions expanded; "
                "allow more with --max-bytes"
            )
        key = (FUNCTION_DOMAIN, name, inputs)
        if key in self.results:
            self.nodes_left -= len(function.nodes)
            self.arguments_left -= function.arguments
        else:
            _check_inputs(node, inputs)
            values = {b"": ABSENT, **dict(zip(function.inputs, inputs, strict=True))}
            self._follow(function.nodes, values, may_nest=False)
            if not values.keys() >= set(function.outputs):
                raise holds(f"the function {printable(name)}, which does not compute its outputs")
            self.results[key] = [values[output] for output in function.outputs]
        return self.results[key]

    def _scan(self, node: Node, inputs: Sequence[Bound], values: Values, may_nest: bool) -> list[Bound]:
        """Check a Scan with its body, and bound its outputs."""
        if not may_nest:
            raise holds("a Scan inside a function or another Scan")
        operator = OPERATORS[SCAN]
        _check_arity(node, operator.min_inputs, operator.max_inputs, 1, operator.max_outputs)
        _check_inputs(node, inputs)
        attributes, span = read_attributes(self.reader, SCAN, operator, attribute_spans(self.reader, node))
        content = Content(self.reader, GRAPH, *span)
        declared_inputs, declared_outputs = self._interface(content)
        scanned = attributes.get(b"num_scan_inputs", 0)
        assert isinstance(scanned, int)
        states = len(inputs) - scanned
        if (
            not 1 <= scanned <= len(inputs)
            or len(declared_inputs) != len(inputs)
            or len(declared_outputs) != len(node[3])
            or len(node[3]) < states
        ):
            raise holds("a Scan whose body does not fit its inputs and outputs")
        if content.spans("initializer"):
            raise holds("a body that stores tensors")
        if not content.spans("node"):
            # ONNX Runtime looks at the time before each node that it runs.
            raise holds("a Scan with an empty body, which could not be stopped")
        body = _Body(self.constants)
        for k, (declared, outer) in enumerate(zip(declared_inputs, inputs, strict=True)):
            rank = max(len(declared.shape), outer.rank - (k >= states))
            bound = Bound(rank, integer=_is_integer(declared))
            _define(body, values, declared.name.encode(), bound)
        bounds = [body[declared.name.encode()] for declared in declared_inputs]
        self._follow(read_nodes(self.data, content.spans("node")), body, values, may_nest=False)
        names = [declared.name.encode() for declared in declared_outputs]
        if not body.keys() >= set(names):
            raise holds("a body that does not compute its outputs")
        results = [body[name] for name in names]
        for before, after in zip(bounds[:states], results[:states], strict=True):
            if after.rank > before.rank:
                raise holds("a Scan whose state may get more axes with each iteration")
        outputs = [
            Bound(result.rank + (k >= states), integer=result.integer) for k, result in enumerate(results)
        ]
        _check_ranks(outputs)
        values.update(dict.fromkeys(body.keys() - {b""}, INNER))
        return outputs


def _define(values: Values, taken: Collection[bytes], name: bytes, bound: Bound) -> None:
    """Add a value that no node computes."""
    if name in values or name in taken:
        raise holds(f"two values named {printable(name)}")
    values[name] = bound


def _is_integer(tensor: TensorSpec) -> bool:
    return "int" in tensor.dtype


def _check_arity(node: Node, min_inputs: int, max_inputs: int, min_outputs: int, max_outputs: int) -> None:
    inputs, outputs = len(node[2]), len(node[3])
    if not (min_inputs <= inputs <= max_inputs and min_outputs <= outputs <= max_outputs):
        raise holds(
            f"a node {printable(node[1])} with {inputs} inputs and {outputs} outputs, which does not "
            "fit its operator"
        )


def _check_inputs(node: Node, inputs: Sequence[Bound], optional: Sequence[int] = ()) -> None:
    if INNER in inputs:
        raise holds("a value of a body that is used outside it")
    if any(not name and k not in optional for k, name in enumerate(node[2])):
        raise holds(f"a node {printable(node[1])} without an input that it needs")


def _check_ranks(outputs: Sequence[Bound]) -> None:
    if max(bound.rank for bound in outputs) > MAX_RANK:
        raise holds(f"a tensor that may have more than {MAX_RANK} axes")
