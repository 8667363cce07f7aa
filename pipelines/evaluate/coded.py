"""What every system gives of a picture, whatever it is."""

from __future__ import annotations

from typing import NamedTuple

from corrdiff.picture import Picture


class Coded(NamedTuple):
    """A picture that went into a file and came back."""

    picture: Picture
    bytes: int
    """Of the whole file."""
    quality: float
    """The point of its curve, in the system's own terms."""
    fidelity: float | None = None
    """Of codecs of ours alone, as the next three."""
    steps: int | None = None
    usual_steps: bool = True
    decoding: str | None = None
    encode_s: float | None = None
    """None of what was coded elsewhere, as the next three."""
    decode_s: float | None = None
    encode_peak_bytes: int | None = None
    decode_peak_bytes: int | None = None
