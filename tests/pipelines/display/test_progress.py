"""What a person sees of a long command, and what comes of it."""

from __future__ import annotations

import io
from collections.abc import Generator

import pytest
from rich.console import Console
from rich.table import Table

from pipelines.display import progress
from pipelines.display.progress import WORST_REASONS, Progress, print_first, show


def steps(count: int, result: str) -> Generator[Progress, None, str]:
    for done in range(count):
        yield Progress(done, count - 1, "pictures", f"note {done}" if done else "")
    return result


def test_what_is_shown_ends_with_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("cut", steps(3, "the manifest")) == "the manifest"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cut: 0 of 2 pictures"
    assert lines[-1].startswith("cut: 2 of 2 pictures") and lines[-1].endswith(", note 2")


def test_a_command_that_has_nothing_to_show_has_a_result_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("cut", steps(0, "nothing to do")) == "nothing to do"
    assert capsys.readouterr().out == ""


def test_a_result_may_be_nothing() -> None:
    def only_work() -> Generator[Progress, None, None]:
        yield Progress(1, 1, "pictures")

    assert [show("cut", only_work())] == [None]


@pytest.mark.parametrize("before", [0, 2])
def test_what_goes_wrong_passes_through(before: int) -> None:
    def breaks() -> Generator[Progress, None, None]:
        for done in range(before):
            yield Progress(done, 9, "pictures")
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"):
        show("cut", breaks())


def test_a_command_is_finished_and_no_step_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []
    monkeypatch.setattr(progress.Display, "update", lambda _, done, note="": seen.append((done, note)))
    show("cut", steps(4, ""))
    assert seen == [(0, ""), (1, "note 1"), (2, "note 2"), (3, "note 3")]


def test_of_a_long_list_the_first_lines_are_printed_and_where_all_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_first([f"picture {i}" for i in range(WORST_REASONS + 3)], "all.csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"  picture {i}" for i in range(WORST_REASONS)), "  ... and 3 more, all in all.csv"]
    print_first(["the only one"], "all.csv")
    assert capsys.readouterr().out == "  the only one\n"


ODD = "a [/b] [final] :smile: [bold]x"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    progress.console.print(f"{ODD}: 3 pictures")
    print_first([ODD], "all.csv")

    def odd() -> Generator[Progress, None, None]:
        yield Progress(1, 1, "pictures", ODD)

    show(ODD, odd())
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{ODD}: 3 pictures", f"  {ODD}", f"{ODD}: 1 of 1 pictures, {ODD}"]
    with progress.console.capture() as drawn:
        table = Table(title=ODD)
        table.add_column(ODD)
        table.add_row(ODD)
        progress.console.print(table)
    assert drawn.get().count(ODD) == 3


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, markup=False, emoji=False)
    monkeypatch.setattr(progress, "console", terminal)
    with progress.display(ODD, 2, "pictures") as shown:
        shown.update(1, ODD)
    assert terminal.file.getvalue().count(ODD) >= 2  # type: ignore[attr-defined]
