"""A codec directory: config.json, weights.safetensors, tables.safetensors. Nothing in it is ever executed.

Directories are local paths or any URI that fsspec knows (`s3://...`); `builtin:NAME` is one inside this package.

Weights are float32. In a compact codec those of large layers are int8, with a float32 scale for each output channel
beside them (`NAME.scale`): a quarter of the bytes. The fingerprint is always of the float32 values that they stand for.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from corrdiff.codec import CorrDiffCodec, Precision
from corrdiff.config import BUILTIN_SCHEME, CodecConfig
from corrdiff.errors import JobError, UsageError
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.model import CorrDiffModel
from corrdiff.perceptual import PerceptualMap
from corrdiff.uris import open_fs

CONFIG_FILE, WEIGHTS_FILE, TABLES_FILE = "config.json", "weights.safetensors", "tables.safetensors"
FORMAT = "corrdiff-codec-1"
SCALE, CHECKSUM = ".scale", "checksum"
COMPACT_FROM = 1024
"""Values of a layer whose weights are int8 in a compact codec; its biases and all smaller layers stay as they are."""


def fingerprint(config: CodecConfig, weights: dict[str, Tensor], tables: dict[str, Tensor]) -> str:
    """Compute SHA-256 (hex) over configuration, weights and tables in canonical order; a file carries 8 bytes of it."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for group in (weights, tables):
        for name in sorted(group):
            tensor = group[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_codec(
    model: CorrDiffModel, tables: EntropyTables, uri: str, provenance: dict[str, Any] | None = None,
    compact: bool = False, overwrite: bool = False,
) -> str:  # fmt: skip
    """Write a codec directory; config.json goes last, so that a directory without it is not one.

    Args:
        model: networks, usually with averaged weights.
        tables: what `model.entropy.freeze()` gave for exactly these weights.
        uri: directory to write, made where it is missing.
        provenance: what to keep beside the configuration (training runs, images seen); not part of the fingerprint.
        compact: write weights of 8 bits; they are other weights, by at most 1/254 of a channel's largest.
        overwrite: write over another codec, which alone can read what it has written.

    Returns:
        The fingerprint, 64 hexadecimal digits.

    Raises:
        UsageError: another codec is there.
        JobError: a weight is no number or infinite, as after a training that has diverged.
    """
    weights = codec_weights(model)
    broken = _not_finite(weights)
    if broken:
        raise JobError(f"the weights are not finite ('{broken}'): the training has diverged, and no codec is written")
    stored = compacted(weights) if compact else weights
    digest = fingerprint(model.config, _expanded(stored), tables.tensors)
    config = {
        "format": FORMAT,
        "fingerprint": digest,
        "codec": model.config.to_dict(),
        "provenance": provenance or {},
    }
    fs, root = open_fs(uri)
    if not overwrite and fs.exists(f"{root}/{CONFIG_FILE}") and read_config(uri)[1] != digest:
        raise UsageError(
            f"{uri} holds another codec, without which its files cannot be read; choose another directory, or say "
            "--overwrite"
        )
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/{WEIGHTS_FILE}", safetensors.torch.save(stored))
    fs.pipe_file(f"{root}/{TABLES_FILE}", safetensors.torch.save(tables.tensors))
    fs.pipe_file(f"{root}/{CONFIG_FILE}", json.dumps({**config, CHECKSUM: _checksum(config)}, indent=2).encode())
    return digest


def _checksum(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is no number or infinite."""
    return next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)


def load_codec(
    uri: str,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    perceptual: PerceptualMap | None = None,
) -> CorrDiffCodec:
    """Read a codec directory.

    Args:
        uri: what `corrdiff export` wrote: a local path or a URI.
        device: where the networks run.
        precision: "fp32" or "bf16" for the networks; by default bf16 on GPUs and CPUs that compute in it.
        perceptual: what to fit factors with in place of the texture error (`perceptual.lpips_map`).

    Raises:
        UsageError: no codec is there, or it is damaged; the message says which file.
    """
    model, tables, digest = load_networks(uri, for_training=False)
    return CorrDiffCodec(
        model, tables, bytes.fromhex(digest)[:8], device, precision or default_precision(device), perceptual
    )


def default_precision(device: str | torch.device) -> Precision:
    """Choose bf16 where the hardware computes in it, else fp32. GPUs before Ampere only emulate it."""
    kind = torch.device(device).type
    if kind == "cpu":
        return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "fp32"
    computes = kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if computes else "fp32"


def load_networks(uri: str, for_training: bool = True) -> tuple[CorrDiffModel, EntropyTables, str]:
    """Read and verify the networks (all, or those that coding needs), the frozen tables and the fingerprint of a codec
    directory."""
    config, digest, _ = read_config(uri)
    try:
        weights = _expanded(_read_tensors(uri, WEIGHTS_FILE))
    except (KeyError, RuntimeError):
        raise UsageError(f"codec {uri}: {WEIGHTS_FILE} has weights without their scales") from None
    broken = _not_finite(weights)
    if broken:
        raise UsageError(f"codec {uri}: {WEIGHTS_FILE} has values that are not finite ('{broken}'); export it again")
    tables = _read_tensors(uri, TABLES_FILE)
    if fingerprint(config, weights, tables) != digest:
        raise UsageError(f"codec {uri}: weights or tables do not match the fingerprint; export it or copy it again")
    with torch.device("meta"):  # shapes alone: a configuration may name networks of any size
        expected = dict(CorrDiffModel(config, for_training).named_parameters())
    if not for_training:
        weights = {name: tensor for name, tensor in weights.items() if name in expected}
    if expected.keys() != weights.keys() or any(_kind(expected[name]) != _kind(weights[name]) for name in expected):
        raise UsageError(f"codec {uri}: {WEIGHTS_FILE} does not fit {CONFIG_FILE}")
    try:
        coding = EntropyTables(tables)
    except UsageError as error:
        raise UsageError(f"codec {uri}: {TABLES_FILE}: {error}") from None
    sizes = config.transform.hyper_channels, config.transform.latent_channels
    if (coding.hyper_channels, coding.latent_channels) != sizes:
        raise UsageError(f"codec {uri}: {TABLES_FILE} does not fit {CONFIG_FILE}")
    return CorrDiffModel.around(config, weights, for_training), coding, digest


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def read_config(uri: str) -> tuple[CodecConfig, str, dict[str, Any]]:
    """Read configuration, fingerprint and provenance of a codec directory. Raises `UsageError` as `load_codec`."""
    try:
        data = json.loads(_read(uri, CONFIG_FILE))
        kind, codec, digest, provenance = (data[k] for k in ("format", "codec", "fingerprint", "provenance"))
        digest_bytes = bytes.fromhex(digest)
        strange = data.keys() - {"format", "codec", "fingerprint", "provenance", CHECKSUM}
        if strange or not isinstance(provenance, dict):
            raise ValueError(
                f"a field '{min(strange)}' that is not known" if strange else "its provenance is no object"
            )
        if data.get(CHECKSUM, "") not in ("", _checksum({k: v for k, v in data.items() if k != CHECKSUM})):
            raise ValueError("it is not what its checksum says")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"codec {uri}: {CONFIG_FILE} cannot be read ({error})") from None
    if kind != FORMAT:
        raise UsageError(f"codec {uri}: format '{kind}' is unknown, this program reads '{FORMAT}'")
    if len(digest_bytes) != 32:
        raise UsageError(f"codec {uri}: {CONFIG_FILE} has a fingerprint of {len(digest_bytes)} bytes, not of 32")
    try:
        return CodecConfig.from_dict(codec), digest, provenance
    except UsageError as error:
        raise UsageError(f"codec {uri}: {CONFIG_FILE}: {error}") from None


def codec_weights(model: CorrDiffModel) -> dict[str, Tensor]:
    """Collect the parameters, which are all that a codec stores beside its tables."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}


def compacted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make of float32 weights what a compact codec stores."""
    stored: dict[str, Tensor] = {}
    for name, w in weights.items():
        if w.ndim < 2 or w.numel() < COMPACT_FROM:
            stored[name] = w
            continue
        scale = (w.flatten(1).abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        stored[name] = (w / _along_channels(scale, w)).round().to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def _expanded(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make float32 weights of what a codec stores; the same on every machine, for each is one product."""
    return {
        name: tensor.float() * _along_channels(stored[name + SCALE], tensor) if tensor.dtype == torch.int8 else tensor
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }


def _along_channels(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def _read(uri: str, name: str) -> bytes:
    if uri.startswith(BUILTIN_SCHEME):
        return _read_builtin(uri.removeprefix(BUILTIN_SCHEME), name)
    try:
        fs, root = open_fs(uri)
        data: bytes = fs.cat_file(f"{root}/{name}")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UsageError(f"no codec at {uri}: there is no {name} (expected what 'corrdiff export' writes)") from None
    except (OSError, ValueError, ImportError) as error:  # ImportError: no driver for this kind of storage
        raise UsageError(f"codec {uri}: {name} cannot be read ({error})") from None
    return data


def _read_builtin(codec: str, name: str) -> bytes:
    there = importlib.resources.files("corrdiff").joinpath("builtin")
    names = sorted(entry.name for entry in there.iterdir() if entry.is_dir()) if there.is_dir() else []
    if codec not in names:
        raise UsageError(f"no codec {BUILTIN_SCHEME}{codec} comes with this package; there are: {', '.join(names)}")
    return there.joinpath(codec, name).read_bytes()


def _read_tensors(uri: str, name: str) -> dict[str, Tensor]:
    data = _read(uri, name)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError) as error:
        raise UsageError(f"codec {uri}: {name} is damaged ({error}); export it or copy it again") from None
    return tensors
