from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from corrdiff.codec import Settings
from corrdiff.config import PRESETS, CodecConfig, DenoiserConfig, DiffusionConfig, TransformConfig, preset, tiny
from corrdiff.errors import UsageError
from tests.support.codecs import first_codec
from tests.support.edits import set_at


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert CodecConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_carries_its_name(name: str) -> None:
    assert preset(name).preset == name


def test_an_unknown_preset_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"unknown preset 'huge'.*tiny, small, base"):
        preset("huge")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().preset = "other"  # type: ignore[misc]


def test_reading_a_configuration_does_not_import_torch() -> None:
    code = "import sys, corrdiff.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TransformConfig(patch=3), "patch must be 1, 2, 4 or 8, not 3"),
        (lambda: TransformConfig(patch=2), "needs channels for 4 resolutions, not 3"),
        (lambda: TransformConfig(channels=(64, 0, 128)), "channels must be positive"),
        (lambda: DenoiserConfig(patch=16), "patch must be 1, 2, 4 or 8, not 16"),
        (lambda: DenoiserConfig(channels=(64, 96)), "needs channels for 3 resolutions, not 2"),
        (lambda: DenoiserConfig(context_channels=(48,)), "context_channels must name as many resolutions"),
        (lambda: DiffusionConfig(steps=0), "steps must be from 1 to 64, not 0"),
        (lambda: DiffusionConfig(steps=65), "steps must be from 1 to 64, not 65"),
        (lambda: DiffusionConfig(grid=100), "grid must be 0 or a multiple of 16"),
        (lambda: DiffusionConfig(grid=1 << 15), "grid must be 0 or a multiple of 16 up to 4080"),
        (lambda: DiffusionConfig(factor_bits=7), "factor_bits must be from 1 to 6, not 7"),
        (lambda: DiffusionConfig(start=0.0), "start must be over 0 and at most 0.98, not 0.0"),
        (lambda: DiffusionConfig(start=0.99), "start must be over 0 and at most 0.98, not 0.99"),
        (lambda: DiffusionConfig(planes=3), "planes must be from 1 to 2, not 3"),
        (lambda: DiffusionConfig(criterion="taste"), "criterion must be 'texture' or 'squared error', not 'taste'"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(build: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_at("surprise", to=1), r"section 'codec' has unknown fields \['surprise'\]"),
        (set_at("transform", "surprise", to=1), r"section 'transform' has unknown fields \['surprise'\]"),
        (lambda data: data["denoiser"].pop("patch"), r"section 'denoiser' .*lacks \['patch'\]"),
        (lambda data: data.pop("preset"), r"section 'codec' .*lacks \['preset'\]"),
        (lambda data: data.pop("diffusion"), "section 'diffusion' is missing"),
        (set_at("transform", to=[1, 2]), "section 'transform' is missing or is not an object"),
        (set_at("transform", "blocks", to="two"), "transform.blocks must be a whole number"),
        (set_at("transform", "blocks", to=True), "transform.blocks must be a whole number"),
        (set_at("transform", "blocks", to=-1), "transform.blocks must be a whole number"),
        (set_at("denoiser", "time_channels", to=1.5), "denoiser.time_channels must be a whole number"),
        (set_at("denoiser", "channels", to="abc"), "denoiser.channels must be a list of whole numbers"),
        (set_at("denoiser", "channels", to=[64, 96, -1]), "denoiser.channels must be a list of whole numbers"),
        (set_at("preset", to=7), "codec.preset must be a string"),
        (set_at("diffusion", "start", to="late"), "diffusion.start must be a number"),
        (set_at("diffusion", "start", to=True), "diffusion.start must be a number"),
    ],
)
def test_a_field_that_is_unknown_missing_or_ill_typed_is_refused(
    edit: Callable[[dict[str, Any]], object], said: str
) -> None:
    data = json.loads(json.dumps(tiny().to_dict()))
    edit(data)
    with pytest.raises(UsageError, match=said):
        CodecConfig.from_dict(data)


LATER = [
    dataclasses.replace(first_codec(), transform=TransformConfig(slices=(32, 64), context_channels=16)),
    *(
        dataclasses.replace(first_codec(), diffusion=DiffusionConfig(**changed))
        for changed in ({"start": 0.25}, {"planes": 1}, {"criterion": "squared error"})
    ),
]


@pytest.mark.parametrize("config", LATER)
def test_what_came_later_survives_json_and_makes_files_of_version_2(config: CodecConfig) -> None:
    assert CodecConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (first_codec().file_version, config.file_version) == (1, 2)
    config.check(Settings(quality=4.5, steps=0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(quality=4.5), "quality must be a whole number for this codec, whose files are of version 1, not 4.5"),
        (Settings(steps=0), "steps must be at least 1 for this codec, whose files are of version 1"),
    ],
)
def test_what_a_file_of_version_1_cannot_say_is_refused(settings: Settings, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        first_codec().check(settings)


def test_the_two_constructions_of_the_correction_are_properties_of_a_codec() -> None:
    ours = DiffusionConfig(steps=3, factor_bits=5)
    paper = ours.corrected_by("paper")
    assert paper == DiffusionConfig(3, 0, 5, start=0.98, planes=1, criterion="squared error")
    assert paper.corrected_by("grid") == ours.corrected_by("grid") == ours


@pytest.mark.parametrize("data", [None, [], "codec", 3])
def test_a_configuration_that_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(UsageError, match="not an object"):
        CodecConfig.from_dict(data)


def test_small_pictures_are_not_tiled_and_large_ones_are() -> None:
    assert Settings().tile_for(2048, 2048) == 0
    assert Settings().tile_for(2048, 2049) == 1024
    assert Settings(tile=0).tile_for(9999, 9999) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"quality": 8}, "quality must be from 0 to 7 in steps of 1/16, not 8"),
        ({"quality": 7.0625}, "quality must be from 0 to 7 in steps of 1/16, not 7.0625"),
        ({"quality": -1}, "quality must be from 0 to 7 in steps of 1/16, not -1"),
        ({"quality": 4.1}, "quality must be from 0 to 7 in steps of 1/16, not 4.1"),
        ({"quality": float("nan")}, "quality must be from 0 to 7 in steps of 1/16, not nan"),
        ({"fidelity": 1.1}, "fidelity must be from 0 to 1, not 1.1"),
        ({"fidelity": -0.1}, "fidelity must be from 0 to 1, not -0.1"),
        ({"fidelity": float("nan")}, "fidelity must be from 0 to 1, not nan"),
        ({"steps": -1}, "steps must be from 0 to 64, not -1"),
        ({"steps": 65}, "steps must be from 0 to 64, not 65"),
        ({"tile": 192}, "tile must be 0 or a multiple of 64 from 256"),
        ({"tile": 300}, "tile must be 0 or a multiple of 64 from 256"),
        ({"tile": 1 << 14}, "tile must be 0 or a multiple of 64 from 256 to 16320 pixels, not 16384"),
    ],
)
def test_a_setting_out_of_range_is_refused(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Settings(**arguments)  # type: ignore[arg-type]
