"""What others build on, as lines of text: options, columns, names in MLflow and in Ray's metrics, from the code itself.

    python -m tests.support.surface > tests/surface.txt

Nothing is typed here that the code says: options are read off `--help`, columns off the schemas, and names off what the
code logs when it is run on stand-ins for the servers (logged_names.py).
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import pyarrow as pa

import cluster.preemption
import cluster.preflight
import cluster.submit
import pipelines.cli
from pipelines.dataset.format import INDEX_COLUMNS, columns
from pipelines.evaluate import job as evaluate_job
from tests.support import logged_names

PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "corrdiff": pipelines.cli.main,
    "corrdiff submit": cluster.submit.main,
    "corrdiff preflight": cluster.preflight.main,
    "python -m cluster.preemption": cluster.preemption.main,
}
WIDTH = "4000"
"""Characters of a terminal on which no description of an option is broken."""


def surface() -> str:
    """Everything, a section each."""
    found = {
        "options": [line for program, main in PROGRAMS.items() for line in options(program, main)],
        "columns of a dataset's parts": schema_lines(columns()),
        "columns of a dataset's index": schema_lines(pa.schema([columns().field(name) for name in INDEX_COLUMNS])),
        "columns of an evaluation's results": schema_lines(evaluate_job.COLUMNS),
        "columns of an evaluation's sets": schema_lines(evaluate_job.SET_COLUMNS),
        "tags in MLflow": logged_names.tags(),
        "metrics in MLflow of a training": logged_names.training_metrics(),
        "metrics in MLflow of a compression": logged_names.compression_metrics(),
        "metrics in MLflow of an evaluation": logged_names.evaluation_metrics(),
        "gauges in Ray's metrics": logged_names.gauges(),
    }
    return "\n".join(f"[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in found.items())


def sections(text: str) -> dict[str, list[str]]:
    """The lines of each section, by its title."""
    return {block.splitlines()[0].strip("[]"): block.splitlines()[1:] for block in text.split("\n\n")}


def schema_lines(schema: pa.Schema) -> list[str]:
    """Name and type of each column."""
    return [f"{field.name} {field.type}" for field in schema]


def options(program: str, main: Callable[[Sequence[str]], int], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every argument of a command and of the commands beneath it, with the type and the default that its help says."""
    boxes = dict(_boxes(_help(main, path)))
    for title, entries in boxes.items():
        if title == "subcommands":
            for entry in entries:
                if named := re.match(r"• ([\w-]+) ", entry):
                    yield from options(program, main, (*path, named[1]))
            continue
        for entry in entries:
            if entry.startswith("--") or title == "positional arguments":
                yield " ".join([program, *path, _without_description(entry)])


def _help(main: Callable[[Sequence[str]], int], path: tuple[str, ...]) -> str:
    page = io.TextIOWrapper(io.BytesIO(), "utf-8")  # boxes are drawn where the encoding has them
    with (
        mock.patch.dict("os.environ", {"COLUMNS": WIDTH, "TERM": "dumb"}),
        contextlib.redirect_stdout(page),
        contextlib.suppress(SystemExit),
    ):
        main([*path, "--help"])
    page.seek(0)
    return page.read()


def _boxes(page: str) -> Iterator[tuple[str, list[str]]]:
    """Title and entries of each box of a help page; lines that are further in belong to the entry before them."""
    for title, body in re.findall(r"╭─ ([\w ]+) ─+╮\n(.*?)╰", page, re.DOTALL):
        entries: list[str] = []
        for line in re.findall(r"^│ (.*?) *│$", body, re.MULTILINE):
            if line.startswith(" ") and not line.startswith("  • "):
                entries[-1] += f"  {line.strip()}"
            else:
                entries.append(line.strip())
        yield title, entries


def _without_description(entry: str) -> str:
    """Flags and type, then what stands in the last parentheses: the default, "required" or "repeatable"."""
    flags, _, description = entry.partition("  ")
    ending = re.search(r"\((default: .*|required|repeatable|optional)\)$", description)
    assert ending is not None, f"no default in '{entry}'"
    return f"{flags} ({ending[1]})"


if __name__ == "__main__":
    print(surface(), end="")
