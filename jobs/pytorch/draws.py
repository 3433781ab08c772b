"""What a pass draws, such as dropout: a function of the run's seed and of which rows it is about, and of no history."""
# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

import numpy as np
import torch

from jobs.common.data.counter_rng import Purpose


class Draws:
    """Seeds PyTorch's generator of one device before each pass, with `counter_rng.micro_batch_seed`.

    It takes 3 µs. A new Philox for each pass takes 10 to 50 µs, and `torch.manual_seed` 70 to 300: it takes down a
    stack trace for each kind of device that is not used.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._philox = np.random.Philox(key=[seed % 2**64, int(Purpose.MICRO_BATCH)])
        self._state = self._philox.state
        self._state["buffer_pos"] = 4  # nothing is left of what was drawn before
        self._on_gpu = device.type == "cuda"

    def begin_pass(self, epoch: int, step: int, shard: int, part: int) -> None:
        """step: of the epoch. part: of the shard's micro-batch, where that is cut."""
        self._state["state"]["counter"][:] = (0, step, shard << 32 | part, epoch)
        self._philox.state = self._state
        seed = int(self._philox.random_raw()) >> 1
        torch.default_generator.manual_seed(seed)
        if self._on_gpu:
            torch.cuda.manual_seed(seed)
