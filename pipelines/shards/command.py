"""`corrdiff` shards as a person sees it."""

from __future__ import annotations

from corrdiff.errors import JobError
from pipelines.display.progress import console, display, print_first
from pipelines.files import storage
from pipelines.shards import job as cut_shards
from pipelines.shards.config import ShardConfig
from pipelines.shards.format import MANIFEST, VALIDATION, Manifest, has_validation, read_manifest


def run_sharding(images: str, out: str, config: ShardConfig, only: str | None = None) -> Manifest:
    """Cut shards with a progress display; returns the manifest of the training shards."""
    out = storage.absolute(out)
    steps = cut_shards.cut_shards(images, out, config, only)
    first = next(steps)
    assert isinstance(first, cut_shards.Progress)
    with display("shards", first.pictures_total, "pictures") as shown:
        shown.update(first.pictures_done)
        for step in steps:
            if not isinstance(step, cut_shards.Progress):
                break
            shown.update(step.pictures_done, f"{step.crops:,} crops")
    assert not isinstance(step, cut_shards.Progress)
    for split, manifest in step.items():
        size = sum(shard.bytes for shard in manifest.shards)
        console.print(
            f"{out}, {split}: {manifest.count:,} crops of {manifest.crop} pixels in {len(manifest.shards)} shards, "
            f"{size / 1e6:,.1f} MB"
        )
        if manifest.flat:
            console.print(f"  left out as flat: {manifest.flat:,} crops")
        print_first([f"skipped {uri}: {reason}" for uri, reason in manifest.skipped], MANIFEST)
    return step["train"]


def run_verification(uri: str) -> None:
    """Read all shards with a progress display. Raises `JobError` where one is not the manifest's."""
    uri = storage.absolute(uri)
    total = len(read_manifest(uri).shards)
    if has_validation(uri):
        total += len(read_manifest(storage.join(uri, VALIDATION)).shards)
    wrong: list[str] = []
    with display("verify", total, "shards") as shown:
        for done, (name, problem) in enumerate(cut_shards.verify_shards(uri), start=1):
            shown.update(done, f"{len(wrong)} wrong" if wrong else "")
            if problem:
                wrong.append(name)
                console.print(f"{name}: {problem}")
    if wrong:
        raise JobError(f"{len(wrong)} of {total} shards are wrong; cut each again with --only, or copy it again")
    console.print(f"{uri}: all {total} shards are what was cut")
