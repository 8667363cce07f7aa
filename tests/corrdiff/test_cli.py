"""`python -m corrdiff` as people run it: encoder and decoder are processes that share nothing but files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff import coding
from corrdiff.cli import main
from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import load_networks, save_codec
from corrdiff.format import bitstream
from corrdiff.images import open_image, save_png
from tests.support.processes import python

Draw = Callable[..., npt.NDArray[np.uint8]]

SIZES = [(1, 1), (1, 7), (17, 33), (64, 64), (255, 257), (512, 768)]
"""Height and width."""

RUN_ALL = "import json, sys; from corrdiff.cli import main; sys.exit(max(main(c) for c in json.load(sys.stdin)))"
"""One process that runs several command lines, to import torch but once."""


def _corrdiff(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("-m", "corrdiff", *map(str, arguments))


def _all_in_one_process(commands: Sequence[Sequence[object]]) -> str:
    done = python("-c", RUN_ALL, stdin=json.dumps([[str(a) for a in command] for command in commands]))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pictures(draw: Draw, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    directory = tmp_path_factory.mktemp("pictures")
    paths = {size: directory / f"{size[1]}x{size[0]}.png" for size in SIZES}
    for (height, width), path in paths.items():
        path.write_bytes(save_png(draw(height, width)))
    return paths


@pytest.fixture(scope="module")
def coded(
    pictures: dict[tuple[int, int], Path], codec_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Where one process wrote SIZE.crdf and SIZE.seen.png, and another SIZE.shown.png; and what the first printed."""
    out = tmp_path_factory.mktemp("coded")
    encode: list[list[object]] = []
    decode: list[list[object]] = []
    for path in pictures.values():
        file, seen, shown = (out / f"{path.stem}.{kind}" for kind in ("crdf", "seen.png", "shown.png"))
        encode.append(["encode", path, file, "--codec", codec_dir, "--steps", 2, "--reconstruction", seen])
        decode.append(["decode", file, shown, "--codec", codec_dir])
    said = _all_in_one_process(encode)
    _all_in_one_process(decode)
    return out, said


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_another_process_writes_the_png_that_the_encoder_foresaw(
    coded: tuple[Path, str], height: int, width: int
) -> None:
    seen, shown = ((coded[0] / f"{width}x{height}.{which}.png").read_bytes() for which in ("seen", "shown"))
    assert open_image(shown).pixels.shape == (height, width, 3)
    assert seen == shown


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_encode_prints_the_rate_of_the_file(coded: tuple[Path, str], height: int, width: int) -> None:
    out, said = coded
    size = (out / f"{width}x{height}.crdf").stat().st_size
    assert f": {width}x{height}, {size:,} bytes, {8 * size / (height * width):.4f} bpp\n" in said


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_inspect_says_what_is_in_the_file(
    coded: tuple[Path, str], codec: CorrDiffCodec, capsys: pytest.CaptureFixture[str], height: int, width: int
) -> None:
    path = coded[0] / f"{width}x{height}.crdf"
    assert main(["inspect", str(path)]) == 0
    said = json.loads(capsys.readouterr().out)
    size = path.stat().st_size
    assert said["bpp"] == 8 * size / (height * width)
    assert said["bytes"] == size
    assert (said["width"], said["height"], said["quality"], said["steps"]) == (width, height, 4, 2)
    assert said["fingerprint"] == codec.fingerprint.hex()
    streams = said["factor_bytes"] + said["z_bytes"] + said["y_bytes"]
    assert size - bitstream.FIXED_BYTES_MAX - 12 <= streams < size


def test_the_command_line_encodes_decodes_and_inspects(
    pictures: dict[tuple[int, int], Path], codec_dir: Path, tmp_path: Path
) -> None:
    file, seen, shown = tmp_path / "a.crdf", tmp_path / "seen.png", tmp_path / "shown.png"
    encode = ["encode", pictures[17, 33], file, "--codec", codec_dir, "--quality", 6, "--fidelity", 0.25, "--steps", 3]
    encoded = _corrdiff(*encode, "--reconstruction", seen)
    decoded = _corrdiff("decode", file, shown, "--codec", codec_dir)
    inspected = _corrdiff("inspect", file)
    assert (encoded.returncode, encoded.stderr) == (0, "")
    assert (decoded.returncode, decoded.stderr) == (0, "")
    assert decoded.stdout == f"{shown}: 33x17\n"
    assert seen.read_bytes() == shown.read_bytes()
    assert json.loads(inspected.stdout)["quality"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.crdf", "seen.png", "shown.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "whole.crdf"),
        ("decode", "cut.crdf", "out.png", "--codec", "missing"),
        ("encode", "cut.png", "out.crdf", "--codec", "missing"),
    ],
)
def test_what_needs_no_network_does_not_import_torch(
    room: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(room)
    code = "import sys; from corrdiff.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = python("-c", code, *arguments)
    assert done.returncode == 0, done.stderr


def test_help_names_the_commands() -> None:
    done = _corrdiff("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("encode", "decode", "inspect"))


def test_what_was_done_to_a_picture_is_printed(
    codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    (tmp_path / "a.png").write_bytes(save_png(rgba))
    assert main(["encode", str(tmp_path / "a.png"), str(tmp_path / "a.crdf"), "--codec", str(codec_dir)]) == 0
    assert "8x8 (alpha flattened), " in capsys.readouterr().out


@pytest.mark.parametrize("decoding", ["uncorrected", "privileged"])
def test_the_other_decodings_can_be_asked_for(
    coded: tuple[Path, str], codec: CorrDiffCodec, codec_dir: Path, tmp_path: Path, decoding: str
) -> None:
    file, out = coded[0] / "33x17.crdf", tmp_path / "out.png"
    command = ["decode", str(file), str(out), "--codec", str(codec_dir), "--decoding", decoding, "--precision", "fp32"]
    assert main(command) == 0
    expected = codec.decompress(file.read_bytes(), decoding)  # type: ignore[arg-type]
    assert np.array_equal(open_image(out.read_bytes()).pixels, expected)


def test_a_box_and_a_quick_look_and_a_map(
    coded: tuple[Path, str], codec: CorrDiffCodec, codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, share = coded[0] / "33x17.crdf", tmp_path / "out.png", tmp_path / "map.png"
    decode = ["decode", str(file), str(out), "--codec", str(codec_dir), "--precision", "fp32", "--overwrite"]
    whole, privileged = (codec.decompress(file.read_bytes(), decoding) for decoding in ("corrected", "privileged"))  # type: ignore[arg-type]
    assert main([*decode, "--box", "3,4,20,5"]) == 0
    assert np.array_equal(open_image(out.read_bytes()).pixels, whole[4:9, 3:23])
    assert capsys.readouterr().out == f"{out}: 20x5\n"
    assert main([*decode, "--thumbnail"]) == 0
    assert np.array_equal(open_image(out.read_bytes()).pixels, privileged)
    assert main([*decode, "--thumbnail", "--box", "3,4,20,5"]) == 0
    assert np.array_equal(open_image(out.read_bytes()).pixels, privileged[4:9, 3:23])
    capsys.readouterr()
    assert main(["inspect", str(file), "--map", str(share)]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    expected = coding.made_up(bitstream.unpack(file.read_bytes()))
    assert np.array_equal(open_image(share.read_bytes()).pixels[:, :, 0], expected)


def test_a_codec_of_version_2_is_told_sixteenths_and_no_steps(
    pictures: dict[tuple[int, int], Path], sliced_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.crdf"
    encode = ["encode", str(pictures[17, 33]), str(file), "--codec", str(sliced_dir)]
    assert main([*encode, "--quality", "3.1875", "--steps", "0"]) == 0
    assert main(["decode", str(file), str(tmp_path / "a.png"), "--codec", str(sliced_dir)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(file)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["version"], said["quality"], said["steps"], said["factor_bytes"]) == (2, 3.1875, 0, 0)


@pytest.fixture(scope="module")
def other_codec_dir(codec_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec whose weights differ in one number."""
    model, tables, _ = load_networks(str(codec_dir))
    next(model.parameters()).data.view(-1)[0] += 1
    directory = tmp_path_factory.mktemp("other") / "codec"
    save_codec(model, tables, str(directory))
    return directory


@pytest.fixture
def room(coded: tuple[Path, str], pictures: dict[tuple[int, int], Path], tmp_path: Path) -> Path:
    """A directory with a picture, a compressed picture, a truncated one, a text and a sub-directory."""
    data = (coded[0] / "33x17.crdf").read_bytes()
    (tmp_path / "picture.png").write_bytes(pictures[17, 33].read_bytes())
    (tmp_path / "whole.crdf").write_bytes(data)
    (tmp_path / "cut.crdf").write_bytes(data[:-9])
    (tmp_path / "text.txt").write_text("no picture and no codec\n")
    (tmp_path / "cut.png").write_bytes(pictures[17, 33].read_bytes()[:300])
    (tmp_path / "directory").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("encode missing.png out --codec CODEC", r"cannot read missing\.png: No such file"),
        ("encode directory out --codec CODEC", r"cannot read directory: Is a directory"),
        ("encode text.txt out --codec CODEC", r"not a picture in JPEG, PNG"),
        ("encode cut.png out --codec CODEC", r"the picture is (broken|truncated)"),
        ("encode picture.png out --codec missing", r"no codec at missing: there is no config\.json"),
        ("encode picture.png out --codec directory", r"no codec at directory: there is no config\.json"),
        ("encode picture.png out --codec text.txt", r"no codec at text\.txt: there is no config\.json"),
        ("encode picture.png out --codec CODEC --quality 9", r"quality must be from 0 to 7 in steps of 1/16, not 9"),
        ("encode picture.png out --codec CODEC --fidelity 2", r"fidelity must be from 0 to 1, not 2\.0"),
        ("encode picture.png out --codec CODEC --quality 4.5", r"quality must be a whole number for this codec"),
        ("encode picture.png out --codec CODEC --steps 0", r"steps must be at least 1 for this codec"),
        ("encode picture.png out --codec CODEC --steps 65", r"steps must be from 0 to 64, not 65"),
        ("encode picture.png out --codec CODEC --tile 100", r"tile must be 0 or a multiple of 64"),
        ("encode picture.png out --codec CODEC --max-pixels 560", r"33x17 is more than the limit of 560 pixels"),
        ("encode picture.png out --codec CODEC --lpips-weights no.pth --criterion lpips", r"there is no file no\.pth"),
        ("encode picture.png out --codec CODEC --device meta", r"--device meta computes nothing"),
        ("encode picture.png out --codec CODEC --device nonsense", r"--device nonsense cannot be used here"),
        ("encode picture.png nowhere/out --codec CODEC", r"cannot write nowhere/out: No such file"),
        ("encode picture.png directory --codec CODEC", r"cannot write directory: Is a directory"),
        ("encode picture.png . --codec CODEC", r"cannot write \.: "),
        ("decode missing.crdf out --codec CODEC", r"cannot read missing\.crdf: No such file"),
        ("decode cut.crdf out --codec CODEC", r"damaged or truncated"),
        ("decode text.txt out --codec CODEC", r"not a corrdiff picture"),
        ("decode picture.png out --codec CODEC", r"not a corrdiff picture"),
        ("decode whole.crdf out --codec missing", r"no codec at missing"),
        ("decode whole.crdf out --codec OTHER", r"written by codec [0-9a-f]{16}, but the codec given is [0-9a-f]{16}"),
        ("decode whole.crdf out --codec CODEC --device nonsense", r"--device nonsense cannot be used here"),
        ("decode whole.crdf out --codec CODEC --max-pixels 560", r"33x17 is more than the limit of 560 pixels"),
        ("decode whole.crdf out --codec CODEC --box 1,2,3", r"--box must be X,Y,WIDTH,HEIGHT in pixels.*, not 1,2,3"),
        ("decode whole.crdf out --codec CODEC --box 0,0,34,1", r"box 0,0,34,1 is no part of a picture of 33x17"),
        ("decode whole.crdf out --codec CODEC --thumbnail --decoding uncorrected", r"--thumbnail and --decoding .*one"),
        ("inspect whole.crdf --map nowhere/map.png", r"cannot write nowhere/map\.png: No such file"),
        ("inspect missing.crdf", r"cannot read missing\.crdf: No such file"),
        ("inspect cut.crdf", r"damaged or truncated"),
        ("inspect text.txt", r"not a corrdiff picture"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    room: Path,
    codec_dir: Path,
    other_codec_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    said: str,
) -> None:
    monkeypatch.chdir(room)
    before = sorted(path.name for path in room.rglob("*"))
    places = {"CODEC": str(codec_dir), "OTHER": str(other_codec_dir)}
    assert main([places.get(argument, argument) for argument in arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: [^\n]*{said}[^\n]*\n", err)
    assert sorted(path.name for path in room.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("decode", "cut.crdf", "out.png", "--codec", "missing"),
        ("inspect", "missing.crdf"),
        ("encode", "cut.png", "out.crdf", "--codec", "missing"),
        ("encode", "picture.png", "out.crdf", "--codec", "missing", "--quality", "nine"),
    ],
)
def test_a_mistake_ends_the_process_with_code_2_and_no_traceback(
    room: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(room)
    done = _corrdiff(*arguments)
    assert done.returncode == 2
    assert done.stderr != ""
    assert "Traceback" not in done.stderr + done.stdout


def test_a_file_that_cannot_be_replaced_is_left_whole(
    room: Path, codec_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (room / "whole.crdf").read_bytes()

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert (
        main(["encode", str(room / "picture.png"), str(room / "whole.crdf"), "--codec", str(codec_dir), "--overwrite"])
        == 2
    )
    assert "No space left on device" in capsys.readouterr().err
    assert (room / "whole.crdf").read_bytes() == before
    assert not list(room.glob("*.tmp")) + list(room.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("encode picture.png whole.crdf", "whole.crdf exists: name another file to write, or say --overwrite"),
        ("encode picture.png picture.png", "picture.png is what is read"),
        ("encode picture.png picture.png --overwrite", "picture.png is what is read"),
        ("encode picture.png link.crdf --overwrite", "link.crdf is what is read"),
        ("encode picture.png new.crdf --reconstruction picture.png --overwrite", "picture.png is what is read"),
        ("encode picture.png new.crdf --reconstruction new.crdf", "new.crdf is named twice"),
        ("encode other.png", "other.crdf exists"),
        ("decode whole.crdf other.png", "other.png exists"),
        ("decode whole.crdf whole.crdf --overwrite", "whole.crdf is what is read"),
        ("decode other.crdf", "other.png exists"),
    ],
)
def test_what_was_there_is_left_alone(
    room: Path, codec_dir: Path, tmp_path: Path, arguments: str, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tmp_path = tmp_path / "there"
    tmp_path.mkdir()
    for name in ("picture.png", "whole.crdf"):
        (tmp_path / name).write_bytes((room / name).read_bytes())
    (tmp_path / "link.crdf").hardlink_to(tmp_path / "picture.png")
    (tmp_path / "other.png").write_bytes((room / "picture.png").read_bytes())
    (tmp_path / "other.crdf").write_bytes((room / "whole.crdf").read_bytes())
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([*arguments.split(), "--codec", str(codec_dir)]) == 2
    assert said in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_may_be_written_over_is(room: Path, codec_dir: Path, tmp_path: Path) -> None:
    tmp_path = tmp_path / "there"
    tmp_path.mkdir()
    name = "写" * 83 + ".crdf"
    (tmp_path / name).write_bytes(b"somebody's")
    encode = ["encode", str(room / "picture.png"), str(tmp_path / name), "--codec", str(codec_dir), "--steps", "1"]
    assert main([*encode, "--overwrite"]) == 0
    assert bitstream.unpack((tmp_path / name).read_bytes()).header.steps == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
