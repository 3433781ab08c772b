"""Training loops without a framework, for tests of what is around a loop. Their workers load them by name."""

import os
import time
from typing import Any, Literal

import numpy as np

from cluster.core import errors
from jobs.common.checkpoint.manifest import SaveName
from jobs.common.training.context import PeerLostError
from jobs.common.training.session import Session


def count(session: Session, config: Any) -> Literal["finished", "stopped"]:
    """One worker counts to `train.max_steps`, 2 ms a step; its tensor is the step."""
    checkpoint = session.checkpoints.resume_from
    step = checkpoint.state["step"] if checkpoint else 0
    session.update_status(total_steps=config.train.max_steps, epochs=1, epoch=0)
    while step < config.train.max_steps:
        time.sleep(0.002)
        step += 1
        session.progress.on_step_end(step=step, epoch=0, rows=1, loss=1.0, skipped=0)
        if session.peers.stop_wanted:
            _save(session, step)
            session.checkpoints.wait_for_commit()
            return "stopped"
        if session.checkpoints.checkpoint_due(step):
            _save(session, step)
        session.checkpoints.wait_for_due_checkpoint(step)
    return "finished"


def hang(session: Session, config: Any) -> Literal["finished", "stopped"]:
    """Makes one step, and then nothing until it is told to leave."""
    session.progress.pace.start()
    session.progress.on_step_end(step=1, epoch=0, rows=1, loss=1.0, skipped=0)
    while not session.peers.reply.leave:
        time.sleep(0.01)
    raise PeerLostError("it was ended")


def fail(session: Session, config: Any) -> Literal["finished", "stopped"]:
    """After a checkpoint, raises the error of cluster/core/errors.py that the run is named after."""
    session.update_status(total_steps=2, epochs=1, epoch=0)
    session.progress.on_step_end(step=1, epoch=0, rows=1, loss=1.0, skipped=0)
    _save(session, 1)
    session.checkpoints.wait_for_commit()
    raise getattr(errors, config.run.name)("as the test wants it")


def _save(session: Session, step: int) -> None:
    session.checkpoints.save(lambda: {"step": np.array([step])}, {"step": step}, step=step, epoch=0)


def block(session: Session, config: Any) -> Literal["finished", "stopped"]:
    """Makes a step, and a checkpoint in the place of whose file a pipe lies that nobody reads:
    the system call does not return."""
    session.update_status(total_steps=2, epochs=1, epoch=0)
    session.progress.pace.start()
    session.progress.on_step_end(step=1, epoch=0, rows=1, loss=1.0, skipped=0)
    place = session.run_store.child("checkpoints").local_path(SaveName(session.generation, 1, 1).part(0))
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    _save(session, 1)
    session.checkpoints.wait_for_commit()
    return "finished"


def sleep(session: Session, config: Any) -> Literal["finished", "stopped"]:
    """Makes a step, and then no more."""
    session.update_status(total_steps=2, epochs=1, epoch=0)
    session.progress.pace.start()
    session.progress.on_step_end(step=1, epoch=0, rows=1, loss=1.0, skipped=0)
    while session.progress.step:
        time.sleep(3600)
    return "finished"
