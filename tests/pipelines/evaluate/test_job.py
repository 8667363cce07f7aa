"""What an evaluation is made of, before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corrdiff.errors import UsageError
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.job import evaluate
from pipelines.evaluate.systems import codec_names, systems_of

ONE = EvaluateConfig(anchors=("jpeg",))


@pytest.mark.parametrize(
    ("codecs", "names"),
    [
        (("s3://bucket/runs/a/phase2/codec",), ("a/phase2",)),
        (("s3://bucket/runs/a/phase2/codec", "s3://bucket/runs/b/phase2/codec"), ("a/phase2", "b/phase2")),
        (("s3://bucket/a", "s3://bucket/b"), ("a", "b")),
        (("s3://bucket/a", "s3://bucket/a"), ("a",)),
        (("s3://bucket/a", "s3://other/a"), ("bucket/a", "other/a")),
        (("s3://bucket/a", "s3://bucket/a/codec"), ("s3://bucket/a", "s3://bucket/a/codec")),
        (("s3://bucket/jpeg",), ("bucket/jpeg",)),
        (("builtin:tiny",), ("builtin:tiny",)),
    ],
)
def test_systems_have_short_names_that_differ(codecs: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert codec_names(codecs, ONE) == dict(zip(dict.fromkeys(codecs), names, strict=True))


def test_two_systems_of_one_title_are_refused() -> None:
    config = EvaluateConfig(anchors=("jpeg",), command=("JPEG=a {in} {out}; b {out} {png}",), points=("1",))
    with pytest.raises(UsageError, match="the name JPEG is given to two systems"):
        systems_of((), config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (EvaluateConfig(qualities=(1, 4.5), anchors=()), "quality must be a whole number for this codec"),
        (EvaluateConfig(steps=(0, 2), anchors=()), "steps must be at least 1 for this codec"),
    ],
)
def test_what_a_codec_s_files_cannot_say_is_refused_before_anything_is_measured(
    codec_dir: Path, tmp_path: Path, config: EvaluateConfig, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        next(evaluate("s3://bucket/pictures", str(tmp_path / "report"), (str(codec_dir),), config))
    assert not (tmp_path / "report").exists()


def test_a_directory_of_another_evaluation_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    there = {"identity": {"images": "s3://bucket/others", "codecs": {}}}
    (out / "evaluation.json").write_text(json.dumps(there))
    with pytest.raises(UsageError, match=r"holds another evaluation \(.*images: 's3://bucket/others' there"):
        next(evaluate("s3://bucket/pictures", str(out), (), ONE))
    assert [file.name for file in out.iterdir()] == ["evaluation.json"]
