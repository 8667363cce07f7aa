"""What a command imports, and what it says where something is missing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff.command_line import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, guarded, run_command
from corrdiff.errors import JobError, UsageError
from corrdiff.images import save_png
from tests.support.processes import python

Draw = Callable[..., npt.NDArray[np.uint8]]

WITHOUT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "deepspeed", "mlflow", "compressai"):
            raise ImportError(f"{name} was asked for")

sys.meta_path.insert(0, Absent())
from corrdiff.cli import main
code = max(main(command) for command in json.load(sys.stdin))
sys.exit(code or bool({"ray", "deepspeed", "mlflow", "compressai"} & set(sys.modules)))
"""


def test_ray_deepspeed_mlflow_and_compressai_are_not_needed(draw: Draw, codec_dir: Path, tmp_path: Path) -> None:
    picture, file, seen, shown = (tmp_path / name for name in ("a.png", "a.crdf", "seen.png", "shown.png"))
    picture.write_bytes(save_png(draw(64, 64)))
    commands: list[list[object]] = [
        ["encode", picture, file, "--codec", codec_dir, "--steps", 2, "--reconstruction", seen],
        ["decode", file, shown, "--codec", codec_dir],
        ["inspect", file],
    ]
    done = python("-c", WITHOUT, stdin=json.dumps([[str(a) for a in command] for command in commands]))
    assert done.returncode == 0, done.stderr
    assert seen.read_bytes() == shown.read_bytes()


@pytest.mark.parametrize("code", ["import corrdiff", "from corrdiff.cli import main; main(['--version'])"])
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    done = python("-c", f"{code}\nimport sys; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_coding_a_picture_imports_nothing_that_only_training_needs(codec_dir: Path) -> None:
    program = (
        "import sys; from corrdiff import load_codec; load_codec(sys.argv[1]); "
        "print([n for n in ('compressai', 'ray', 'deepspeed', 'mlflow') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(codec_dir)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_errors_and_command_lines_are_quick_to_import() -> None:
    heavy = "{'torch', 'numpy', 'PIL'} & set(sys.modules)"
    done = python("-c", f"import sys, corrdiff.command_line, corrdiff.errors\nsys.exit(bool({heavy}))")
    assert done.returncode == 0, done.stderr


def test_without_the_training_part_it_is_said_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['compressai'] = None\n"
        "from corrdiff.codec_directory import load_networks\nfrom corrdiff.command_line import guarded\n"
        "sys.exit(guarded(lambda: print(load_networks('builtin:tiny'))))"
    )
    done = python("-c", code)
    assert done.returncode == 2
    sentence = 'this command needs compressai, which comes with the training part: pip install "corrdiff[train]"'
    assert done.stderr == f"error: {sentence}\n"


def _raise(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no such thing"), EXIT_USAGE, "error: no such thing\n"),
        (JobError("it broke"), EXIT_FAILED, "failed: it broke\n"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nMuch advice"),
            EXIT_FAILED,
            "failed: the memory is too small for this: CUDA out of memory. Tried to allocate 2 GiB.\n",
        ),
        (MemoryError(), EXIT_FAILED, "failed: the memory is too small for this\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "interrupted\n"),
        (
            ModuleNotFoundError(name="pyarrow.parquet"),
            EXIT_USAGE,
            'error: this command needs pyarrow, which comes with the cluster part: pip install "corrdiff[cluster]"\n',
        ),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert guarded(lambda: _raise(error)) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RuntimeError("a bug"), ModuleNotFoundError(name="corrdiff.missing")]
)
def test_a_bug_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        guarded(lambda: _raise(error))


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a command."""

    number: int = 1
    """How many."""


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--number", "7"], 7), (["--number", "0"], EXIT_OK)])
def test_a_command_ends_with_the_code_of_its_action(arguments: list[str], code: int) -> None:
    assert run_command(Options, "program", arguments, lambda options: options.number) == code
