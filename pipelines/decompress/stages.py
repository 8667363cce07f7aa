"""The stages through which a compressed dataset becomes pictures again; batch_decompress.py and reader.py join them.

read    I/O          a part's files, a few megapixels at a time
decode  GPU or CPU   the networks, some files of like size at a time
save    CPU          PNG, WebP or JPEG, as files or as shards
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from corrdiff.errors import JobError
from corrdiff.format import bitstream
from corrdiff.images import save_png
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Member, Record
from pipelines.decompress.config import DecompressConfig
from pipelines.files import storage
from pipelines.files.tar import add_member, read_members
from pipelines.runtime.resources import Pools

if TYPE_CHECKING:  # it brings torch along, which reading and saving do without
    from corrdiff.codec import CorrDiffCodec, Decoding, Picture

CHUNK_PIXELS = 1 << 24
"""Pictures that go through the stages together, and into one shard, at most (one picture may have more)."""

BATCH = 8
"""Most files that are decoded together."""

Format = Literal["png", "webp", "jpeg"]
EXTENSIONS: dict[Format, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}
JPEG_QUALITY = 95


class File(NamedTuple):
    """A compressed picture."""

    key: str
    data: bytes


class Decoded(NamedTuple):
    """A picture."""

    key: str
    pixels: Picture


class Chunk(NamedTuple):
    """Some pictures of a unit, on their way."""

    unit: int
    number: int
    of: int
    """Chunks of this unit."""
    pictures: list[Any]


def read_part(dataset: str, record: Record) -> list[File]:
    """All files of a part. Raises `JobError` where it is not what was written."""
    uri = storage.join(dataset, record.tar.name)
    try:
        data = storage.read_bytes(uri, storage.PATIENT_ATTEMPTS)
    except FileNotFoundError:
        raise JobError(f"part {uri} is missing; copy it again") from None
    if hashlib.sha256(data).hexdigest() != record.tar.sha256:
        raise JobError(f"part {uri} is damaged: its SHA-256 is not the record's; copy it again")
    return [File(key, file) for key, file in read_members(data, ".crdf")]


def portions(files: Iterable[File], max_pixels: int) -> Iterator[list[File]]:
    """Lists of about CHUNK_PIXELS, in order."""
    some: list[File] = []
    room = CHUNK_PIXELS
    for file in files:
        header = bitstream.unpack(file.data, max_pixels=max_pixels).header
        room -= header.width * header.height
        if some and room < 0:
            yield some
            some, room = [], CHUNK_PIXELS - header.width * header.height
        some.append(file)
    if some:
        yield some


def read_chunks(batch: dict[str, Any], dataset: str, max_pixels: int) -> Iterator[dict[str, Any]]:
    """A Ray task: whole units, or chosen members of them -> files."""
    for unit, members in zip(batch["unit"].tolist(), batch["members"].tolist(), strict=True):
        if not members:
            files = read_part(dataset, compressed.read_record(dataset, unit))
        else:
            chosen = [Member(*member) for member in json.loads(members)]
            files = [File(member.key, compressed.read_member(dataset, member)) for member in chosen]
        chunks = [*portions(files, max_pixels)] or [[]]
        for number, some in enumerate(chunks):
            yield {"chunk": [Chunk(unit, number, len(chunks), some)]}


def decode(codec: CorrDiffCodec, files: list[File], decoding: Decoding, max_pixels: int) -> Iterator[Decoded]:
    """In the order of the files, those of one size together where they follow each other."""
    from corrdiff.coding import batch_key

    headers = [bitstream.unpack(file.data, codec.fingerprint, max_pixels).header for file in files]
    for _, run in itertools.groupby(zip(files, headers, strict=True), lambda pair: batch_key(pair[1])):
        while batch := [file for file, _ in itertools.islice(run, BATCH)]:
            pictures = codec.decompress_batch([file.data for file in batch], decoding, max_pixels)
            yield from (Decoded(file.key, pixels) for file, pixels in zip(batch, pictures, strict=True))


class Decoder:
    """A Ray Data actor: the networks on one GPU or one core."""

    def __init__(self, codec: str, device: str, config: DecompressConfig) -> None:
        import torch

        from corrdiff.codec_directory import load_codec

        if device == "cpu":
            torch.set_num_threads(1)  # an actor for each core
        self.codec, self.config = load_codec(codec, device, config.precision), config

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk = row["chunk"]
        decoded = decode(self.codec, chunk.pictures, self.config.decoding, self.config.max_pixels)
        return {"chunk": chunk._replace(pictures=list(decoded))}


def decoded(rows: list[dict[str, Any]], dataset: str, codec: str, config: DecompressConfig, stages: Pools) -> Any:
    """A Ray Data dataset of chunks of decoded pictures: of units, or of chosen members of them."""
    import ray.data

    chunks = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            read_chunks, batch_size=1, fn_kwargs={"dataset": dataset, "max_pixels": config.max_pixels}, **stages.tasks
        )
        .map(Decoder, fn_constructor_args=(codec, stages.device, config), **stages.networks)
    )
    chunks.context.target_max_block_size = 1  # a chunk is a block, and goes on as soon as it is there
    return chunks


def save_chunk(row: dict[str, Any], out: str, kind: Format, shards: bool) -> dict[str, Any]:
    """A Ray task: pictures -> files, or one WebDataset shard of them."""
    chunk: Chunk = row["chunk"]
    files = {f"{p.key}.{EXTENSIONS[kind]}": to_file(p.pixels, kind) for p in chunk.pictures}
    if shards and files:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in files.items():
                add_member(tar, name, data)
        name = f"shard-{chunk.unit:05d}-{chunk.number:03d}.tar"
        storage.write_bytes(storage.join(out, name), buffer.getvalue(), storage.PATIENT_ATTEMPTS)
    elif not shards:
        for name, data in files.items():
            storage.write_bytes(storage.join(out, _safe(name)), data, storage.PATIENT_ATTEMPTS)
    return {"unit": chunk.unit, "chunks": chunk.of, "pictures": len(files)}


def to_file(pixels: Picture, kind: Format) -> bytes:
    if kind == "png":
        return save_png(pixels)
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {"quality": JPEG_QUALITY}
    Image.fromarray(pixels).save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def _safe(name: str) -> str:
    """Raises `JobError` for a name that leads out of the directory."""
    if name.startswith("/") or ".." in name.split("/"):
        raise JobError(f"the key of '{name}' is no path inside a directory; write shards instead")
    return name
