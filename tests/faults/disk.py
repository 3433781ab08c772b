"""A disk whose power can be cut: an ext4 of its own in a file.
What was not synced by then is lost, by the file system's own doing.

The kernel's loop device writes to the file what ext4 sends to its disk, and nothing else: a copy of the file is what a
real disk would hold at that moment. ext4 is mounted so that it forgives nothing: it neither writes a file out because
it is renamed (`noauto_da_alloc`) nor commits its journal by itself within five seconds.
"""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

_SIZE = 96 << 20
_OPTIONS = "loop,noauto_da_alloc,commit=600,data=writeback"


class Disk:
    """`path` is where it is mounted, `cut` takes its power away and gives it back."""

    def __init__(self, folder: Path) -> None:
        """Skips the test where this machine makes none, saying why."""
        if os.geteuid() != 0:
            pytest.skip("mounting a file system needs root")
        self.path, self._folder = folder / "disk", folder
        self._image = folder / "image"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(_SIZE)
        for command in (["mkfs.ext4", "-q", "-F", str(self._image)], self._mounting):
            try:
                done = subprocess.run(command, check=False, capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip(f"this machine has no {command[0]}")
            if done.returncode:
                pytest.skip(f"this machine mounts no ext4 of a file: {done.stderr.strip()}")

    @property
    def _mounting(self) -> list[str]:
        return ["mount", "-t", "ext4", "-o", _OPTIONS, str(self._image), str(self.path)]

    def cut(self) -> None:
        """Nobody may have files open on it any more; from here on it holds what had reached the disk."""
        kept = self._folder / f"image-{uuid.uuid4().hex[:8]}"
        shutil.copyfile(self._image, kept)
        self.remove()
        self._image = kept
        subprocess.run(self._mounting, check=True)

    def remove(self) -> None:
        # after a failure, perhaps with files still open
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        self._image.unlink()
