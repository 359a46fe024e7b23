"""Source code without what a program does not do: docstrings, comments and layout."""

import ast
import textwrap


def code_of(source: str) -> str:
    r"""Returns the code of a module, a class or a function, without docstrings and comments.

    Two sources with the same code do the same, so that what was computed with one holds for the other.

    Args:
        source: The source, which may be indented.

    Returns:
        The code in a layout of its own; the source as it is if it is no code that stands alone, such as a lambda's.

    Example:
        >>> print(code_of("def one():  # the number\n    '''Returns 1.'''\n    return (1)"))
        def one():
            return 1
    """
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return source
    return ast.unparse(_WithoutStrings().visit(tree))


class _WithoutStrings(ast.NodeTransformer):
    """Removes strings that stand alone, which are the docstrings of modules, classes, functions and attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:  # as the class demands
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_string else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]  # of those nodes that have one
        return node
