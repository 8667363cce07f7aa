"""Any encoder and decoder on the command line, as a system to stand beside ours.

    NAME=cjpeg -quality {q} -outfile {out} {in.bmp}; djpeg -bmp -outfile {bmp} {out}

Two programs with a `;` between them, in a scratch directory. `{q}` is the point, as it was typed; `{in}` the picture as
a PNG, `{in.ppm}` as a PPM, and so on; `{out}` or `{out.EXT}` the file that counts; `{png}` (or `{bmp}`, `{tif}`, ...)
where the decoder leaves the picture. Neither sees a shell.
"""

from __future__ import annotations

import io
import re
import shlex
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS, ImageError, open_image
from corrdiff.picture import Picture
from pipelines.evaluate import confined
from pipelines.evaluate.coded import Coded

_INPUTS = {"png": "PNG", "ppm": "PPM", "bmp": "BMP", "tif": "TIFF"}
_DECODED = tuple(extension.lstrip(".") for extension in EXTENSIONS)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class Command(NamedTuple):
    """What a person typed, in words with placeholders."""

    encode: tuple[str, ...]
    decode: tuple[str, ...]


def parse(text: str) -> Command:
    """Take a command line apart. Raises `UsageError` where it is not as it has to be."""
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";")
        lexer.whitespace_split, lexer.commenters = True, ""
        words = list(lexer)
    except ValueError as error:
        raise UsageError(f"--command '{text}' cannot be read ({error})") from None
    parts: list[list[str]] = [[]]
    for word in words:
        if word == ";":
            parts.append([])
        else:
            parts[-1].append(word)
    if len(parts) != 2 or not all(parts):
        raise UsageError(f"--command '{text}' must be an encoder and a decoder with a ; between them")
    command = Command(tuple(parts[0]), tuple(parts[1]))
    encode, decode = (_named(part) for part in command)
    for name in sorted(encode | decode):
        kind, _, extension = name.partition(".")
        if not (name == "q" or (kind == "in" and extension in ("", *_INPUTS)) or kind == "out" or name in _DECODED):
            raise UsageError(f"--command '{text}': {{{name}}} is not known; there are {{q}}, {{in}}, {{out}}, {{png}}")
    for needed, names, where in (("in", encode, "encoder"), ("out", encode, "encoder"), ("out", decode, "decoder")):
        if not any(name.partition(".")[0] == needed for name in names):
            raise UsageError(f"--command '{text}': the {where} is not told of {{{needed}}}")
    if not decode & set(_DECODED):
        raise UsageError(f"--command '{text}': the decoder is not told of {{png}}, where to leave the picture")
    return command


def _named(words: tuple[str, ...]) -> set[str]:
    return {name for word in words for name in _PLACEHOLDER.findall(word)}


def code(command: Command, picture: Picture, point: str, limit_s: float) -> Coded:
    """Send a picture through both programs, each for at most `limit_s`.

    Raises:
        OSError: a sentence on what one of them did, or did not do.
    """
    height, width = picture.shape[:2]
    with tempfile.TemporaryDirectory(prefix="corrdiff-") as scratch:
        directory = Path(scratch)
        for name in _named(command.encode):
            if name.partition(".")[0] == "in":
                _write_input(directory / _file(name), picture)
        encoded = confined.run(_filled(command.encode, point), directory, limit_s)
        file = _left(directory, command.encode, "out")
        size = file.stat().st_size
        decoded = confined.run(_filled(command.decode, point), directory, limit_s)
        shown = _left(directory, command.decode, "decoded")
        try:
            found = open_image(shown.read_bytes(), height * width).pixels
        except ImageError as error:
            raise OSError(f"{Path(command.decode[0]).name} left a picture that cannot be opened: {error}") from None
    if found.shape != picture.shape:
        sizes = f"{found.shape[1]}x{found.shape[0]}, the original is {width}x{height}"
        raise OSError(f"{Path(command.decode[0]).name} left a picture of {sizes}")
    return Coded(
        found, size, float(point), encode_s=encoded.seconds, decode_s=decoded.seconds,
        encode_peak_bytes=encoded.peak_bytes, decode_peak_bytes=decoded.peak_bytes,
    )  # fmt: skip


def _file(name: str) -> str:
    """The name in the scratch directory of what a placeholder stands for."""
    kind, _, extension = name.partition(".")
    if kind in _DECODED:
        return f"decoded.{kind}"
    return f"{kind}.{extension or 'png'}" if kind == "in" else f"{kind}.{extension}".rstrip(".")


def _filled(words: tuple[str, ...], point: str) -> list[str]:
    return [_PLACEHOLDER.sub(lambda match: point if match[1] == "q" else _file(match[1]), word) for word in words]


def _write_input(path: Path, picture: Picture) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, _INPUTS[path.suffix.lstrip(".")])
    path.write_bytes(buffer.getvalue())


def _left(directory: Path, words: tuple[str, ...], stem: str) -> Path:
    """The file that a program was to leave: itself, and no link to elsewhere."""
    for name in sorted(_named(words)):
        path = directory / _file(name)
        if path.stem == stem:
            try:
                kind = path.lstat().st_mode
            except FileNotFoundError:
                break
            if stat.S_ISREG(kind):
                return path
    raise OSError(f"{Path(words[0]).name} left no file {{{'out' if stem == 'out' else 'png'}}}")
