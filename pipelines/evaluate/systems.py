"""What an evaluation compares: codecs of ours, anchors, and what a person names beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from corrdiff.codec_directory import read_config
from corrdiff.errors import UsageError
from pipelines.evaluate import anchors, commands, compressai_models, reconstructions
from pipelines.evaluate.config import CHECKPOINTS, EvaluateConfig
from pipelines.files import storage

Kind = Literal["codec", "anchor", "command", "reconstructions", "compressai"]


@dataclass(frozen=True)  # Ray Data would take a tuple of strings for a list
class System:
    """Something that writes files and reads them."""

    name: str
    """Unique in an evaluation; what the table calls it."""
    kind: Kind
    source: str
    """URI of the codec, name of the anchor or model, command line, URI of the folder."""
    points: tuple[str, ...] = ()
    """Of its curve, as they are written; a codec's and an anchor's are known to them."""
    fingerprint: str = ""
    """Of a codec of ours as the evaluation found it; another one that comes to its place is refused."""

    @property
    def ours(self) -> bool:
        """Whether it is a codec of ours, which is decoded in several ways."""
        return self.kind == "codec"

    @property
    def run(self) -> str:
        """Of a checkpoint of a training run: the run's name; else empty."""
        *_, before, run, _, _ = ("", "", "", *self.source.split("/"))
        return run if self.ours and before == CHECKPOINTS else ""

    @property
    def title(self) -> str:
        """What people read."""
        return anchors.ANCHORS[self.source].title if self.kind == "anchor" else self.name


def systems_of(codecs: Sequence[str], config: EvaluateConfig) -> list[System]:
    """List what is compared. Raises `UsageError` where something named is not there or not as it has to be."""
    ours = codec_names(codecs, config).items()
    found = [System(name, "codec", uri, fingerprint=read_config(uri)[1]) for uri, name in ours]
    found += (System(name, "anchor", name) for name in config.anchors)
    for (name, text), points in zip(config.named("command"), config.command_points(), strict=True):
        commands.parse(text)
        found.append(System(name, "command", text, points))
    for name, uri in config.named("reconstructions"):
        folder = storage.absolute(uri)
        found.append(System(name, "reconstructions", folder, reconstructions.read_sizes(folder).points))
    for model in config.compressai:
        found.append(System(model, "compressai", model, compressai_models.points(model, config.weights)))
    titles = [system.title for system in found]
    for title in titles:
        if titles.count(title) > 1:
            raise UsageError(f"the name {title} is given to two systems")
    return found


def codec_names(codecs: Sequence[str], config: EvaluateConfig) -> dict[str, str]:
    """Name codecs, by URI, by the ends of those, as far as that tells them apart from each other and from the rest."""
    uris = [storage.absolute(codec) for codec in dict.fromkeys(codecs)]
    parts = [[p for p in uri.split("/") if p and p != "codec"] or [uri] for uri in uris]
    given = [name for name, _ in (*config.named("command"), *config.named("reconstructions"))]
    taken = {"phase1", "phase2", "phase3", *config.anchors, *config.compressai, *given}
    names = uris
    for length in range(max(map(len, parts), default=0), 0, -1):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len(short) and not taken & set(short):
            names = short
    return dict(zip(uris, names, strict=True))


def description(system: System) -> str:
    """Say what makes a system's files, with versions: of two that differ the rows would not belong together."""
    if system.kind == "codec":
        return f"{system.source}, fingerprint {system.fingerprint}"
    if system.kind == "anchor":
        return anchors.description(system.source)
    points = f"points {', '.join(system.points)}"
    if system.kind == "command":
        return f"{system.source}; {points}"
    if system.kind == "reconstructions":
        return f"{system.source}, sizes {reconstructions.read_sizes(system.source).digest}; {points}"
    return f"CompressAI {compressai_models.version()}, for squared error, on a CPU; {points}"
