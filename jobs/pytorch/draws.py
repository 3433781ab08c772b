"""What a pass draws, such as dropout: a function of the run's seed and of which rows it is about, and of no history."""
# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

import numpy as np
import torch

from jobs.common.data.counter_rng import Purpose

_BLOCK = 64


class Draws:
    """Seeds PyTorch's generator of one device before each pass, with `counter_rng.micro_batch_seed`.

    `torch.manual_seed` would take 70 to 300 µs of a step: it takes down a stack trace for each kind of device that is
    not used. A new Philox takes 10 to 50: so there is one, which gives the seeds of 64 steps in a go.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._philox = np.random.Philox(key=[seed % 2**64, int(Purpose.MICRO_BATCH)])
        self._state = self._philox.state
        self._state["buffer_pos"] = 4  # nothing is left of what was drawn before
        self._epoch, self._seeds = -1, dict[tuple[int, int, int], int]()
        """The seeds of steps, shards and parts that come soon in the epoch."""
        self._on_gpu = device.type == "cuda"
        self._seed_generator = torch.default_generator.manual_seed

    def begin_pass(self, epoch: int, step: int, shard: int, part: int) -> None:
        """step: of the epoch. part: of the shard's micro-batch, where that is cut."""
        seed = self._seeds.pop((step, shard, part), None) if epoch == self._epoch else None
        if seed is None:
            self._look_ahead(epoch, step, shard, part)
            seed = self._seeds.pop((step, shard, part))
        self._seed_generator(seed)
        if self._on_gpu:
            torch.cuda.manual_seed(seed)

    def _look_ahead(self, epoch: int, step: int, shard: int, part: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._seeds = epoch, {}
        for each in range(step, step + _BLOCK):
            self._state["state"]["counter"][:] = (0, each, shard << 32 | part, epoch)
            self._philox.state = self._state
            self._seeds[each, shard, part] = int(self._philox.random_raw()) >> 1
