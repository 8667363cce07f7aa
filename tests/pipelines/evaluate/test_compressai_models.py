"""CompressAI's models through the files that it would download, here with small weights of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compressai.zoo.image import model_architectures, model_urls

from corrdiff.errors import UsageError
from corrdiff.picture import Picture
from pipelines.evaluate import compressai_models
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.systems import System, systems_of
from tests.support.trap import Trap

MODELS = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-anchor")


def _file(model: str, quality: int) -> str:
    return str(model_urls[model]["mse"][quality].rpartition("/")[2])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a few channels of each model, at two qualities."""
    root = tmp_path_factory.mktemp("weights")
    for model in MODELS:
        for quality in (1, 3):
            torch.manual_seed(quality)
            sizes = (16,) if model.startswith("cheng") else (8, 12)
            torch.save(model_architectures[model](*sizes).state_dict(), root / _file(model, quality))
    return root


@pytest.mark.parametrize("model", MODELS)
def test_the_strings_are_counted_and_the_picture_comes_from_them(
    model: str, weights: Path, draw: Callable[..., Picture]
) -> None:
    config = EvaluateConfig(anchors=(), compressai=(model,), weights=str(weights), reference=model)
    assert systems_of((), config) == [System(model, "compressai", model, ("1", "3"))]
    picture = draw(72, 90)
    found = compressai_models.code(model, picture, "3", str(weights))
    assert found.picture.shape == picture.shape and found.picture.dtype == np.uint8 and found.quality == 3

    network = compressai_models.load(model, 3, str(weights))
    padded = np.pad(picture, ((0, 56), (0, 38), (0, 0)), mode="edge")
    x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        coded = network.compress(x)  # type: ignore[operator]
        shown = network.decompress(coded["strings"], coded["shape"])["x_hat"]  # type: ignore[operator]
    assert found.bytes == sum(len(each[0]) for each in coded["strings"]) > 0
    expected = (shown[0, :, :72, :90].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found.picture, expected)


def test_a_model_without_weights_is_refused_with_the_file_that_is_missing(tmp_path: Path) -> None:
    said = rf"--compressai mbt2018-mean: the file {_file('mbt2018-mean', 1)} is not in {tmp_path}"
    with pytest.raises(UsageError, match=said):
        compressai_models.points("mbt2018-mean", str(tmp_path))
    with pytest.raises(UsageError, match=r"--compressai best is not known; there are bmshj2018-factorized,"):
        compressai_models.points("best", None)


@pytest.mark.parametrize("content", ["text", "another network", "a pickle"])
def test_a_file_that_is_not_the_model_is_refused_and_not_executed(tmp_path: Path, content: str) -> None:
    path, sprung = tmp_path / _file("mbt2018-mean", 1), tmp_path / "sprung"
    if content == "text":
        path.write_text("hello")
    else:
        torch.save(Trap(sprung) if content == "a pickle" else {"a": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="does not hold the weights of mbt2018-mean at quality 1"):
        compressai_models.load("mbt2018-mean", 1, str(tmp_path))
    assert not sprung.exists()
