"""Tables, facts and progress bars: widths, colours, terminals."""

import io

import pytest

from tensorkeep.cli.progress import progress_bars
from tensorkeep.cli.tables import Facts, Table, print_blocks, printable
from tensorkeep.store.reports import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_are_not_cut_where_no_terminal_reads_them() -> None:
    stream = io.StringIO()
    print_blocks([Table(("NAME", ">SIZE"), [("x" * 500, "1 B")]), Facts([("label", "y" * 500)])], stream)
    assert "x" * 500 + "   1 B" in stream.getvalue()
    assert "label  " + "y" * 500 in stream.getvalue()


def test_columns_set_the_width_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    print_blocks([Table(("NAME", ">SIZE"), [("x" * 100, "1 B")])], stream)
    assert max(len(line) for line in stream.getvalue().splitlines()) <= 40
    assert stream.getvalue().count("x") == 100


def test_no_color_leaves_colours_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    print_blocks([Table(("NAME",), [("x",)])], stream)
    assert "\x1b[3" not in stream.getvalue()


def test_square_brackets_in_names_are_not_markup() -> None:
    stream = io.StringIO()
    print_blocks([Table(("N",), [("[red]w[/red]",)]), Facts([("a", "[b]")]), "[bold]x :smile:"], stream)
    assert stream.getvalue().split("\n")[1] == "[red]w[/red]"
    assert "a  [b]" in stream.getvalue()
    assert "[bold]x :smile:" in stream.getvalue()


def test_an_empty_table_says_so() -> None:
    stream = io.StringIO()
    print_blocks([Table(("NAME",), [], empty="no models")], stream)
    assert stream.getvalue() == "no models\n"


def test_facts_without_a_value_are_left_out_and_values_are_aligned() -> None:
    stream = io.StringIO()
    print_blocks([Facts([("a", "1"), ("long label", "2"), ("none", None)])], stream)
    assert stream.getvalue() == "a           1\nlong label  2\n"


@pytest.mark.parametrize(
    ("text", "shown"), [("plain é", "plain é"), ("\x1b[0m", "\\x1b[0m"), ("a\nb", "a\\nb"), ("\udcff", "\\udcff")]
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_ends_are_kept_where_asked() -> None:
    assert printable("a\nb\x07", lines=True) == "a\nb\\x07"


def test_progress_is_drawn_on_a_terminal_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with progress_bars(terminal) as callback:
        assert callback is not None
        callback(Progress("read [b]", 0, 0))
        callback(Progress("read [b]", 5, 10))
        callback(Progress("write", 10, 10))
    drawn = terminal.getvalue()
    assert "read [b]" in drawn
    assert "write" in drawn


def test_progress_is_not_drawn_where_no_terminal_is() -> None:
    stream = io.StringIO()
    with progress_bars(stream) as callback:
        assert callback is None
    assert stream.getvalue() == ""
