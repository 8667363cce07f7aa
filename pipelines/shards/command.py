"""`corrdiff shard` as a person sees it."""

from __future__ import annotations

from corrdiff.errors import JobError
from pipelines.display.progress import console, print_first, show
from pipelines.files import storage
from pipelines.inputs.sources import left_out_sentence
from pipelines.shards.config import ShardConfig
from pipelines.shards.format import MANIFEST, Manifest
from pipelines.shards.job import cut_shards, verify_shards


def run_sharding(images: str, out: str, config: ShardConfig, only: str | None = None) -> Manifest:
    """Cut shards with a progress display; returns the manifest of the training shards."""
    out = storage.absolute(out)
    manifests = show("shards", cut_shards(images, out, config, only))
    for split, manifest in manifests.items():
        size_bytes = sum(shard.bytes for shard in manifest.shards)
        console.print(
            f"{out}, {split}: {manifest.count:,} crops of {manifest.crop} pixels in {len(manifest.shards)} shards, "
            f"{size_bytes / 1e6:,.1f} MB"
        )
        if manifest.flat:
            console.print(f"  left out as flat: {manifest.flat:,} crops")
        if manifest.left_out:
            number = sum(manifest.left_out.values())
            console.print(f"  {number:,} files are no pictures{left_out_sentence(manifest.left_out)}")
        print_first([f"skipped {uri}: {reason}" for uri, reason in manifest.skipped], MANIFEST)
    return manifests["train"]


def run_verification(uri: str) -> None:
    """Read all shards with a progress display. Raises `JobError` where one is not the manifest's."""
    uri = storage.absolute(uri)
    found = show("verify", verify_shards(uri))
    for name, problem in found.wrong:
        console.print(f"{name}: {problem}")
    if found.wrong:
        raise JobError(
            f"{len(found.wrong)} of {found.shards} shards are wrong; cut each again with --only, or copy it again"
        )
    console.print(f"{uri}: all {found.shards} shards are what was cut")
