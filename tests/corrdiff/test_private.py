"""What is used of other packages that they do not promise to keep. An upgrade of one of them has to pass this."""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.entropy_models.entropy_models import pmf_to_quantized_cdf
from PIL import Image

from corrdiff.codec_directory import WEIGHTS_FILE, read_config
from corrdiff.images import FORMATS
from corrdiff.networks.entropy_model import EntropyModel

GOLDEN = Path(__file__).parents[1] / "golden" / "codec"


def test_the_likelihood_of_compressais_prior_is_a_distribution_over_the_whole_numbers() -> None:
    torch.manual_seed(0)
    support = torch.arange(-400.0, 401.0).expand(3, 1, -1)
    likelihood = EntropyBottleneck(3)._likelihood(support)[0].detach()
    assert likelihood.shape == (3, 1, 801)
    assert float(likelihood.min()) >= 0
    assert torch.allclose(likelihood.sum(-1), torch.ones(3, 1), atol=1e-4)


@pytest.mark.parametrize(("value", "scale", "mean"), [(0.0, 1.0, 0.0), (3.0, 2.5, 1.25), (-2.0, 0.5, -1.5)])
def test_the_likelihood_of_compressais_gaussian_is_its_integral_around_a_value(
    value: float, scale: float, mean: float
) -> None:
    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((x - mean) / (scale * math.sqrt(2))))

    found = GaussianConditional(None)._likelihood(*(torch.tensor([v]) for v in (value, scale, mean)))
    assert float(found) == pytest.approx(below(value + 0.5) - below(value - 0.5), abs=1e-6)


def test_the_parameters_of_compressais_prior_are_named_as_in_every_fingerprint() -> None:
    config = read_config(str(GOLDEN))[0]
    stored = safetensors.torch.load((GOLDEN / WEIGHTS_FILE).read_bytes())
    found = {f"entropy.{name}": p.shape for name, p in EntropyModel(config.transform).named_parameters()}
    assert found == {name: tensor.shape for name, tensor in stored.items() if name.startswith("entropy.")}
    assert sum(name.startswith("entropy.prior.") for name in found) == 15


def test_compressais_frequencies_are_a_table_of_16_bits() -> None:
    cdf = pmf_to_quantized_cdf(torch.tensor([0.7, 0.2, 1e-9, 0.1 - 1e-9]))
    assert cdf.dtype == torch.int32
    assert (int(cdf[0]), int(cdf[-1])) == (0, 1 << 16)
    assert int(cdf.diff().min()) >= 1
    assert cdf.diff().tolist() == pytest.approx([0.7 * 65536, 0.2 * 65536, 1, 0.1 * 65536], abs=4)


@pytest.mark.parametrize("name", FORMATS)
def test_pillow_has_a_decoder_for_each_format_that_knows_its_files(name: str) -> None:
    Image.init()
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(buffer, name)
    factory, accept = Image.OPEN[name]
    assert accept is not None
    assert accept(buffer.getvalue()[:16]) is True
    assert not accept(b"no picture at all")
    assert factory(io.BytesIO(buffer.getvalue()), "").size == (5, 3)


def test_pillows_wheels_have_libtiff_where_it_is_silenced() -> None:
    pillow = importlib.util.find_spec("PIL")
    assert pillow is not None
    assert pillow.origin is not None
    assert list((Path(pillow.origin).parents[1] / "pillow.libs").glob("libtiff*"))
