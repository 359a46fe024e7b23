"""Functions of one value in a graph: what elementwise operations compute together, however many there are.

All elementwise operations between two values u and y, with numbers alone beside u, are one function y = f(u). What it
means for relevance is decided by its values (`lrp_jax.core.formulas`), so that it is the same in every spelling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrp_jax.core import primitives
from lrp_jax.core.formulas import Formula, Step
from lrp_jax.core.graph import Graph, Operation, Status


@dataclass(frozen=True, eq=False)
class Function:
    """The elementwise operations between two values: output = f(root).

    Attributes:
        root: The number of the value u.
        output: The number of the value y.
        operations: Those between, in the order in which they run.
        formula: f.
    """

    root: int
    output: int
    operations: tuple[Operation, ...]
    formula: Formula

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which a treatment for it is looked up: that of f, then that of a single operation."""
        return names_of_function(self.formula.name, [operation.name for operation in self.operations])


def names_of_function(name: str, operations: Sequence[str]) -> tuple[str, ...]:
    """The names of a function of one value: its own, and that of its operation; a ReLU is no maximum of two values."""
    return (name, *operations) if len(operations) == 1 and name != "relu" else (name,)


@dataclass
class Functions:
    """The functions of one value in a graph.

    Attributes:
        graph: The graph.
        apart: The ids of operations that are treated by themselves.
        ends: Values at which a function ends: what reads them is a function of them.
        statuses: Of which values there are functions.
        roots: For each value that is a function of another one, the first such value.
    """

    graph: Graph
    apart: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    statuses: frozenset[Status] = frozenset({Status.LIVE, Status.HELD})
    roots: dict[int, int] = field(default_factory=dict)
    _formulas: dict[Any, Formula] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for operation in self.graph.operations:
            if self._is_elementwise(operation) and (varying := self._varying_alike(operation)):
                roots = {value if value in self.ends else self.root(value) for value in varying}
                if len(roots) == 1:
                    self.roots[operation.outputs[0]] = roots.pop()

    def _is_elementwise(self, operation: Operation) -> bool:
        return id(operation) not in self.apart and primitives.is_elementwise(operation.equation)

    def _varying_alike(self, operation: Operation) -> list[int]:
        """The operands that are no numbers; none if they do not depend on what is explained, or differ in shape."""
        graph = self.graph
        varying = self.varying(operation)
        statuses = {graph.status[value] for value in varying}
        shape = graph.shapes[operation.outputs[0]].shape
        is_alike = all(graph.shapes[value].shape == shape for value in varying)
        is_complex = any(jnp.iscomplexobj(graph.shapes[value]) for value in (*varying, *operation.outputs))
        return varying if is_alike and not is_complex and statuses <= self.statuses else []

    def varying(self, operation: Operation) -> list[int]:
        """The operands of an operation that are no numbers."""
        return [value for value in operation.inputs if self.graph.number(value) is None]

    def root(self, value: int) -> int:
        """The value of which a value is a function; itself if there is no such."""
        return self.roots.get(value, value)

    def whole(self, value: int) -> Function | None:
        """The function that a value is of its root; None if it is its own."""
        root = self.root(value)
        return None if root == value else self.between(root, value)

    def behind(self, function: Function, value: int) -> Function | None:
        """The part of a function behind an inner value, if that is the only way from the root; None otherwise."""
        behind = self.between(value, function.output)
        if behind is None or any(function.root in operation.inputs for operation in behind.operations):
            return None
        return behind

    def between(self, root: int, output: int) -> Function | None:
        """The operations between two values; None if others than numbers and the root lead to the output."""
        operations: dict[int, Operation] = {}
        waiting = [output]
        while waiting:
            value = waiting.pop()
            if value == root or value in operations or self.graph.number(value) is not None:
                continue
            operation = self.graph.producer.get(value)
            if operation is None or not self._is_elementwise(operation):
                return None
            operations[value] = operation
            waiting.extend(operation.inputs)
        ordered = tuple(operations[value] for value in sorted(operations))  # numbers rise in the order of computing
        return Function(root, output, ordered, self._formula(root, ordered))

    def step(self, operation: Operation, place: Callable[[int], int]) -> Step:
        """An operation as a step of a formula, in which `place` says where each value is that it reads."""
        numbers = ((value, self.graph.number(value)) for value in operation.inputs)
        return Step(operation.equation, tuple(place(value) if number is None else number for value, number in numbers))

    def looks(self, numbers: np.ndarray) -> dict[int, np.ndarray]:
        """What each value that is a function of another one is for some numbers in place of that."""
        looks: dict[int, np.ndarray] = {}
        for value, root in self.roots.items():
            operation = self.graph.producer[value]
            known = {i: numbers if i == root else looks[i] for i in self.varying(operation)}
            with np.errstate(all="ignore"):
                looks[value] = self.step(operation, lambda i: i).run(known)
        return looks

    def _formula(self, root: int, operations: Sequence[Operation]) -> Formula:
        places = {root: 0} | {operation.outputs[0]: i + 1 for i, operation in enumerate(operations)}
        steps = tuple(self.step(operation, places.__getitem__) for operation in operations)
        return self._formulas.setdefault(tuple(step.key for step in steps), Formula(steps))
