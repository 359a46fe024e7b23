"""Looking into an explanation: the plan of what will happen, and the ledger of where the relevance went."""

import html
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import Primitive

from lrp_jax.composites import Composite, Rules, as_composite
from lrp_jax.core.forms import Form
from lrp_jax.core.inference import Inference
from lrp_jax.core.kinds import KINDS
from lrp_jax.core.plan import Piece, Plan, names_of
from lrp_jax.core.planner import make_plan
from lrp_jax.core.primitives import summary_of
from lrp_jax.core.trace import explaining
from lrp_jax.errors import InputError
from lrp_jax.explain.accounts import Entry, check_closes, keep_account, path_of
from lrp_jax.explain.checks import check, number_of_samples, report
from lrp_jax.explain.display import table_as_html
from lrp_jax.explain.models import trace_model
from lrp_jax.explain.targets import Target, check_places, read_target, seed_of
from lrp_jax.treatments import halved, in_equal_parts, looked_up


@dataclass(frozen=True)
class Table:
    """Rows of text that show themselves: as plain text, in a terminal with rich, and in Jupyter.

    Attributes:
        title: What the table is.
        header: The names of the columns.
        rows: The cells.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        cells = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.header))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    __repr__ = __str__

    def __rich__(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(*self.header, title=Text(self.title))
        for row in self.rows:
            table.add_row(*map(Text, row))  # and no markup, as which rich reads square brackets
        return table

    def _repr_html_(self) -> str:
        return table_as_html(self.title, self.header, [list(map(html.escape, row)) for row in self.rows])


@dataclass(frozen=True, repr=False)
class PlanTable(Table):
    """What `plan` returns. It shows the layers, and where else something was decided that you may want to change.

    Attributes:
        are_decisions: For each row, whether it is a layer, an embedding that is looked up, a product whose factors
            share relevance between them, as those of attention do, or an operation with a treatment that the composite
            names.
    """

    are_decisions: tuple[bool, ...]

    def __str__(self) -> str:
        return str(self.layers())

    def __rich__(self) -> Any:
        return self.layers().__rich__()

    def _repr_html_(self) -> str:
        return self.layers()._repr_html_()

    def layers(self) -> Table:
        """Layers, embeddings, products whose factors share relevance, and what the composite has a treatment for."""
        shown = tuple(row for row, is_decision in zip(self.rows, self.are_decisions, strict=True) if is_decision)
        others = len(self.rows) - len(shown)
        hint = f"; .operations() shows {others} more row{'s' * (others != 1)}" if others else ""
        return Table(self.title + hint, self.header, shown)

    def operations(self) -> Table:
        """Every layer and every operation that relevance reaches."""
        return Table(self.title, self.header, self.rows)


def plan(
    model: Callable[[Any], Any], x: Any, rules: Rules | None = None, *, inference: Inference = "checked"
) -> PlanTable:
    """Shows what would happen to relevance in a model, before anything runs.

    Args:
        model: As for `relevance`.
        x: Its input; only shapes and dtypes matter.
        rules: As for `relevance`.
        inference: As for `relevance`.

    Returns:
        A table with a row for every layer and every operation that relevance reaches, in the order in which they run:
        path (of the parameters of a layer or an embedding; else the line), kind, shape of the output, rule or
        treatment, form in which the cotangent of the output is taken, and sign of the input, where it is known. The
        table shows layers, embeddings, and the products of which each factor gets half, as in attention. Its method
        `operations` shows all rows, and its field `rows` holds them.

    Raises:
        InputError: If `x` has a dtype without relevance, or `inference` is neither of the two.
        ModelError: As for `relevance`.
        SelectorError: If the rules do not fit the layers.
        UnsupportedOperationError: If relevance reaches an operation that has no treatment.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrp_jax import plan, rules
        >>> weight = jnp.array([[1.0, -1.0], [3.0, 2.0]])
        >>> table = plan(lambda x: jax.nn.relu(x @ weight), jnp.ones((1, 2)), rules.Zero())
        >>> print(table)
        Plan: 1 layer; .operations() shows 1 more row
        path     kind   shape   rule    form   input
        dense_0  dense  (1, 2)  Zero()  ratio  any sign
        >>> print(table.operations())  # doctest: +ELLIPSIS
        Plan: 1 layer
        path... kind   shape   rule               form   input
        dense_0... dense  (1, 2)  Zero()             ratio  any sign
        ... relu   (1, 2)  passed one to one  ratio  any sign
    """
    check_places(None, rules, takes_target=False)
    number_of_samples(x, has_values=False)
    composite = as_composite(rules)
    call, _ = trace_model(model, x, inference=inference)
    made = make_plan(call.read().graph, composite)
    pieces = [piece for piece in made.all_pieces() if piece.treatment is not None]
    graphs = _graph_of_each_piece(made)
    rows = tuple(_plan_row(graphs[id(piece)], piece) for piece in pieces)
    layers = sum(piece.layer is not None for piece in pieces)
    shared = sum(map(_is_shared, pieces))
    title = f"Plan: {layers} layer{'s' * (layers != 1)}"
    if shared:
        title += f", {shared} product{'s' * (shared != 1)} of which each factor gets a part"
    decisions = (_is_decision(piece, composite) for piece in pieces)
    return PlanTable(title, ("path", "kind", "shape", "rule", "form", "input"), rows, tuple(decisions))


def _is_decision(piece: Piece, composite: Composite) -> bool:
    """Whether a plan shows it at first: see `PlanTable`."""
    is_named = any(composite.treatments.get(name) is piece.treatment for name in names_of(piece))
    return piece.layer is not None or piece.treatment is looked_up or _is_shared(piece) or is_named


def _is_shared(piece: Piece) -> bool:
    """Whether it is a product of which each factor gets a part."""
    return piece.treatment is halved or piece.treatment is in_equal_parts


def _graph_of_each_piece(made: Plan) -> dict[int, Plan]:
    graphs = {id(piece): made for piece in made.pieces}
    for piece in made.pieces:
        for body in piece.bodies:
            graphs.update(_graph_of_each_piece(body))
    return graphs


def _plan_row(made: Plan, piece: Piece) -> tuple[str, ...]:
    assert piece.treatment is not None
    form = " and ".join(form.value for form in piece.forms) or Form.RATIO.value
    nonnegative = bool(piece.live) and all(map(made.graph.is_nonnegative, piece.live))
    shape = str(tuple(made.graph.shapes[piece.outputs[0]].shape))
    rule = str(piece.rule) if piece.rule is not None else piece.treatment.summary
    return path_of(piece), piece.kind, shape, rule, form, "not negative" if nonnegative else "any sign"


def primitives() -> Table:
    """Lists every primitive of the installed JAX, and what happens to relevance there.

    Returns:
        A table with the columns primitive and what happens to relevance, in alphabetical order.

    Example:
        >>> rows = dict(primitives().rows)
        >>> rows["while"], rows["reduce_sum"]
        ('refused', 'split in proportion; a constant that is added keeps its share')
    """
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "jax"]
    found = {value.name for module in modules for value in vars(module).values() if isinstance(value, Primitive)}
    rows = tuple((name, summary_of(name)) for name in sorted(found))
    title = f"The {len(rows)} primitives of JAX {jax.__version__}"
    return Table(title, ("primitive", "what happens to relevance"), rows)


@dataclass(frozen=True)
class LedgerRow:
    """What happened to relevance in one layer or operation.

    Attributes:
        path: The path of the layer's parameters, or the line of an operation.
        kind: That of a layer ("dense", "conv", "ragged"), or the name of the function or operation.
        rule: The rule, or the treatment in words.
        arrived: The relevance of its outputs.
        passed_on: The relevance that its operands received.
        bias: What the bias kept.
        stabilizer: What else is missing in a layer: the stabiliser of the denominator absorbed it.
        constants: What constants outside of layers kept: shifts, positions, masks, values at zero, class tokens,
            paddings, constants that won a maximum; and everything that stayed inside of a scan or a cond.
        not_conserved: What is missing where an operation does not conserve relevance, such as a softmax,
            or where a layer has no contributions of the sign that its rule asks for. Then z+ passes nothing on, and
            alpha-beta subtracts nothing.
        growth: How much absolute relevance was passed on for each unit that arrived.
    """

    path: str
    kind: str
    rule: str
    arrived: float
    passed_on: float
    bias: float
    stabilizer: float
    constants: float
    not_conserved: float
    growth: float


@dataclass(frozen=True)
class Ledger:
    """Where every unit of relevance went.

    Attributes:
        explained: The explained output, summed over the samples, from which relevance starts.
        inputs: The relevance that arrived at the input.
        rows: One for each layer and each operation that relevance reached, from the output to the input.
    """

    explained: float
    inputs: float
    rows: tuple[LedgerRow, ...]

    @property
    def bias(self) -> float:
        """What all biases kept."""
        return sum(row.bias for row in self.rows)

    @property
    def stabilizer(self) -> float:
        """What all stabilisers absorbed."""
        return sum(row.stabilizer for row in self.rows)

    @property
    def constants(self) -> float:
        """What all constants outside of layers kept."""
        return sum(row.constants for row in self.rows)

    @property
    def not_conserved(self) -> float:
        """What operations and rules that do not conserve relevance did not pass on."""
        return sum(row.not_conserved for row in self.rows)

    @property
    def unaccounted(self) -> float:
        """The explained output less all of the above: zero up to rounding."""
        kept = self.bias + self.stabilizer + self.constants + self.not_conserved
        return self.explained - self.inputs - kept

    @property
    def verdict(self) -> str:
        """In words: how much arrived, and which layer lost most."""
        if not self.rows:
            return f"All of {self.explained:.6g} arrived at the input."
        worst = max(self.rows, key=lambda row: abs(row.arrived - row.passed_on))
        unconserved = " to the operation, which does not conserve relevance"
        if worst.kind in _LAYERS:
            unconserved = ", for which there are no contributions of that sign"
        causes = {
            " to the bias": worst.bias,
            " to the stabilizer": worst.stabilizer,
            " to a constant": worst.constants,
            unconserved: worst.not_conserved,
        }
        cause = max(causes, key=lambda name: abs(causes[name]))
        return (
            f"Of {self.explained:.6g}, {self.inputs:.6g} arrived at the input. The biases kept {self.bias:.6g}, the "
            f"stabilizers {self.stabilizer:.6g}, other constants {self.constants:.6g}; {self.not_conserved:.6g} was "
            f"not conserved. Most was lost in {worst.path} ({worst.kind}): {causes[cause]:.6g}{cause}."
        )

    def table(self) -> Table:
        """The rows that are layers or changed something, and the sums of all, as a table."""
        rows = [
            (row.path, row.kind, row.rule, *_numbers(*(getattr(row, name) for name in _COLUMNS)))
            for row in self.rows
            if row.kind in _LAYERS or abs(row.arrived - row.passed_on) > 1e-6 * abs(self.explained)
        ]
        sums = self.explained, self.inputs, self.bias, self.stabilizer, self.constants, self.not_conserved
        header = ("path", "kind", "rule", *(name.replace("_", " ") for name in _COLUMNS))
        return Table(self.verdict, header, (*rows, ("sum", "", "", *_numbers(*sums), "")))

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


_LAYERS = {kind.name for kind in KINDS.values()}
_COLUMNS = ("arrived", "passed_on", "bias", "stabilizer", "constants", "not_conserved", "growth")


def _numbers(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.6g}" for value in values)


def ledger(
    model: Callable[[Any], Any],
    x: Any,
    target: Target = None,
    rules: Rules | None = None,
    *,
    inference: Inference = "checked",
) -> Ledger:
    """Accounts for relevance: what every layer received, passed on, and lost, and to what.

    It answers the question why a map does not sum to the output: where did the rest go? A `lax.scan` or a `lax.cond` is
    one row.

    Args:
        model: As for `relevance`.
        x: Its input.
        target: As for `relevance`, without "all".
        rules: As for `relevance`.
        inference: As for `relevance`.

    Returns:
        The ledger. Its columns add up to the explained output, up to rounding:
        `explained = inputs + bias + stabilizer + constants + not_conserved`.

    Raises:
        InputError: If the target does not fit the output, `inference` is neither of the two, `x` is NaN or has a dtype
            without relevance, or the rules are those of a modified gradient, which has no account.
        ModelError: As for `relevance`, and if the account does not close, to 1e-4 of its largest row.
        SelectorError: If the rules do not fit the layers.
        UnsupportedOperationError: If relevance reaches an operation that has no treatment.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrp_jax import ledger, rules
        >>> weight, bias = jnp.array([[1.0], [3.0]]), jnp.array([2.0])
        >>> book = ledger(lambda x: x @ weight + bias, jnp.array([[2.0, 1.0]]), 0, rules.Zero())
        >>> book.explained, book.inputs, book.bias
        (7.0, 5.0, 2.0)
    """
    check_places(target, rules)
    composite = as_composite(rules)
    if composite.input_form is Form.RATIO:
        raise InputError(
            "There is no account of guided backpropagation or the deconvolutional network: what they propagate is a "
            "modified gradient, which adds up to nothing. Pass rules of relevance."
        )
    number = number_of_samples(x)
    call, output = trace_model(model, x, inference=inference)
    kind, values = read_target(target, output, number)
    if kind == "all":
        raise InputError("A ledger is kept for one target at a time: pass a class index instead of 'all'.")
    traced = (explaining(call, output, target) if callable(target) else call).read()
    made = make_plan(traced.graph, composite)
    found = keep_account(
        traced,
        made,
        lambda explained: seed_of(kind, values, explained),
        lambda value, maps: check(made, traced.inputs, value, maps),
    )
    report([found.results], lambda: traced)
    check_closes(found)
    return Ledger(found.explained, found.inputs, tuple(map(_ledger_row, found.entries)))


def _ledger_row(entry: Entry) -> LedgerRow:
    piece = entry.piece
    assert piece.treatment is not None
    return LedgerRow(
        path_of(piece),
        piece.kind,
        str(piece.rule) if piece.layer is not None else piece.treatment.summary,
        entry.arrived,
        entry.passed_on,
        entry.bias,
        entry.stabilizer,
        entry.constants,
        entry.not_conserved,
        entry.growth,
    )
