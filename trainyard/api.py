"""Training from Python: a class of yours, a line that trains it, and what the run has left.

    import trainyard as ty

    class Mine:
        def build(self, info):            # the module, from the data's shapes and classes
            return nn.Linear(info.num_numbers, info.num_outputs)

    if __name__ == "__main__":            # workers import this file, too
        run = ty.train(Mine(), data="rows.csv", target="price", workers=2)
        print(run.metrics["test"], run.report)

The same file goes to a cluster with `trainyard submit my_file.py`.
"""

import atexit
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.common.predicting.loaded import LoadedModel

_training = False
"""Whether this process trains now: then a module that it imports must not begin to train, too."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    name: str
    folder: str
    """Path or URI of what it has left."""
    metrics: Mapping[str, Mapping[str, float]]
    """By split and name: `run.metrics["test"]["accuracy"]`."""
    artifact: str
    """Path or URI of the model, as `trainyard serve up` takes it."""
    report: str
    """Path or URI of the page about the run."""
    model_version: str | None
    """Of the registry; None where it could not be registered."""


def train(model: object = None, data: str | Mapping[str, object] | None = None, *, target: str | None = None,
          job: str | None = None, workers: int | str = 1, epochs: int | None = None, name: str | None = None,
          storage: str | None = None, engine: str | None = None, model_options: Mapping[str, object] | None = None,
          **groups: Mapping[str, object]) -> Run:
    """Trains a model and returns the finished run; a run of this name that was cut off goes on, one that is done is
    only read.

    model: an instance of a class of yours (jobs/README.md says which methods it may have) or the class; a function
    `build(info)`; or None for the job's own model. Its class or function must be one that workers can import. data: a
    path or URI as `--data.uri` takes it, or fields of the config's group: `{"uri": "rows.csv", "ignore": "id"}`.
    target: the column that is predicted. job: `tabular` or `pytorch`; by default as the data says. workers: N, or
    "MIN:MAX". name: by default the class's, in small letters. engine: `ray` or `local`. model_options: more fields of
    the group `model`: `{"loss": "quantile"}`. groups: any other field of the job's config, by group:
    `optim={"lr": 1e-3}`.

    Raises: TrainyardError, with one sentence that says what is wrong; a script ends with it.
    """
    global _training
    from cluster.core.errors import ConfigError
    from jobs.common.config import from_dict
    from jobs.common.runs.run import Run as Life
    from jobs.common.runs.run_folder import RESULT_FILE, RunFolder, read_record
    from jobs.common.training.find_job import find_job

    _end_scripts_with_one_line()
    if _training:
        raise ConfigError("ty.train was called while a module was imported: put the call under "
                          "if __name__ == \"__main__\":, since workers import the file of your class")
    given: dict[str, object] = {**groups, "model_options": model_options or {}}
    if odd := [name for name, fields in given.items() if not isinstance(fields, Mapping)]:
        raise ConfigError(f"ty.train: {odd[0]} must be a dictionary of fields, such as optim={{'lr': 0.001}}")
    of_data = dict(data) if isinstance(data, Mapping) else {"uri": data}
    values = _values(model, of_data, target, {"workers": workers, "name": name, "storage": storage, "engine": engine},
                     epochs, {"model": model_options or {}, **groups})
    found = find_job(job or _job_of(values["data"].get("uri")))
    config = from_dict(found.config_type, values)
    _training = True
    try:
        Life(found, config).carry_out()
    finally:
        _training = False
    folder = RunFolder.find(config).store
    result = read_record(folder, RESULT_FILE)
    return Run(name=config.run.name, folder=folder.location(), metrics=result["metrics"], artifact=result["artifact"],
               report=result["report"], model_version=result["model_version"])


def load(model: str, *, storage: str | None = None, tracking_uri: str | None = None, jobs: Sequence[str] = ()) \
        -> "LoadedModel":
    """A finished model that answers as an endpoint does: `ty.load("models:/digits@champion").predict(rows)`.

    Every file of it is verified, and it must answer its own rows as it did when it was made. model: a version of the
    registry, or the path or URI of an artifact, such as `run.artifact`. storage, tracking_uri: where the registry is,
    as for `trainyard registry`. jobs: packages outside Trainyard whose code may be imported for it.

    Raises: TrainyardError, with one sentence that says what is wrong; a script ends with it.
    """
    from cluster.core.storage import Store
    from jobs.common.config import RunConfig
    from jobs.common.predicting.loaded import LoadedModel
    from jobs.common.predicting.model import answering, find_model

    _end_scripts_with_one_line()
    found = find_model(model, tracking_uri, Store.open(storage or RunConfig.storage), jobs)
    return LoadedModel(artifact=found.artifact, predictor=answering(found.artifact, jobs))


def _values(model: object, data: Mapping[str, object], target: str | None, run: Mapping[str, object],
            epochs: int | None,
            groups: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """The config's values by group and field."""
    named = _named(model) if model is not None else {}
    default = str(named["build"]).rpartition(":")[2].lower().replace("_", "-") if named else None
    known = {"run": {**run, "name": run["name"] or default}, "data": {**data, "label_column": target},
             "train": {"epochs": epochs}, "model": named}
    made: dict[str, dict[str, object]] = {group: {**fields} for group, fields in groups.items()}
    for group, fields in known.items():
        given = {field: value for field, value in fields.items() if value is not None}
        made[group] = {**made.get(group, {}), **given}
    return made


def _named(model: object) -> dict[str, object]:
    """`build` and `settings` of the config's group `model`. Raises: ConfigError for what workers could not import."""
    from cluster.core.documents import parse_json
    from cluster.core.errors import ConfigError

    is_instance = not isinstance(model, type) and hasattr(model, "build")
    kind: Any = type(model) if is_instance else model
    if not callable(kind) or not hasattr(kind, "__qualname__"):
        raise ConfigError(f"ty.train: {model!r} is no model: give an instance of a class with a method `build(self, "
                          "info)`, or a function")
    if "<" in kind.__qualname__ or "." in kind.__qualname__:
        raise ConfigError(f"ty.train: {kind.__qualname__} is defined inside a function or a class, where no worker can "
                          "import it: define it at the top of its file")
    settings: dict[str, object] = {**getattr(model, "__dict__", {})} if is_instance else {}
    try:
        text = json.dumps(settings, allow_nan=False) if settings else None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"ty.train: the attributes of {kind.__name__} are its settings, which the run keeps as JSON "
                          f"({error}): keep numbers, texts and lists in it, and make the rest in `build`") from error
    if text is not None and parse_json(text) != settings:
        raise ConfigError(f"ty.train: the attributes of {kind.__name__} are its settings, which the run keeps as JSON, "
                          "and it has some that are not the same then: keep numbers, texts and lists in it")
    return {"build": f"{_module_of(kind)}:{kind.__name__}", "settings": text}


def _module_of(kind: Any) -> str:
    """The name by which workers import its module. Raises: ConfigError for one that is in no file."""
    from cluster.core.errors import ConfigError

    if kind.__module__ != "__main__":
        return kind.__module__
    main: ModuleType = sys.modules["__main__"]
    if main.__spec__ is not None:
        return main.__spec__.name.removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).stem.isidentifier():
        raise ConfigError(f"ty.train: {kind.__name__} is in no file that workers could import: write it to one (in a "
                          "notebook with %%writefile my_model.py as the first line of its cell), and import it from "
                          "there")
    return Path(file).stem


def _job_of(uri: object) -> str:
    """`tabular` for tables, else `pytorch`; of Parquet the columns decide."""
    from cluster.core.errors import DataError
    from jobs.common.tables.config import TableDataConfig
    from jobs.common.tables.sources import EMBEDDED, CsvTable, find_table

    if not uri or str(uri) == "digits":
        return "pytorch"
    if str(uri) in EMBEDDED:
        return "tabular"
    try:
        (first, *_), *_ = find_table(str(uri), TableDataConfig(uri=str(uri))).parts.values()
        names: Sequence[str] = () if isinstance(first, CsvTable) else next(first.batches()).schema.names
    except (DataError, StopIteration):
        return "pytorch"  # which says what is wrong with it
    return "pytorch" if "image" in names else "tabular"


def _end_scripts_with_one_line() -> None:
    """An expected error that nobody catches is one line on standard error, no stack trace, and the exit code of the
    command `trainyard train`."""
    from cluster.core.errors import TrainyardError

    code: list[int] = []

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TrainyardError):
            print(f"error: {error}", file=sys.stderr, flush=True)
            code.append(error.exit_code)
        else:
            sys.__excepthook__(kind, error, trace)

    def leave() -> None:  # an uncaught exception's code is 1, whatever it is
        if code:
            sys.stdout.flush()
            os._exit(code[0])

    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = hook
        atexit.register(leave)
