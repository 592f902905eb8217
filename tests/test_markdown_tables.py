"""Tables of results in Markdown pages: only what is between the markers of a table is replaced."""

from pathlib import Path

from factory.evaluation.markdown import write_table


def test_only_the_text_between_the_markers_of_a_table_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- evaluation -->\nold \\1\n<!-- evaluation -->\nafter\n")
    write_table(page, "new \\1\n", "evaluation")
    write_table(page, "newer \\2\n", "evaluation")
    assert page.read_text() == "before\n<!-- evaluation -->\nnewer \\2\n<!-- evaluation -->\nafter\n"


def test_table_is_replaced_whatever_the_name_of_the_class_file(tmp_path: Path) -> None:
    """The marker of Protocol II contains the value of --classes."""
    for name in ("protocol-2-c++.txt", "protocol-2-classes (1).txt"):
        for text in ("old\n", "new\n"):
            write_table(tmp_path / "page.md", text, name)
        assert (tmp_path / "page.md").read_text().endswith(f"<!-- {name} -->\nnew\n<!-- {name} -->\n")
    assert "old" not in (tmp_path / "page.md").read_text()


def test_nothing_but_a_table_is_replaced_whatever_the_number_of_markers(tmp_path: Path) -> None:
    """A single marker was kept with the table at the end; the next table then replaced all text between them."""
    page, table = tmp_path / "page.md", "<!-- x -->\nnew\n<!-- x -->"
    for old, new in (
        ("a\n<!-- x -->\nb\n", f"a\n{table}\nb\n"),
        ("a\n<!-- x -->\nold\n<!-- x -->\nb <!-- x -->\n", f"a\n{table}\nb <!-- x -->\n"),
    ):
        page.write_text(old)
        for _ in range(2):
            write_table(page, "new\n", "x")
            assert page.read_text() == new
