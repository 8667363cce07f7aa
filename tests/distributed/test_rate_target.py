"""A target for a whole dataset: met, with less than one quality for all takes, and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from corrdiff.codec_directory import save_codec
from corrdiff.networks.model import CorrDiffModel
from pipelines.cli import main
from pipelines.files import storage
from tests.support.codecs import first_codec
from tests.support.drawn import SIZES, make_picture
from tests.support.results import read_files


@pytest.fixture(scope="module")
def trained_codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A codec whose E and D have learned so much that pictures get better with each quality."""
    torch.manual_seed(0)
    model = CorrDiffModel(first_codec())
    with torch.no_grad():
        model.gain.log_gain_QM.sub_(2.5)
    x_NCHW = torch.stack([torch.from_numpy(make_picture(64, 64, seed=s)) for s in range(32)]).permute(0, 3, 1, 2)
    optimizer = torch.optim.Adam([*model.analysis.parameters(), *model.decoder.parameters()], lr=7e-4)
    for _ in range(150):
        x_BCHW = x_NCHW[torch.randint(len(x_NCHW), (4,))].float() / 127.5 - 1
        y_BMhw, g_BM11 = model.latent(x_BCHW, torch.randint(8, (4,)))
        y_BMhw = y_BMhw + torch.rand_like(y_BMhw) - 0.5
        loss = (model.decoder(y_BMhw / g_BM11) - x_BCHW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    directory = str(tmp_path_factory.mktemp("trained"))
    save_codec(model, model.entropy.freeze(), directory, {"made_by": "the tests"})
    return directory


@pytest.fixture(scope="module")
def seventy_two(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("pictures")
    for i in range(72):
        Image.fromarray(make_picture(*SIZES[i % 4], seed=100 + i)).save(root / f"{i:02d}.png")
    return str(root)


@pytest.mark.slow
def test_a_target_is_met_by_a_quality_for_each_picture_and_kept_when_the_job_goes_on(
    ray_cluster: None, seventy_two: str, trained_codec: str, tmp_path: Path, tracking: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = f"{tmp_path}/out"
    command = ["compress", seventy_two, out, "--codec", trained_codec, "--steps", "1", "--unit", "9"]
    assert main([*command, "--target-psnr", "18.5"]) == 0
    summary = storage.read_json(f"{out}/summary.json")
    assert summary["percentiles"]["psnr_db"]["mean"] == pytest.approx(18.5, rel=0.02)
    assert len(summary["qualities"]) > 2
    before, rate = read_files(out), storage.read_bytes(f"{out}/rate.json")
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "_units" / "00003.json").unlink()
    capsys.readouterr()
    assert main([*command, "--target-psnr", "18.5"]) == 0
    assert "sampled" not in capsys.readouterr().out
    assert (read_files(out), storage.read_bytes(f"{out}/rate.json")) == (before, rate)
    assert main([*command, "--target-psnr", "18.6"]) == 2
    assert "target_psnr: 18.5 there, 18.6 now" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", ["0", "1"])
def test_a_target_is_met_with_more_psnr_or_fewer_bits_than_at_one_quality(
    ray_cluster: None, seventy_two: str, trained_codec: str, fidelity: str, tmp_path: Path, tracking: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = ["--codec", trained_codec, "--steps", "1", "--unit", "9", "--fidelity", fidelity]

    def means(name: str, *choice: str) -> tuple[float, float]:
        assert main(["compress", seventy_two, f"{tmp_path}/{name}", *options, *choice]) == 0
        summary = storage.read_json(f"{tmp_path}/{name}/summary.json")
        return summary["bpp"], summary["percentiles"]["psnr_db"]["mean"]

    bpp, psnr_db = means("constant", "--quality", "4")
    found_bpp, found_psnr_db = means("bpp", "--target-bpp", str(bpp))
    assert found_bpp == pytest.approx(bpp, rel=0.02)
    assert found_psnr_db > psnr_db
    found_bpp, found_psnr_db = means("psnr", "--target-psnr", str(psnr_db))
    assert found_psnr_db == pytest.approx(psnr_db, rel=0.02)
    assert found_bpp < bpp
    capsys.readouterr()
    assert main(["compress", seventy_two, f"{tmp_path}/no", *options, "--target-psnr", "55"]) == 2
    assert "--target-psnr 55.0 is out of reach" in capsys.readouterr().err
