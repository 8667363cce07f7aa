"""What codecs whose files are of version 2 can say: qualities between levels, no steps, the paper's correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from corrdiff import coding
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.errors import UsageError
from corrdiff.format import bitstream
from corrdiff.format.bitstream import BitstreamError
from corrdiff.inference import Networks
from corrdiff.networks.model import QualityGain
from corrdiff.picture import Picture

Draw = Callable[..., Picture]


def test_gains_at_levels_are_the_trained_ones_and_between_them_geometric_means() -> None:
    gain = QualityGain(3)
    torch.nn.init.normal_(gain.log_gain_QM)
    trained = gain.log_gain_QM.detach().exp()
    levels = torch.arange(8)
    assert torch.equal(gain(levels)[:, :, 0, 0], trained)
    assert torch.equal(gain(levels.float())[:, :, 0, 0], trained)
    halfway = gain(torch.tensor([2.5]))[0, :, 0, 0]
    assert torch.allclose(halfway, (trained[2] * trained[3]).sqrt())
    assert torch.allclose(gain(torch.tensor([6.0625]))[0, :, 0, 0], trained[6] ** (15 / 16) * trained[7] ** (1 / 16))


@pytest.mark.parametrize("quality", [0.0, 0.0625, 3.5, 6.9375, 7.0])
def test_a_quality_between_levels_is_decoded(sliced: CorrDiffCodec, draw: Draw, quality: float) -> None:
    encoded = sliced.compress_batch([draw(40, 72)], Settings(quality))[0]
    header = bitstream.unpack(encoded.data).header
    assert (header.version, header.quality, header.steps, header.planes) == (2, quality, 3, 2)
    assert np.array_equal(sliced.decompress(encoded.data), encoded.reconstruction)


def test_sixteenths_are_steps_in_bytes(sliced: CorrDiffCodec, draw: Draw) -> None:
    picture = draw(128, 192)
    sizes = [len(sliced.compress(picture, 4 + part / 16, steps=0)) for part in range(0, 17, 4)]
    assert sizes == sorted(set(sizes))


def test_a_batch_may_have_qualities_between_levels(sliced: CorrDiffCodec, draw: Draw) -> None:
    images = [draw(40, 72, seed=s) for s in range(3)]
    pending = sliced.encode_batch(images, Settings(steps=1), [6.5, 0.0, 3.1875])
    for image, p in zip(images, pending, strict=True):
        data = coding.write(p, sliced.tables)
        coding.verify(data, p, sliced.tables)
        assert data == sliced.compress(image, p.header.quality, steps=1)


def _never(*_: Any) -> None:
    raise AssertionError("the score network was run")


@pytest.mark.parametrize("tile", [0, 256])
def test_without_steps_neither_side_runs_the_score_network_and_the_picture_is_that_of_d(
    sliced: CorrDiffCodec, draw: Draw, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = draw(100, 300)
    with_steps = sliced.compress_batch([picture], Settings(6, 0.5, 1, tile))[0]
    monkeypatch.setattr(Networks, "context", _never)
    monkeypatch.setattr(Networks, "estimate", _never)
    encoded = sliced.compress_batch([picture], Settings(6, 0.5, 0, tile))[0]
    header, tiles = bitstream.unpack(encoded.data)
    assert (header.steps, header.grid, header.factor_bits, header.planes) == (0, 0, 0, 0)
    assert all(not t.factors for t in tiles)
    factor_bytes = sum(len(t.factors) + 1 for t in bitstream.unpack(with_steps.data).tiles)
    assert len(with_steps.data) - len(encoded.data) == factor_bytes + 2
    assert np.array_equal(sliced.decompress(encoded.data), encoded.reconstruction)
    assert np.array_equal(sliced.decompress(with_steps.data, "privileged"), encoded.reconstruction)
    (pending,) = sliced.encode_batch([picture], Settings(6, 0.5, 0, tile))
    assert coding.write(pending, sliced.tables) == encoded.data
    coding.verify(encoded.data, pending, sliced.tables)


def test_a_preview_of_a_file_without_steps_is_all_of_it(sliced: CorrDiffCodec, draw: Draw) -> None:
    picture, settings = draw(70, 90), Settings(5.25, steps=0)
    (preview,) = sliced.preview([picture], sliced.latents([picture], settings), settings, [5.25])
    encoded = sliced.compress_batch([picture], settings)[0]
    assert preview.bytes == len(encoded.data)
    squared = np.square(picture.astype(float) - encoded.reconstruction).mean()
    assert preview.mse == pytest.approx(squared, rel=0.01)


def test_there_is_no_uncorrected_picture_of_a_file_without_steps(sliced: CorrDiffCodec, draw: Draw) -> None:
    with pytest.raises(UsageError, match="no steps, so there is no uncorrected picture"):
        sliced.decompress(sliced.compress(draw(8, 8), steps=0), "uncorrected")


@pytest.mark.parametrize(("height", "width", "tile"), [(1, 1, 0), (17, 33, 0), (130, 300, 256)])
def test_the_paper_s_correction_is_decoded(
    paper: CorrDiffCodec, draw: Draw, height: int, width: int, tile: int
) -> None:
    encoded = paper.compress_batch([draw(height, width)], Settings(4.5, tile=tile))[0]
    header = bitstream.unpack(encoded.data).header
    assert (header.grid, header.planes) == (0, 1)
    assert {f.shape for f in encoded.factors} == {(3, 1, 1, 1)}
    assert np.array_equal(paper.decompress(encoded.data), encoded.reconstruction)


def test_the_paper_s_process_starts_from_noise_alone(
    paper: CorrDiffCodec, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []
    estimate = Networks.estimate

    def watched(self: Networks, x_t: torch.Tensor, context: list[torch.Tensor], t: float) -> torch.Tensor:
        if not times:
            assert abs(float(x_t.std()) - 1) < 0.02
        times.append(t)
        return estimate(self, x_t, context, t)

    monkeypatch.setattr(Networks, "estimate", watched)
    paper.compress(draw(64, 64), steps=2)
    assert times == [0.98, 0.49]


def test_the_paper_s_correction_takes_no_notice_of_fidelity(paper: CorrDiffCodec, draw: Draw) -> None:
    assert paper.compress(draw(64, 64), fidelity=0.0) == paper.compress(draw(64, 64), fidelity=1.0)


def test_least_squares_cannot_be_given_another_criterion(paper: CorrDiffCodec) -> None:
    with pytest.raises(UsageError, match="least squares alone"):
        CorrDiffCodec(paper.model, paper.tables, paper.fingerprint, perceptual=lambda x, y: x)


def test_a_file_of_another_version_than_the_codec_s_is_refused(
    codec: CorrDiffCodec, sliced: CorrDiffCodec, draw: Draw
) -> None:
    for one, version in ((codec, 2), (sliced, 1)):
        header, tiles = bitstream.unpack(one.compress(draw(8, 8), steps=1))
        data = bitstream.pack(bitstream.Header(**{**vars(header), "version": version}), tiles)
        with pytest.raises(BitstreamError, match=f"of version {version}, which this codec does not write"):
            one.decompress(data)


BOXES = [(0, 0, 577, 300), (100, 40, 64, 64), (250, 200, 30, 99), (576, 299, 1, 1), (0, 250, 577, 20)]


@pytest.mark.parametrize("decoding", ["corrected", "privileged"])
@pytest.mark.parametrize("tile", [0, 256])
def test_a_box_is_what_the_whole_picture_has_there(sliced: CorrDiffCodec, draw: Draw, tile: int, decoding: Any) -> None:
    data = sliced.compress_batch([draw(300, 577)], Settings(6, 0.5, 2, tile))[0].data
    whole = sliced.decompress(data, decoding)
    for x, y, width, height in BOXES:
        part = sliced.decompress(data, decoding, box=(x, y, width, height))
        assert np.array_equal(part, whole[y : y + height, x : x + width])


def test_of_a_tiled_picture_no_other_tiles_are_decoded_for_a_box(sliced: CorrDiffCodec, draw: Draw) -> None:
    data = sliced.compress_batch([draw(300, 577)], Settings(steps=1, tile=256))[0].data
    told: list[tuple[int, int]] = []
    sliced.decompress_batch([data], on_tile=lambda *n: told.append(n), box=(300, 10, 100, 100))
    assert told == [(1, 1)]


@pytest.mark.parametrize("box", [(0, 0, 73, 40), (0, 0, 72, 41), (72, 0, 1, 1), (5, 5, 0, 1), (-1, 0, 4, 4)])
def test_a_box_that_is_no_part_of_the_picture_is_refused(
    sliced: CorrDiffCodec, draw: Draw, box: tuple[int, int, int, int]
) -> None:
    data = sliced.compress(draw(40, 72), steps=1)
    with pytest.raises(UsageError, match=f"box {','.join(map(str, box))} is no part of a picture of 72x40"):
        sliced.decompress(data, box=box)


def test_the_map_is_what_the_last_factors_leave_to_the_score_network(codec: CorrDiffCodec, draw: Draw) -> None:
    (pending,) = codec.encode_batch([draw(64, 300)], Settings(steps=2, tile=256))
    factors = [np.full_like(f, 15) for f in pending.factors]
    factors[0][0] = 0  # not the last step
    factors[1][-1] = [[[12]], [[6]]]  # 0.8 of the coarse part is D's, 1.25 * 0.4 - 0.25 of the fine part
    share = coding.made_up(bitstream.unpack(coding.write(pending._replace(factors=factors), codec.tables)))
    assert share.shape == (64, 300)
    assert np.unique(share[:, :256]).tolist() == [0]
    assert np.unique(share[:, 256:]).tolist() == [round(0.75 * 255)]


def test_the_map_of_a_picture_without_steps_is_black(sliced: CorrDiffCodec, draw: Draw) -> None:
    assert not coding.made_up(bitstream.unpack(sliced.compress(draw(20, 30), steps=0))).any()
