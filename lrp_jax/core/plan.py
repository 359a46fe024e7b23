"""The plan: which piece of the function gets which backward pass, and in which forms relevance travels between them.

`lrp_jax.core.cutter` cuts a function into pieces, and `lrp_jax.core.planner` decides.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax

from lrp_jax.core.forms import Form
from lrp_jax.core.functions import names_of_function
from lrp_jax.core.graph import Checkpoint, Graph, Operation
from lrp_jax.core.layers import Layer
from lrp_jax.core.rule import Rule
from lrp_jax.treatments import Arrays, Treatment

Forms: TypeAlias = tuple[Form, ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """Operations that run together and share one backward pass.

    Attributes:
        operations: In the order in which they run.
        live: The numbers of the operands through which relevance flows.
        constants: The numbers of the other operands.
        outputs: The numbers of the values that are returned.
        kind: What it is, in a word: the kind of a layer, the name of a function, or of the primitive.
        layer: The layer that the piece is, if it is one.
        rule: The rule of the layer.
        treatment: The backward pass; None where no relevance arrives.
        bodies: The plans of the functions that the operation runs (scan, cond, shard_map).
        forms: The forms in which the cotangents of the outputs are taken; the piece runs once for each.
        group: "softmax", "log_softmax" or "logsumexp" where it is an operation of such.
        table: The path of the table, where explained integers are looked up in one.
    """

    operations: tuple[Operation, ...]
    live: tuple[int, ...]
    constants: tuple[int, ...]
    outputs: tuple[int, ...]
    kind: str
    layer: Layer | None = None
    rule: Rule | None = None
    treatment: Treatment | None = None
    bodies: tuple["Plan", ...] = ()
    forms: Forms = ()
    group: str = ""
    table: str = ""

    def run(self, live: Arrays, constants: Arrays) -> list[jax.Array]:
        """Applies the operations to arrays, with JAX's own derivative."""
        return self._run(live, constants, Operation.run)

    def run_with_backward(self, live: Arrays, constants: Arrays) -> list[jax.Array]:
        """As `run`, up to rounding, where a backward pass of ours follows: as fast as the platform allows."""
        return self._run(live, constants, self._run_operation)

    def _run_operation(self, operation: Operation, *values: jax.Array) -> list[jax.Array]:
        if self.layer is None or operation is not self.layer.operations[0]:
            return operation.run(*values)
        return [self.layer.product.run(*values)]

    def _run(self, live: Arrays, constants: Arrays, run: Callable[..., list[jax.Array]]) -> list[jax.Array]:
        values = dict(zip(self.live + self.constants, (*live, *constants), strict=True))
        for operation in self.operations:
            outputs = run(operation, *(values[i] for i in operation.inputs))
            values.update(zip(operation.outputs, outputs, strict=True))
        return [values[i] for i in self.outputs]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The calls under `jax.checkpoint` that all of it is a part of."""
        by_depth = zip(*(operation.checkpoints for operation in self.operations), strict=False)
        shared = itertools.takewhile(lambda calls: all(call is calls[0] for call in calls), by_depth)
        return tuple(first for first, *_ in shared)

    def taken(self, arriving: Form) -> Form:
        """The form in which the piece takes a cotangent that arrives in some form."""
        return arriving if arriving in self.forms else self.forms[0]

    def returned(self, taken: Form) -> Form:
        """The form in which it returns what it takes in some form."""
        return (self.treatment.returns if self.treatment else None) or taken


@dataclass(frozen=True)
class Plan:
    """How relevance travels through a function.

    A cotangent in one form and one in the other travel separately, from where they arise down to the input: a value
    that rules of both kinds use has both.

    Attributes:
        graph: The function.
        pieces: The function cut into pieces, in the order in which they run.
        forms: For every value that relevance reaches, the forms in which its cotangents arrive.
        input_forms: For each input, the forms in which cotangents are wanted: it is given once for each.
        output_forms: For each output, the forms in which cotangents arrive: it is returned once for each.
        partly_constant: The values that are constants at some places, which maxima have to know.
    """

    graph: Graph
    pieces: tuple[Piece, ...]
    forms: Mapping[int, Forms]
    input_forms: tuple[Forms, ...]
    output_forms: tuple[Forms, ...]
    partly_constant: frozenset[int] = frozenset()

    def all_pieces(self) -> Iterator[Piece]:
        """All pieces, those of inner functions included, in the order in which they run."""
        for piece in self.pieces:
            yield piece
            for body in piece.bodies:
                yield from body.all_pieces()


def with_rules(plan: Plan, rules: Sequence[Rule | None]) -> Plan:
    """The plan with other numbers in its rules.

    Args:
        plan: A plan.
        rules: A rule for each of its pieces, in the order of `Plan.all_pieces`.
    """

    def replaced(plan: Plan, rules: Iterator[Rule | None]) -> Plan:
        pieces = []
        for piece in plan.pieces:
            rule = next(rules)
            pieces.append(replace(piece, rule=rule, bodies=tuple(replaced(body, rules) for body in piece.bodies)))
        return replace(plan, pieces=tuple(pieces))

    return replaced(plan, iter(rules))


def names_of(piece: Piece) -> tuple[str, ...]:
    """The names under which a treatment for a piece is looked up."""
    if piece.layer is not None:
        return ()
    if piece.group:
        return (piece.group,)
    names = names_of_function(piece.kind, [operation.name for operation in piece.operations])
    return (*names, "max") if "reduce_max" in names else names
