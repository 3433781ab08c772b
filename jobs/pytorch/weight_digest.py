"""The hash of a PyTorch model's weights, which the training loop compares over the workers."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterable

import torch
from torch import Tensor

from jobs.common.training.weight_digest import PIECE, digest

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest_of(tensors: Iterable[Tensor]) -> int:
    """As `jobs.common.training.weight_digest.digest_of_arrays`, where the tensors are;
    one number each crosses to the CPU."""
    sums = [_bits_of(tensor.detach()) if tensor.numel() else torch.zeros((), dtype=torch.int64, device=tensor.device)
            for tensor in tensors]
    return digest(torch.stack(sums).tolist() if sums else [])


def _bits_of(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1)
    size = 8 if flat.nbytes % 8 == 0 else flat.element_size()
    if flat.storage_offset() * flat.element_size() % size:  # cannot be seen as longer integers where it lies
        flat = flat.clone()
    pieces = flat.view(_INTEGERS[size]).split(PIECE)
    return torch.stack([(x * (2 * x + 1)).sum(dtype=torch.int64) for x in pieces]).sum()
