"""A GPU that no machine has: tensors on 'cuda' with shapes and layouts but no numbers, and who waits for it.

An operation on tensors of two devices raises, as it would on a GPU. What the host reads of them is zeros.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from corrdiff import correction
from corrdiff.format import latent_models
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.format.range_coder import RangeDecoder

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")


class Counted(TorchDispatchMode):
    """Counts the copies between host and GPU by the line of ours that asks for them, and convolutions by layout."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: Counter[str] = Counter()
        self.convolutions: Counter[str] = Counter()

    def begin(self) -> None:
        """Count from here on."""
        self.copies.clear()
        self.convolutions.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "aten::_local_scalar_dense":  # what if, float and item read
            self._note(args[0].device, "read of a number")
            return True if args[0].dtype is torch.bool else args[0].dtype.is_floating_point * 0.5
        if name.startswith("aten::"):
            with self:  # inference mode leaves operations whole that are made of others
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if name in ("aten::_to_copy", "aten::copy_") and len({t.device for t in (*given, *made)}) > 1:
            self._note(CUDA, "copy")
        elif name in ("aten::equal", "aten::nonzero", "aten::masked_select"):
            self._note(given[0].device, name)
        elif name == "aten::convolution" and given[0].is_cuda and given[1].shape[2:] != (1, 1):
            last = given[0].is_contiguous(memory_format=torch.channels_last)
            self.convolutions["channels_last" if last else f"{_line()} NCHW"] += 1
        return out

    def _note(self, device: torch.device, what: str) -> None:
        if device.type == "cuda":
            self.copies[f"{_line()} {what}"] += 1


def _line() -> str:
    packages = tuple(str(ROOT / name) for name in ("corrdiff", "pipelines"))
    ours = [f for f in traceback.extract_stack() if f.filename.startswith(packages)]
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "?"


@contextlib.contextmanager
def fake_gpu() -> Iterator[Counted]:
    """Have 'cuda' for the length of a block; what is made there must not leave it."""
    caches = [correction._least_factor, correction._interpolation]
    positions = latent_models.checkerboard.__wrapped__

    @functools.cache
    def checkerboard(height: int, width: int, parity: int, device: torch.device | str = "cpu") -> Tensor:
        with unset_fake_temporarily():  # how many positions there are is in numbers
            found: Tensor = positions(height, width, parity)
        return found.to(device)

    def run_on(self: EntropyTables, device: torch.device) -> None:
        self.model, self._device = self.model.to(device), device  # numbers that are not there cannot be compared
        self._threshold = None if self._threshold is None else self._threshold.to(device)

    def numpy(self: FakeTensor) -> npt.NDArray[Any]:
        return np.zeros(tuple(self.shape), str(self.dtype).removeprefix("torch."))

    def tolist(self: FakeTensor) -> list[float]:
        counted._note(self.device, "tolist")
        return [0.5] * len(self)

    def applied(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for module in self.modules():  # torch would swap what is in a parameter, which these cannot
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = fn(buffer)
        return self

    counted = Counted()
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        for cache in caches:
            cache.cache_clear()
        patch.setattr(EntropyTables, "run_on", run_on)
        patch.setattr(latent_models, "checkerboard", checkerboard)
        patch.setattr(nn.Module, "_apply", applied)
        patch.setattr(RangeDecoder, "expect_end", lambda self: None)
        patch.setattr(FakeTensor, "numpy", numpy)
        patch.setattr(FakeTensor, "tolist", tolist)
        try:
            with counted:
                yield counted
        finally:
            for cache in caches:
                cache.cache_clear()
