"""The stages through which a compressed dataset becomes pictures again, but the last; job.py and reader.py join them.

read    I/O          a part's files, a few megapixels at a time
decode  GPU or CPU   the networks, some files of like size at a time
save    CPU          PNG, WebP or JPEG, as files or as shards (save.py)
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypeVar

from corrdiff.errors import JobError, UsageError
from corrdiff.format import bitstream
from corrdiff.picture import Picture
from pipelines.dataset.fields import read_part_with_columns
from pipelines.dataset.format import Plan, check_codec
from pipelines.dataset.index import Member, read_member
from pipelines.dataset.parts import PictureFile, read_part
from pipelines.dataset.summary import read_complete
from pipelines.dataset.units import read_record
from pipelines.decompress.config import DecompressConfig
from pipelines.files import storage
from pipelines.inputs.samples import Fields
from pipelines.runtime.resources import Pools
from pipelines.runtime.stages import as_many_as_fit, codec_in_actor, each_row_at_once, one_block_each

if TYPE_CHECKING:  # it brings torch along, which reading and saving do without
    from corrdiff.codec import CorrDiffCodec, Decoding

P = TypeVar("P")
Q = TypeVar("Q")
K = TypeVar("K", bound=Hashable)

PORTION_PIXELS = 1 << 24
"""Pictures that go through the stages together, and into one shard, at most (one picture may have more)."""

BATCH = 8
"""Most files that are decoded together."""


class Decoded(NamedTuple):
    """A picture."""

    key: str
    pixels: Picture
    fields: Fields = Fields()
    """What travels with it, where it was read."""


class Portion(NamedTuple, Generic[P]):
    """Some pictures of a unit on their way: first `PictureFile`s, then `Decoded` ones."""

    unit: int
    number: int
    of: int
    """Portions of this unit."""
    pictures: list[P]


@dataclass(frozen=True)
class DecompressJob:
    """A finished compressed dataset, the codec that wrote it, and how pictures are made of it."""

    dataset: str
    codec: str
    """URI of the codec directory."""
    plan: Plan
    pictures: int
    """How many it holds."""
    config: DecompressConfig


def open_dataset(dataset: str, codec: str, config: DecompressConfig) -> DecompressJob:
    """A finished dataset, to be decompressed. Raises `UsageError` where there is none, or it is another codec's."""
    from corrdiff.codec_directory import read_config

    dataset, codec = storage.absolute(dataset), storage.absolute(codec)
    plan, summary = read_complete(dataset)
    check_codec(dataset, plan, codec, read_config(codec)[1])
    if config.decoding == "uncorrected" and plan.identity.get("steps") == 0:
        raise UsageError(f"{dataset} was compressed with --steps 0, so there are no uncorrected pictures of it")
    return DecompressJob(dataset, codec, plan, summary.pictures - summary.failures, config)


def portions(files: Iterable[PictureFile], max_pixels: int) -> Iterator[list[PictureFile]]:
    """Lists of about PORTION_PIXELS, in order."""
    portion: list[PictureFile] = []
    room = PORTION_PIXELS
    for file in files:
        header = bitstream.unpack(file.data, max_pixels=max_pixels).header
        size = header.width * header.height + file.fields.size // 3
        room -= size
        if portion and room < 0:
            yield portion
            portion, room = [], PORTION_PIXELS - size
        portion.append(file)
    if portion:
        yield portion


def read_files(dataset: str, unit: int, fields: bool) -> list[PictureFile]:
    """The pictures of a unit, and where it is asked for, what travels with them."""
    record = read_record(dataset, unit)
    if fields:
        return read_part_with_columns(dataset, record)
    return [file._replace(fields=Fields()) for file in read_part(dataset, record)]


def read_portions(batch: dict[str, Any], dataset: str, max_pixels: int, fields: bool) -> Iterator[dict[str, Any]]:
    """A Ray task: whole units, with the fields that travel with their pictures or without, or chosen members of them ->
    files."""
    for unit, members in zip(batch["unit"].tolist(), batch["members"].tolist(), strict=True):
        if not members:
            files = read_files(dataset, unit, fields)
        else:
            chosen = [Member(*member) for member in json.loads(members)]
            files = [PictureFile(member.key, read_member(dataset, member)) for member in chosen]
        cut = [*portions(files, max_pixels)] or [[]]
        for number, portion in enumerate(cut):
            yield {"portion": [Portion(unit, number, len(cut), portion)]}


def decode(codec: CorrDiffCodec, files: list[PictureFile], decoding: Decoding, max_pixels: int) -> list[Decoded]:
    """In the order of the files; those of like size together."""
    from corrdiff.coding import batch_key

    def together(_: Hashable, batch: list[PictureFile]) -> list[Picture]:
        return codec.decompress_batch([file.data for file in batch], decoding, max_pixels)

    keys = [batch_key(bitstream.unpack(file.data, codec.fingerprint, max_pixels).header) for file in files]
    pictures = alike_together(files, keys, together)
    return [Decoded(file.key, pixels, file.fields) for file, pixels in zip(files, pictures, strict=True)]


def alike_together(
    files: list[PictureFile], keys: Sequence[K], work: Callable[[K, list[PictureFile]], list[Q]]
) -> list[Q]:
    """What comes of each file, in their order; those of one key are worked on together, `BATCH` of them or as many as
    the memory has room for. Raises `JobError` where it has none for one alone."""
    places: defaultdict[K, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    found: dict[int, Q] = {}
    for key, alike in places.items():
        of_key = functools.partial(work, key)
        for i in range(0, len(alike), BATCH):
            some = alike[i : i + BATCH]
            found |= zip(some, as_many_as_fit(of_key, [files[place] for place in some], _too_large), strict=True)
    return [found[place] for place in range(len(files))]


def _too_large(file: PictureFile, reason: str) -> NoReturn:
    raise JobError(f"picture '{file.key}' is too large for the memory: {reason}")


class Decoder:
    """A Ray Data actor: the networks on one GPU or one core."""

    def __init__(self, codec: str, device: str, config: DecompressConfig, fingerprint: str = "") -> None:
        self.codec, self.config = codec_in_actor(codec, device, config.precision, fingerprint), config

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        portion: Portion[PictureFile] = row["portion"]
        pictures = decode(self.codec, portion.pictures, self.config.decoding, self.config.max_pixels)
        return {"portion": Portion(portion.unit, portion.number, portion.of, pictures)}


def decoded(job: DecompressJob, rows: list[dict[str, Any]], stages: Pools, fields: bool = False) -> Any:
    """A Ray Data dataset of portions of decoded pictures: of units, with what travels with them where `fields` are
    asked for, or of chosen members of units."""
    reading = {"dataset": job.dataset, "max_pixels": job.config.max_pixels, "fields": fields}
    return each_row_at_once(
        one_block_each(rows)
        .map_batches(read_portions, batch_size=1, fn_kwargs=reading, **stages.tasks)
        .map(
            Decoder,
            fn_constructor_args=(job.codec, stages.device, job.config, job.plan.identity["codec"]),
            **stages.networks,
        )
    )
