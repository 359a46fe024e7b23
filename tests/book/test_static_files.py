"""What a page loads from the book's own files belongs to what it is written from."""

from sphinx.application import Sphinx
from static_files import digest


def test_digest_changes_with_content_name_and_number_of_files(tmp_path):
    style = tmp_path / "styles" / "book.css"
    style.parent.mkdir()
    style.write_text("p {}")
    seen = [digest([tmp_path])]
    style.write_text("a {}")
    seen.append(digest([tmp_path]))
    style = style.rename(style.with_name("other.css"))
    seen.append(digest([tmp_path]))
    (tmp_path / "book.js").write_text("")
    seen.append(digest([tmp_path]))
    assert len(set(seen)) == 4
    assert digest([tmp_path]) == seen[-1]


def test_page_is_written_again_with_a_style_sheet_that_has_changed(tmp_path):
    (tmp_path / "styles").mkdir()
    style = tmp_path / "styles" / "book.css"
    (tmp_path / "index.rst").write_text("Title\n=====\n")
    settings = {
        "extensions": ["static_files"],
        "root_doc": "index",
        "html_static_path": ["styles"],
        "html_css_files": ["book.css"],
        "html_theme": "basic",
    }
    for text in ("p {}", "a {}"):
        style.write_text(text)
        build = Sphinx(
            tmp_path, None, tmp_path / "html", tmp_path / "doctrees", "html", confoverrides=settings, status=None
        )
        build.build()
        assert (tmp_path / "html" / "_static" / "book.css").read_text() == text
