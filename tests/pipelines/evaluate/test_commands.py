"""Programs that a person named: what they do well is measured, what they do badly is said, and nothing is left."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import skimage.data

from corrdiff.errors import UsageError
from corrdiff.picture import Picture
from pipelines.evaluate import anchors, commands, confined

Program = Callable[..., str]

COPY_IN = "import sys, shutil; shutil.copyfile(sys.argv[1], sys.argv[2])"
ENCODE, DECODE = "{in} {out}", "{out} {png}"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """program(source, name="bad") -> the path of a Python program."""

    def write(source: str, name: str = "bad") -> str:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable} -I\n{source}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def picture(draw: Callable[..., Picture]) -> Picture:
    return draw(40, 56)


@pytest.fixture
def copy(program: Program) -> str:
    """A codec that copies: lossless, of the size of a PNG."""
    return program(COPY_IN, "copy")


def _code(text: str, picture: Picture, limit_s: float = 60, point: str = "10") -> commands.Coded:
    return commands.code(commands.parse(text), picture, point, limit_s)


def _refused(text: str, picture: Picture, limit_s: float = 60) -> str:
    """The sentence that a picture costs."""
    with pytest.raises(OSError) as caught:
        _code(text, picture, limit_s)
    said = str(caught.value)
    assert "\n" not in said and not said.startswith("[Errno")
    return said


def _running(mark: str) -> list[psutil.Process]:
    every = [p for p in psutil.process_iter(["cmdline", "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE]
    return [process for process in every if any(mark in word for word in process.info["cmdline"] or [])]


def test_what_a_program_writes_is_counted_and_what_it_decodes_is_shown(copy: str, picture: Picture) -> None:
    found = _code(f"{copy} {ENCODE}; {copy} {DECODE}", picture, point="7.5")
    np.testing.assert_array_equal(found.picture, picture)
    assert found.bytes > 40 * 56 and found.quality == 7.5
    assert found.encode_s is not None and found.encode_s > 0 and found.decode_s is not None and found.decode_s > 0
    assert found.encode_peak_bytes is not None and 1 << 20 < found.encode_peak_bytes < psutil.virtual_memory().total


@pytest.mark.skipif(
    not (shutil.which("cjpeg") and shutil.which("djpeg")),
    reason="cjpeg and djpeg are not installed (Debian: apt install libjpeg-turbo-progs)",
)
def test_cjpeg_and_djpeg_give_the_curve_of_the_jpeg_anchor() -> None:
    photograph = np.ascontiguousarray(skimage.data.astronaut()[:256, :384])
    text = (
        "cjpeg -quality {q} -baseline -optimize -progressive -sample 2x2 -outfile {out} {in.bmp}; "
        "djpeg -bmp -outfile {bmp} {out}"
    )
    for quality in anchors.ANCHORS["jpeg"].qualities:
        file = anchors.encode("jpeg", photograph, quality)
        found = _code(text, photograph, point=f"{quality:g}")
        assert found.bytes == len(file)
        np.testing.assert_array_equal(found.picture, anchors.decode("jpeg", file))


def test_words_are_those_of_a_shell_and_there_is_no_shell(program: Program, copy: str, picture: Picture) -> None:
    said = program("import sys; sys.exit(repr(sys.argv[1:]))", "says")
    words = """'a ; b' $HOME "*" {in} --quality={q} {out} > x"""
    assert _refused(f"{said} {words}; {copy} {DECODE}", picture).endswith(
        "['a ; b', '$HOME', '*', 'in.png', '--quality=10', 'out', '>', 'x']"
    )


def test_a_program_that_fails_is_said_with_what_it_printed(program: Program, copy: str, picture: Picture) -> None:
    bad = program("import sys; print('much'); print('no such quality \\x1b[31m'); sys.exit(3)")
    said = _refused(f"{bad} {ENCODE}; {copy} {DECODE}", picture)
    assert said == "bad failed with exit code 3: no such quality  [31m"
    crash = program("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert _refused(f"{crash} {ENCODE}; {copy} {DECODE}", picture) == "bad was ended by SIGSEGV"


def test_a_program_that_is_not_there(copy: str, picture: Picture) -> None:
    said = _refused(f"no-such-codec {ENCODE}; {copy} {DECODE}", picture)
    assert said == "no-such-codec cannot be run: No such file or directory"


def test_a_program_that_hangs_is_ended(program: Program, copy: str, picture: Picture) -> None:
    bad = program("import time; time.sleep(1000)", "hangs-for-a-test")
    started = time.monotonic()
    said = _refused(f"{copy} {ENCODE}; {bad} {DECODE}", picture, limit_s=8)
    assert said == "hangs-for-a-test took longer than 8 s and was ended"
    assert time.monotonic() - started < 500
    assert _running("hangs-for-a-test") == []


def test_a_program_that_floods_its_output_is_ended(program: Program, copy: str, picture: Picture) -> None:
    bad = program("while True: print('x' * 1000)", "floods-for-a-test")
    said = _refused(f"{bad} {ENCODE}; {copy} {DECODE}", picture)
    assert said == "floods-for-a-test printed more than 1 MiB and was ended"
    assert _running("floods-for-a-test") == []


def test_a_program_that_floods_its_file_is_ended(
    program: Program, copy: str, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "MOST_FILE_BYTES", 1 << 20)
    source = "import sys, time; time.sleep(0.5); file = open(sys.argv[2], 'wb')\nwhile True: file.write(bytes(1 << 16))"
    assert "bad " in _refused(f"{program(source)} {ENCODE}; {copy} {DECODE}", picture)


@pytest.mark.skipif(not confined.may_forbid(), reason="this kernel has no Landlock (Linux 5.13)")
@pytest.mark.parametrize(
    "harm",
    ["open({target!r}, 'w').write('harm')", "os.remove({there!r})", "os.rename({there!r}, {target!r})",
     "os.truncate({there!r}, 0)", "os.mkdir({target!r})", "subprocess.check_call(['touch', {target!r}])"],
)  # fmt: skip
def test_a_program_that_writes_outside_its_directory_is_refused(
    program: Program, copy: str, picture: Picture, tmp_path: Path, harm: str
) -> None:
    there, target = tmp_path / "there", tmp_path / "target"
    there.write_text("whole")
    bad = program("import os, subprocess\n" + harm.format(target=str(target), there=str(there)))
    assert _refused(f"{bad} {ENCODE}; {copy} {DECODE}", picture).startswith("bad failed with exit code 1: ")
    assert there.read_text() == "whole" and not target.exists()
    target.write_text("we may still")


def test_what_a_program_leaves_running_is_ended_and_not_waited_for(
    program: Program, copy: str, picture: Picture
) -> None:
    child = program("import time; time.sleep(1000)", "stays-for-a-test")
    source = (
        "import os, sys, shutil\nif not os.fork():\n    os.setsid()\n"
        f"    if not os.fork(): os.execv({child!r}, ['stays'])\n    os._exit(0)\nos.wait()\n"
        "shutil.copyfile(sys.argv[1], sys.argv[2])"
    )
    found = _code(f"{program(source)} {ENCODE}; {copy} {DECODE}", picture)
    np.testing.assert_array_equal(found.picture, picture)
    assert _running("stays-for-a-test") == []


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        ("pass", "bad left no file {png}"),
        ("os.symlink('/etc/hostname', sys.argv[2])", "bad left no file {png}"),
        ("open(sys.argv[2], 'wb').write(b'no picture')", "bad left a picture that cannot be opened: not a picture"),
        ("open(sys.argv[2], 'wb').write(open(sys.argv[1], 'rb').read()[:900])", "bad left a picture that cannot be"),
        ("Image.new('RGB', (55, 40)).save(sys.argv[2])", "bad left a picture of 55x40, the original is 56x40"),
        ("Image.new('RGB', (5000, 4000)).save(sys.argv[2])", "bad left a picture that cannot be opened: 5000x4000"),
    ],
)  # fmt: skip
def test_a_picture_that_is_not_the_original_again(
    program: Program, copy: str, picture: Picture, decoder: str, said: str
) -> None:
    imports = f"import os, sys; sys.path[:] = {sys.path!r}\nfrom PIL import Image\n"
    bad = program(imports + decoder)
    assert _refused(f"{copy} {ENCODE}; {bad} {DECODE}", picture).startswith(said)


def test_an_encoder_that_writes_nothing_costs_the_picture(program: Program, copy: str, picture: Picture) -> None:
    assert _refused(f"{program('pass')} {ENCODE}; {copy} {DECODE}", picture) == "bad left no file {out}"


def test_nothing_is_left_in_the_directory_for_scratch(
    copy: str, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    _code(f"{copy} {ENCODE}; {copy} {DECODE}", picture)
    assert os.listdir(scratch) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cjpeg {in} {out}", "must be an encoder and a decoder with a ; between them"),
        ("a {in} {out}; b {out} {png}; c", "must be an encoder and a decoder with a ; between them"),
        ("a '{in} {out}; b {out} {png}", r"cannot be read \(No closing quotation\)"),
        ("a {in} {out} {quality}; b {out} {png}", r"\{quality\} is not known; there are"),
        ("a {in.xyz} {out}; b {out} {png}", r"\{in.xyz\} is not known"),
        ("a {in}; b {out} {png}", r"the encoder is not told of \{out\}"),
        ("a {out}; b {out} {png}", r"the encoder is not told of \{in\}"),
        ("a {in} {out}; b {png}", r"the decoder is not told of \{out\}"),
        ("a {in} {out}; b {out}", r"the decoder is not told of \{png\}"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_run_is_refused_before_it_is(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        commands.parse(text)
