"""A module of a user's own: built by the function that a config names, and tried before anything is trained.

What is wrong with it is a ConfigError that names the function, the line in it, and what is wanted. Shapes: B rows, K
outputs.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import contextlib
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cluster.core.errors import ConfigError
from jobs.common.artifact.artifact import Artifact, refused
from jobs.common.own_code import OwnModel, called
from jobs.common.training.trainable import Tensors

Loss = Callable[[Tensor, Tensor], Tensor]
"""What is lowered: from outputs (B, K) and targets to the mean over the rows, a scalar."""


def build(own: OwnModel, info: object) -> nn.Module:
    """The module that `--model.build` gives. Raises: ConfigError if it raises, or returns something else."""
    module = called(f"--model.build {own.name}", own.build, info)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--model.build {own.name} gave {module!r}: it must return a torch.nn.Module")
    return module


def build_to_train(own: OwnModel, info: object, seed: int) -> nn.Module:
    """The same with its first weights, a function of the seed. Raises: ConfigError, also where nothing would be
    trained."""
    torch.manual_seed(seed)
    module = build(own, info)
    if not any(each.requires_grad for each in module.parameters()):
        raise ConfigError(f"--model.build {own.name}: its module has no parameter that is trained: leave "
                          "requires_grad of some as it is")
    return module


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a module is tried with."""

    inputs: Callable[[int], Sequence[Tensor]]
    """So many rows of what it is called with."""
    targets: Callable[[int], Tensor]
    batch: Callable[[int], Mapping[str, Tensor]]
    """The same rows as a loss of the whole model is given them."""
    outputs: int
    """K of what it must give, (B, K)."""
    given: str
    """What the message calls one row of the inputs, and their shapes."""
    wanted: str
    """What the message calls the outputs."""


def check(own: OwnModel, loss_name: str, model: nn.Module, loss: Loss, trial: Trial, rows_per_pass: int) -> None:
    """Tries one pass forward and back, on a copy. loss: as `loss_name` names it; a class's own goes before it.
    Raises: ConfigError that says what does not fit."""
    tried, build_name = copy.deepcopy(model), own.name
    seen = called(f"--model.build {build_name}", tried.eval(), *trial.inputs(1))
    if not isinstance(seen, Tensor) or seen.shape != (1, trial.outputs):
        said = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise ConfigError(f"--model.build {build_name}: for {trial.given} its module gives {said}: it must give "
                          f"{trial.wanted}")
    outputs = called(f"--model.build {build_name}", tried.train(), *trial.inputs(rows_per_pass),
                     hint=f" (it is trained on {rows_per_pass} rows at a time: --train.global-batch-size over the most "
                          "workers)")
    whole = own.method("loss")
    what = f"--model.build {own.name}: its loss" if whole else f"--model.loss {loss_name}"
    value = (called(what, whole, tried, trial.batch(rows_per_pass)) if whole
             else called(what, loss, outputs, trial.targets(rows_per_pass)))
    if not isinstance(value, Tensor) or value.dim():
        said = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{what} gives {said}: it must give one number, the mean over the rows")
    if not value.requires_grad:
        raise ConfigError(f"{what}: it does not depend on the module's parameters: compute it from "
                          "what the module gives, without .detach(), .item() or torch.no_grad()")


# ── the trained module ──
def fill(model: nn.Module, weights: Tensors) -> None:
    """Raises: RuntimeError for weights that are not its own."""
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})


def fill_from(opened: Artifact, model: nn.Module, own: OwnModel) -> None:
    """With an artifact's weights. Raises: ArtifactError if they are not of the module that is built now."""
    try:
        fill(model, opened.weights())
    except RuntimeError as error:
        raise refused(opened.uri,
                      [f"{own.name} builds another module now: {' '.join(str(error).split())}"]) from error


def graph_or_none(own: OwnModel, write: Callable[[], bytes]) -> bytes | None:
    """What `write` gives; or None, and a line on standard output, for a module that the exporter cannot write."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # gets the whole graph, where there is something to say of it
            return write()
    except Exception as error:  # noqa: BLE001  whatever the exporter meets in the user's module
        print(f"no endpoint can answer by this model: --model.build {own.name} cannot be written as ONNX: "
              f"{' '.join(str(error).split())[:200]}", flush=True)
        return None


def other_module(name: str, error: Exception) -> ConfigError:
    """What to raise where a checkpoint is of another module than the function builds."""
    return ConfigError(f"--model.build {name} builds another module than this run's checkpoints are of: put the "
                       "function back as it was, or pass another --run.name, or --run.resume never for an attempt "
                       f"with the new one ({' '.join(str(error).split())[:200]})")
