"""Pictures <-> tensors: uint8 [H, W, 3] where they come from and go to, float32 [B, 3, H, W] in [-1, 1] in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff.errors import UsageError
from corrdiff.picture import Picture

ALL = slice(None), slice(None)


def check(images: Sequence[Picture]) -> None:
    """Raise `UsageError` where arrays are no batch of RGB pictures of one size."""
    if not images:
        raise UsageError("a batch needs at least one picture")
    for image in images:
        if not isinstance(image, np.ndarray):
            raise UsageError(f"expected RGB uint8 pictures [H, W, 3], got {type(image).__name__}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UsageError(f"expected RGB uint8 pictures [H, W, 3], got {image.dtype} {list(image.shape)}")
        if image.shape != images[0].shape:
            raise UsageError("the pictures of a batch must have one size")


def to_tensor(
    images: Sequence[Picture], where: tuple[slice, slice] = ALL, device: str | torch.device = "cpu"
) -> Tensor:
    """Cut the same rows and columns out of each picture, [B, 3, H, W]."""
    x_BHWC = torch.from_numpy(np.stack([image[where] for image in images])).to(device)
    return x_BHWC.permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


def to_grey_levels(x_BCHW: Tensor) -> npt.NDArray[np.float32]:
    """Convert to grey levels from 0 to 255, not rounded, [B, H, W, 3]."""
    levels: npt.NDArray[np.float32] = ((x_BCHW + 1) * 127.5).clamp_(0, 255).permute(0, 2, 3, 1).cpu().numpy()
    return levels
