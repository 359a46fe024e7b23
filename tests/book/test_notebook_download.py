"""The notebook of a page says what the page says, in plain Markdown, and computes the numbers of its text again."""

import base64
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from docutils import nodes
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import read_myst_markdown_notebook
from notebook_download import NUMBERS, executed_notebook, first_cell, published_notebook, text_cell, without_glue
from page_markdown import ELSEWHERE, Cell, Heading, Page, Text, blocks, publications_of
from pybtex.database import Entry, Person
from sphinx_proof.nodes import proof_node, theorem_node
from test_book import FRONT_MATTER

BACH = Entry("article", fields={"year": "2015", "doi": "10.1/bach"}, persons={})
BACH.persons["author"] = [Person("Bach, Sebastian"), Person("Binder, Alexander"), Person("van der Berg, Ada")]
TWO = Entry("book", fields={"year": "2014"}, persons={"author": [Person("Zeiler, M. D."), Person("Fergus, Rob")]})
SOURCE = Path("/book/one.md")


@pytest.fixture
def page(tmp_path):
    return Page(
        source=SOURCE,
        images=tmp_path,
        numbers={"figure": {"fig-one": (1, 2)}, "displaymath": {"eq-one": (3,)}, "theorem": {"thm-one": (1, 1)}},
        publications=publications_of({"references.html#1": "b", "references.html#2": "t"}, {"b": BACH, "t": TWO}),
    )


def markdown(page, *children):
    """The text of blocks."""
    document = nodes.section("", *children)
    return [block.text for block in blocks(document, page) if isinstance(block, Text)]


def paragraph(*children):
    return nodes.paragraph("", "", *(nodes.Text(child) if isinstance(child, str) else child for child in children))


def cited(*parts):
    return nodes.inline("", "", *parts, classes=["bibtex-citation"])


def to(link, text="label"):
    return nodes.reference("", text, refuri=link, reftitle="Names. Title. 2015. doi:10.1/bach.")


LITERAL = nodes.literal("", "f(`x`)")
TITLE = nodes.inline("", "The page", classes=["std", "std-doc"])


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        (nodes.emphasis("", "a"), "*a*"),
        (nodes.strong("", "a"), "**a**"),
        (nodes.literal("", "a_b"), "`a_b`"),
        (LITERAL, "`` f(`x`) ``"),
        (nodes.math("", "a_{i}\n+ b"), "$a_{i} + b$"),
        (nodes.Text("2 * 3 < 4, a_b, _c"), r"2 \* 3 \< 4, a_b, \_c"),
        (to("https://x.example/y", "there"), "[there](https://x.example/y)"),
        (nodes.reference("", "Fig. 1.2", refid="fig-one"), "Fig. 1.2"),
        (nodes.reference("", "", TITLE, refuri="other.html"), "*The page*"),
        (nodes.inline("", "what it means", classes=["definition"]), ""),
        (cited(nodes.Text("["), to("references.html#1"), nodes.Text("]")), "([Bach et al., 2015](https://doi.org/10.1/bach))"),
        (cited(nodes.Text("Bach ["), to("references.html#1"), nodes.Text("]")), "Bach ([2015](https://doi.org/10.1/bach))"),
        (cited(nodes.Text("["), to("references.html#2"), nodes.Text("]")), "(Zeiler and Fergus, 2014)"),
    ],
)  # fmt: skip
def test_text_of_a_paragraph(page, child, expected):
    assert markdown(page, paragraph("so ", child, " it is")) == [f"so {expected} it is"]


def test_what_is_cited_is_listed(page):
    markdown(page, paragraph(cited(nodes.Text("["), to("references.html#1"), nodes.Text("]"))))
    assert list(page.cited.values()) == ["Names. Title. 2015. [doi:10.1/bach](https://doi.org/10.1/bach)."]


def test_links_into_the_book_lead_to_where_it_is_published(page):
    page.address = "https://x.example/book/one.html"
    link = nodes.reference("", "", TITLE.deepcopy(), refuri="other.html#there")
    assert markdown(page, paragraph(link)) == ["[The page](https://x.example/book/other.html#there)"]


def test_no_line_of_a_paragraph_becomes_an_item_of_a_list(page):
    assert markdown(page, paragraph("from\n3. to\n- 4")) == ["from\n3\\. to\n\\- 4"]


def test_equation_has_its_number_and_one_line(page):
    with_number = nodes.math_block("", "\na &= b \\\\\nc &= d", ids=["eq-one"])
    assert markdown(page, with_number) == [r"$$\begin{split} a &= b \\ c &= d \end{split} \tag{3}$$"]
    assert markdown(page, nodes.math_block("", "a = b")) == ["$$a = b$$"]


def test_items_of_a_list_hold_their_blocks(page):
    items = [
        nodes.list_item("", paragraph("one\nline")),
        nodes.list_item("", paragraph("two"), nodes.math_block("", "x")),
    ]
    assert markdown(page, nodes.bullet_list("", *items)) == ["- one\n  line", "- two", "  $$x$$"]
    items = [item.deepcopy() for item in items]
    assert markdown(page, nodes.enumerated_list("", *items))[:2] == ["1. one\n   line", "2. two"]


def test_table(page):
    def row(*texts, classes=()):
        return nodes.row("", *(nodes.entry("", paragraph(text), classes=list(classes)) for text in texts))

    head, body = nodes.thead("", row("a", "b", classes=["text-right"])), nodes.tbody("", row("1|2", "3"))
    assert markdown(page, nodes.table("", nodes.tgroup("", head, body))) == [
        "| a | b |\n| ---: | ---: |\n| 1\\|2 | 3 |"
    ]


def test_theorem_and_proof_are_quotations(page):
    theorem = theorem_node("", nodes.title("", " (Name)"), paragraph("It holds."), ids=["thm-one"], realtype="theorem")
    proof = proof_node("", nodes.admonition("", paragraph("Proof. Look.")))
    assert markdown(page, theorem, proof) == ["> **Theorem 1.1 (Name)**", "> It holds.", "> *Proof.* Look."]


def test_note_has_a_title(page):
    assert markdown(page, nodes.note("", paragraph("Mind."))) == ["> **Note**", "> Mind."]


def test_what_runs_in_a_browser_alone_is_named(page):
    (text,) = markdown(page, nodes.raw("", "<form></form>", format="html"))
    assert "in the book only" in text


def test_figures_of_a_cell_are_captions_and_others_are_attached(page):
    def figure():
        image = nodes.image(uri="../_images/a.png", alt="A picture", candidates={"*": "images/a.png"})
        return nodes.figure("", image, nodes.caption("", "What it shows."), ids=["fig-one"])

    output = nodes.container("", figure(), nb_element="cell_code_output")
    cell = nodes.container("", output, nb_element="cell_code", cell_index=7)
    assert list(blocks(cell, page)) == [Cell(7), Text("**Fig. 1.2.** What it shows.", 0)]
    picture, caption = blocks(nodes.section("", figure()), page)
    assert picture == Text("![A picture](attachment:a.png)", 0, {"a.png": page.images / "images" / "a.png"})
    assert caption.text == "**Fig. 1.2.** What it shows."


def test_figure_with_a_version_for_dark_pages_is_shown_once(page):
    def image(name, shown):
        return nodes.image(uri=name, alt="A picture", candidates={"*": f"images/{name}"}, classes=[shown])

    for parent in (nodes.figure(), nodes.paragraph()):
        parent.extend([image("a.svg", "only-light"), image("a.dark.svg", "only-dark")])
        (picture,) = blocks(nodes.section("", parent), page)
        assert picture == Text("![A picture](attachment:a.svg)", 0, {"a.svg": page.images / "images" / "a.svg"})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import b\nfrom myst_nb import glue\nimport c\nx = 1", "import b\nimport c\n\nin_text = {}  #"),
        ('glue("a b", f(x), display=False)\ny', 'in_text["a b"] = f(x)\ny'),
        ('for n in m:\n    glue(f"a {n}", 1)', 'for n in m:\n    in_text[f"a {n}"] = 1'),
        ('glue(\n    "a",\n    x\n    + y,\n    display=False,\n)', 'in_text["a"] = (x\n    + y)'),
        ("%matplotlib inline", "%matplotlib inline"),
        ("%matplotlib inline\n\nfrom myst_nb import glue", "%matplotlib inline\n\n\nin_text = {}  #"),
    ],
)
def test_numbers_are_noted_in_a_dictionary(source, expected):
    assert without_glue(source).startswith(expected)
    assert "glue" not in without_glue(source)


CHAPTER = """\
# One

```{code-cell} python
:tags: [remove-cell]

%matplotlib inline
```

```{code-cell} python
from myst_nb import glue
x = 2
glue("half", x / 3, display=False)
```

It is {glue:text}`half:.2f`, and again {glue:text}`half:.2f`. Later it is {glue:text}`whole`.

## Two

```{code-cell} python
:tags: [remove-cell]

glue("whole", "two", display=False)
```

```{code-cell} python
:tags: [remove-cell]

assert x == 2
```

Done.
"""


@pytest.fixture
def notebook():
    """The chapter as myst-nb reads it, with what Jupyter would put out."""
    notebook = read_myst_markdown_notebook(FRONT_MATTER + CHAPTER, add_source_map=True)

    def glued(name, text):
        data = {"application/papermill.record/text/plain": text}
        return nbformat.v4.new_output("display_data", data, metadata={"scrapbook": {"name": name}})

    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    warning = nbformat.v4.new_output("stream", name="stderr", text="a font is missing\n")
    codes[1].outputs = [glued("half", "np.float64(0.6666)"), nbformat.v4.new_output("stream", text="seen\n"), warning]
    codes[2].outputs = [glued("whole", "'two'")]
    return notebook


def section(title, line, *children):
    heading = nodes.title("", title)
    heading.line, heading.source = line, str(SOURCE)
    return nodes.section("", heading, *children)


@pytest.fixture
def published(notebook, page, tmp_path):
    page.source = tmp_path / "one.md"
    page.source.write_text(FRONT_MATTER + CHAPTER)
    lines = (FRONT_MATTER + CHAPTER).splitlines()
    texts = paragraph("It is 0.67, and again 0.67. Later it is two."), paragraph("Done.")
    in_browser = [nodes.raw("", text, format="html") for text in ("<form></form>", "<script></script>")]
    codes = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    cell = nodes.container("", nb_element="cell_code", cell_index=codes[1])
    doctree = section(
        "One",
        lines.index("# One") + 1,
        cell,
        texts[0],
        section("Two", lines.index("## Two") + 1, texts[1], *in_browser),
    )
    for node, text in [(texts[0], "It is {glue"), (texts[1], "Done.")]:
        node.line = next(number for number, line in enumerate(lines, 1) if line.startswith(text))
    for node in doctree.findall(nodes.Element):
        node.source = str(page.source)
    result = published_notebook(notebook, doctree, page)
    nbformat.validate(result)
    return result


def test_notebook_has_the_text_of_the_page_and_its_cells_in_order(published):
    assert [cell.source.split("\n")[0] for cell in published.cells[1:]] == [
        "# One",
        "%matplotlib inline",
        "in_text = {}  # the numbers in the text, as this run computes them",
        "It is 0.67, and again 0.67. Later it is two.",
        "# The numbers of this section, as this run computed them.",
        "## Two",
        "Done.",
        'in_text["whole"] = "two"',
    ]


def test_what_is_in_several_parts_on_the_page_is_named_once(published):
    assert "\n".join(cell.source for cell in published.cells).count(ELSEWHERE) == 1


def test_numbers_of_the_text_are_printed_below_their_section_once_they_are_known(published, capsys):
    shown = [cell for cell in published.cells if "numbers" in cell.metadata.get("tags", [])]
    assert [cell.outputs[0].text for cell in shown] == ["half  0.67\n", "whole  two\n"]
    names = {}
    for cell in published.cells:
        if (cell.cell_type == "code" and not cell.source.startswith(("%", "#", "import"))) or cell in shown:
            exec(cell.source, names)
    assert capsys.readouterr().out == "half  0.67\nwhole  two\n"


def test_cells_that_the_page_hides_are_folded_and_those_that_only_check_are_left_out(published):
    sources = [cell.source for cell in published.cells]
    assert "assert x == 2" not in "\n".join(sources)
    (magic,) = [cell for cell in published.cells if cell.source == "%matplotlib inline"]
    assert magic.metadata.jupyter.source_hidden
    assert [output.text for cell in published.cells[3:4] for output in cell.outputs] == ["seen\n"]


def test_notebook_carries_the_outputs_that_the_cache_holds(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# One"), nbformat.v4.new_code_cell("1")])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    notebook.cells[1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=1)]
    cache = get_cache(tmp_path / "cache")
    cache.cache_notebook_bundle(CacheBundleIn(notebook, "one.md"), check_validity=False)
    found = executed_notebook(tmp_path / "one.ipynb", str(tmp_path / "cache"))
    assert found.cells[1].outputs[0].data["text/plain"] == "1"


@pytest.mark.parametrize(("more", "has_style"), [("import lrp_jax", False), ("import lrp_book.models", True)])
def test_notebook_that_needs_the_library_alone_leaves_out_the_style_of_the_book(tmp_path, more, has_style):
    style = "from lrp_book import figures\n\nfigures.use()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (style, more)])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    get_cache(tmp_path / "cache")
    found = executed_notebook(tmp_path / "one.ipynb", str(tmp_path / "cache"))
    assert (found.cells[0].source == style) is has_style


def first(code):
    return first_cell(SimpleNamespace(cells=[nbformat.v4.new_code_cell(code)])).source


def test_notebook_installs_what_it_needs_from_where_it_is_published(monkeypatch):
    monkeypatch.setenv("LRP_JAX_URL", "https://git.example/someone/book")
    book = first("from lrp_book import datasets")
    assert "git clone --quiet --depth 1 https://git.example/someone/book " in book
    assert book.index("import lrp_book") < book.index("except ImportError") < book.index("%pip install")
    assert book.index("%pip install") < book.index('os.path.join(repository, "book")')
    library = first("from lrp_jax import relevance")
    assert '"lrp-jax[large] @ git+https://git.example/someone/book"' in library
    assert "lrp_book" not in library


def test_notebook_of_an_unpublished_book_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("LRP_JAX_URL", raising=False)
    assert "make lab" in first("import lrp_book")
    assert "pip install" in first("import lrp_jax")
    assert "lrp_book" not in first("import lrp_jax")


def test_picture_of_a_page_is_carried_by_the_notebook(page):
    (page.images / "a.png").write_bytes(b"picture")
    cell = text_cell([Heading("# One", 1), Text("![A](attachment:a.png)", 2, {"a.png": page.images / "a.png"})], 1)
    assert base64.b64decode(cell.attachments["a.png"]["image/png"]) == b"picture"


def test_numbers_that_are_noted_together_are_kept_in_the_dictionary():
    first = "import numpy as np\n\nfrom lrp_book.noted import note\n"
    assert without_glue(first).splitlines() == [
        "import numpy as np",
        "",
        "from lrp_book.noted import numbers_of",
        "",
        NUMBERS,
    ]
    assert without_glue("if x:\n    note({'x': x})") == "if x:\n    in_text.update(numbers_of({'x': x}))"
