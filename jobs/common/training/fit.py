"""The training loop, of every job: resume, epochs, steps, stop, checkpoint, evaluate, and predict with the best.
No framework.

    def train(context: TrainContext, config: MyConfig) -> Outcome:
        return fit(context, MyTraining(context, config), context.data_loader(), metric=chosen(METRICS, config.metric))

What a loop owes the run is met here, and nowhere else: a job hands over its mathematics (`trainable.py`) and cannot
reach what this module calls on the session.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import cast

from jobs.common.data.loader import MicroBatches
from jobs.common.declared_metrics import Metric, reported
from jobs.common.step_profile import Profiler, StepProfile
from jobs.common.training.context import PeerLostError, TrainContext
from jobs.common.training.predictions import Predictions
from jobs.common.training.session import Session
from jobs.common.training.step_batcher import StepBatcher
from jobs.common.training.train_state import TrainState
from jobs.common.training.trainable import Answers, Batches, Outcome, StepResult, Trainable, Undoable


def fit(context: TrainContext, trainable: Trainable, batches: Batches, *, metric: Metric,
        evaluate_every_steps: int | None = None, most_steps_per_call: int | None = None,
        agree_on_checkpoints: bool = False, profiler: Callable[[], Profiler] | None = None) -> Outcome:
    """One generation: from the checkpoint, if there is one, to the end, or to a stop that all ranks agree on.

    metric: which validation metric chooses the best checkpoint. evaluate_every_steps: evaluates in the middle of an
    epoch, too. most_steps_per_call: of a job that can make many steps in one call.
    agree_on_checkpoints: rank 0's wish for a checkpoint is among those that a step adds up,
    for a job whose ranks all write. profiler: makes the one that watches the steps of `--run.profile`.

    Raises: PeerLostError, NonFiniteError, DivergedError; what a checkpoint or a job's own code raises.
    """
    assert isinstance(context, Session), "what a worker hands to a job's train function"
    assert isinstance(metric, Metric), "one of the job's metrics: see jobs/common/declared_metrics.py"
    session, train = context, context.config.train
    if trainable.sharded:
        session.checkpoints.shard_checkpoints()
    state = resume(session, trainable)
    total_steps = train.total_steps(batches.steps_per_epoch)
    if state.step < total_steps:
        state.reopen_epoch(batches.steps_per_epoch)
    session.update_status(total_steps=total_steps, epochs=train.epochs, epoch=state.epoch,
                          parameters=trainable.num_parameters)
    batcher = StepBatcher(session, state, most_steps_per_call, agree_on_checkpoints)

    with held_at_a_death(session, trainable, state), StepProfile(
            session.config.run, profiler, store=session.run_store, rank=session.rank,
            waiting=session.storage.waiting) as profile:
        if missed_evaluation(state, evaluate_every_steps, batches.steps_per_epoch):
            evaluate(session, trainable, state, metric, total_steps)
        while ((state.step < total_steps or state.step_in_epoch)
               and not state.out_of_patience(train.early_stopping_epochs)
               and not session.progress.should_pause(state.epoch)):
            session.progress.pace.start()
            first = state.step - state.step_in_epoch
            left_out = frozenset(step - first for step in session.excluded_steps)
            remaining = iter(batches.steps(state.epoch, state.step_in_epoch, left_out))
            last = min(first + batches.steps_per_epoch, total_steps)
            batch = None
            while state.step < last:
                if state.step in session.excluded_steps:
                    state.leave_out()
                    continue
                batch = next(remaining)
                until = next_evaluation(state.step, evaluate_every_steps, last)
                count = batcher.count(profile.bound(state.step, min(last, until)))
                if session.data.traces_rows:
                    trace(session, state, batch)

                rates = [trainable.learning_rate(step, total_steps) for step in range(state.step, state.step + count)]
                with profile.around(state.step, count):
                    result = trainable.step(batch, state, rates, batcher.wishes)
                batcher.made(result.wishes)

                record(session, state, result)
                session.progress.on_step_end(step=state.step, epoch=state.epoch, rows=train.global_batch_size,
                                             loss=result.losses, skipped=state.skipped_steps, learning_rate=rates[-1])
                if profile.ended(state.step):
                    session.progress.pace.start()
                compare_weights(session, trainable, state.step)
                if batcher.stop_agreed:
                    save(session, trainable, state)
                    session.checkpoints.wait_for_commit()
                    return "stopped"
                if (evaluate_every_steps and state.step % evaluate_every_steps == 0
                    and state.step_in_epoch < batches.steps_per_epoch):
                    profile.end()
                    evaluate(session, trainable, state, metric, total_steps)
                    session.progress.pace.start()
                elif batcher.checkpoint_due(state.step):
                    save(session, trainable, state)
                session.checkpoints.wait_for_due_checkpoint(state.step)
            profile.end()
            batch = remaining = None  # lets go of what a pipeline holds
            evaluate(session, trainable, state, metric, total_steps, epoch_done=True)
    if session.progress.should_pause(state.epoch):
        return "stopped"
    predict_with_best(session, trainable)
    return "finished"


# ── parts of the loop ──
def resume(session: Session, trainable: Trainable) -> TrainState:
    """Puts the checkpoint that this generation resumes from, if there is one, into the job's model and optimiser."""
    checkpoint = session.checkpoints.resume_from
    if checkpoint is None:
        return TrainState()
    state = TrainState.saved(checkpoint.state)
    if checkpoint.metric is not None:
        state.evaluated_at = checkpoint.step  # one of an earlier version does not say it
    trainable.load_state_dict(session.checkpoints.resumed_parts(), state.optimizer_steps)
    return state


@contextmanager
def held_at_a_death(session: Session, trainable: Trainable, state: TrainState) -> Generator[None]:
    """Around training. Where another worker is lost, this one holds what it has after the last step that was finished,
    for the next generation to go on from."""
    try:
        yield
    except PeerLostError:
        if isinstance(trainable, Undoable) and (finished := trainable.undo_step()) is not None:
            record(session, state, finished)
            session.checkpoints.hold(lambda: trainable.state_dict(state.optimizer_steps), asdict(state),
                                     step=state.step, epoch=state.epoch)
        raise


def missed_evaluation(state: TrainState, every_steps: int | None, steps_per_epoch: int) -> bool:
    """Whether an evaluation in the middle of an epoch was due where this generation begins: the one before stopped, or
    lost a worker, between the step and its evaluation."""
    return bool(every_steps and state.step % every_steps == 0 and state.evaluated_at != state.step
                and 0 < state.step_in_epoch < steps_per_epoch)


def next_evaluation(step: int, every_steps: int | None, last: int) -> int:
    """The step after which the next evaluation in the middle of an epoch comes; `last` where there is none."""
    return step - step % every_steps + every_steps if every_steps else last


def trace(session: Session, state: TrainState, batch: object) -> None:
    """Notes which rows the step is made of, before it is made.
    What is drawn inside a framework, the step itself tells."""
    if isinstance(batch, dict):
        micro_batches = cast(MicroBatches, batch)
        rows = {shard: columns["row_id"] for shard, columns in micro_batches.items()}
        session.data.trace(state.epoch, state.step, rows)


def record(session: Session, state: TrainState, result: StepResult) -> None:
    """Counts the steps of a call. Raises: NonFiniteError."""
    for place, rows in enumerate(result.row_ids):
        session.data.trace(state.epoch, state.step + place, rows)
    for outcome in result.outcomes:
        state.record(outcome, session.config.train.max_skipped_steps)


def compare_weights(session: Session, trainable: Trainable, step: int) -> None:
    """Where a comparison is due after this step. Raises: DivergedError, PeerLostError."""
    if session.peers.weights_due(step) and (digest := trainable.weight_digest()) is not None:
        session.peers.compare_weights(step, digest, trainable.total)


def evaluate(session: Session, trainable: Trainable, state: TrainState, metric: Metric, total_steps: int, *,
             epoch_done: bool = False) -> None:
    """Evaluates on the validation rows, remembers whether it was the best, and saves."""
    session.update_status(phase="judging validation rows")
    values = trainable.evaluate("validation")
    more_is_better = metric.sign * reported(metric, values)
    shown = dict.fromkeys(name for name in (metric.while_training, "loss") if name in values)
    session.update_status(phase=None, scores={name: values[name] for name in shown})
    state.evaluated(more_is_better)
    session.progress.report("evaluation", step=state.step, epoch=state.epoch + epoch_done,
                            learning_rate=trainable.learning_rate(state.step - 1, total_steps),
                            **{f"validation_{name}": value for name, value in values.items()})
    if epoch_done:
        state.next_epoch()
    save(session, trainable, state, metric=more_is_better)


def save(session: Session, trainable: Trainable, state: TrainState, metric: float | None = None) -> None:
    """Begins a checkpoint; the step path pays for a copy only."""
    session.checkpoints.save(lambda: trainable.state_dict(state.optimizer_steps), asdict(state), step=state.step,
                             epoch=state.epoch, metric=metric)


def predict_with_best(session: Session, trainable: Trainable) -> None:
    """Predicts the validation and test rows with the best checkpoint, and perturbed ones; the driver judges them."""
    trainable.load_weights(session.checkpoints.parts(session.checkpoints.best()))
    for split in ("validation", "test"):
        answers: list[Answers] = []
        done, mine = 0, len(session.local_range(split))
        for each in trainable.predict(split):
            answers.append(each)
            done += len(each[0])
            session.update_status(phase=f"judging {split} rows: {done:,} of {mine:,}")
        if answers:
            session.write_predictions(split, Predictions.joined(answers))
    session.update_status(phase="judging changed rows")
    trainable.predict_perturbed()
    session.write_extras()
    session.update_status(phase=None)
