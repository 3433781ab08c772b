"""One replica of a version of a model: a verified artifact,
checked against its own probe rows and warmed up before it answers."""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, cast

import numpy as np

from cluster.core.background import in_loop
from cluster.core.documents import JsonObject
from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.predictor.find import explains, load_predictor
from jobs.common.predictor.loading import check_probe, embedder_of, use_threads
from jobs.common.predictor.predictor import Embedder, Explaining, Predictor
from serving.core.errors import BadRequestError, ModelError, RefusedError
from serving.core.settings import HEARTBEAT_S, ModelSettings
from serving.hardening.serve_patches import keep_calls_to_this_node
from serving.model.drift_monitor import Drift, watch
from serving.model.explanations import put_together, specs

T = TypeVar("T")
Tensors = Mapping[str, Array]
_QUICK_S = 0.005
"""A call that is done sooner is made in the event loop itself: handing it to a thread costs more than it frees."""
_FAILED = "the model failed: see the replica's log"
_log = logging.getLogger(__name__)


class Replica:
    """A Serve deployment's class. Raises at its start: ArtifactError, and it gets no requests then."""

    def __init__(self, settings: JsonObject) -> None:
        self.settings = ModelSettings(**settings)
        keep_calls_to_this_node()
        use_threads(max(1, int(self.settings.cpus)))
        artifact = open_artifact(self.settings.uri, self.settings.digest)
        self._predictor = load_predictor(artifact, self.settings.jobs, self.settings.base)
        check_probe(self._predictor, artifact)
        seconds = warm_up(self._predictor, artifact, self.settings.max_batch_rows)
        self._embedder = embedder_of(self._predictor, artifact)
        self._drift = watch(artifact, self._predictor, self.settings)
        self._watching: asyncio.Task[None] | None = None
        self._texts = any(spec.datatype == "BYTES" for spec in artifact.manifest.description.inputs)
        here = seconds < _QUICK_S and not self._texts  # what a text takes depends on what is in it
        self._thread = None if here else ThreadPoolExecutor(1, thread_name_prefix="model")
        self._explaining = ThreadPoolExecutor(1, thread_name_prefix="explanation")
        self._decoding = ThreadPoolExecutor(max(1, int(self.settings.cpus)), thread_name_prefix="decoding")
        self._about = describe(artifact, self.settings.jobs)

    def about(self) -> JsonObject:
        """What the ingress needs to know of the model."""
        return self._about

    async def infer(self, requests: Sequence[Tensors]) -> list[Tensors | RefusedError]:
        """Answers in the order of the requests."""
        if self._watching is None and self._drift is not None:
            self._watching = in_loop(_watch(weakref.ref(self)), "the watch over drift")
        if self._texts or all(array.dtype != object for inputs in requests for array in inputs.values()):
            work = partial(answers, self._predictor, requests, self._drift)
        else:
            work = partial(answered, self._predictor, await self._unpacked(requests), self._drift)
        return await self._computed(work)

    async def embed(self, requests: Sequence[Tensors]) -> list[Tensors | RefusedError]:
        """Vectors of texts, in the order of the requests."""
        assert self._embedder is not None, "the ingress asks for those of a model that has them"
        return await self._computed(partial(answers, self._embedder, requests))

    async def _computed(self, work: Callable[[], T]) -> T:
        return work() if self._thread is None else await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _unpacked(self, requests: Sequence[Tensors]) -> list[Array | RefusedError]:
        """The rows of requests of which some have files: in threads, beside the model,
        which answers others meanwhile."""
        loop = asyncio.get_running_loop()
        coming = [loop.run_in_executor(self._decoding, decoded, self._predictor, each) for each in requests]
        return await asyncio.gather(*coming)

    async def count_drift(self) -> bool:
        """Once. Returns whether there is any to be counted."""
        if self._drift is None:
            return False
        try:
            if self._thread is None:
                self._drift.count()
            else:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._drift.count)
        except Exception:  # noqa: BLE001  (whoever asks for answers gets them)
            _log.exception("drift of %s version %s is not measured any more", self.settings.name, self.settings.version)
            self._drift = None
        return True

    async def explain(self, inputs: Tensors) -> Tensors | RefusedError:
        """Row by row in a thread of its own: predictions go on,
        and a request that is called off ends at its next row."""
        loop = asyncio.get_running_loop()
        explain = cast(Explaining, self._predictor).explain
        rows = await loop.run_in_executor(self._explaining, decoded, self._predictor, inputs)
        if isinstance(rows, RefusedError):
            return rows
        try:
            found = [await loop.run_in_executor(self._explaining, explain, rows[place : place + 1])
                     for place in range(len(rows))]
        except InputError as error:
            return BadRequestError(str(error))
        except Exception:  # noqa: BLE001  (as in `decoded`)
            _log.exception("the model failed to explain")
            return ModelError("the model failed to explain: see the replica's log")
        return put_together(found, self._about["labels"])


async def _watch(watched: "weakref.ref[Replica]") -> None:
    """Until the replica is let go of, which this does not keep alive."""
    while (replica := watched()) is not None and await replica.count_drift():
        del replica
        await asyncio.sleep(HEARTBEAT_S)


def describe(artifact: Artifact, jobs: Sequence[str]) -> JsonObject:
    """What the ingress needs to know of a model. explanation: the tensors of one; none where it does not explain.

    jobs: as in ModelSettings.
    """
    about = artifact.manifest.description
    return {"job": about.job, "task": about.task, "inputs": about.inputs, "outputs": about.outputs,
            "labels": about.labels,
            "variant": about.variant.name if about.variant else "", "example": artifact.probe(),
            "picture": _picture(about.preprocessing.get("picture")),
            "explanation": specs(about.inputs) if explains(artifact, jobs) else (), "chats": False,
            "embedding": about.embedding, "max_tokens": about.preprocessing.get("max_length")}


def _picture(rule: object) -> dict[str, str]:
    """Of the rule by which a model of images reads picture files, what a page draws them by."""
    known = cast(JsonObject, rule) if isinstance(rule, dict) else {}
    return {f"picture_{name}": str(known[name]) for name in ("fit", "background") if name in known}


def answers(predictor: Embedder, requests: Sequence[Tensors],
            drift: Drift | None = None) -> list[Tensors | RefusedError]:
    """Of several requests, whose rows go through the model together. What is wrong with one leaves the others be."""
    return answered(predictor, [decoded(predictor, inputs) for inputs in requests], drift)


def decoded(predictor: Embedder, inputs: Tensors) -> Array | RefusedError:
    """A request's rows, or what is wrong with it."""
    try:
        return predictor.decode(inputs)
    except InputError as error:
        return BadRequestError(str(error))
    except Exception:  # noqa: BLE001  (its request gets an answer, the others theirs, and the replica goes on)
        _log.exception("a request could not be decoded")
        return ModelError(_FAILED)


def answered(predictor: Embedder, requests: Sequence[Array | RefusedError], drift: Drift | None = None) \
        -> list[Tensors | RefusedError]:
    """Of requests that have been decoded."""
    found = iter(_predicted(predictor, [rows for rows in requests if not isinstance(rows, RefusedError)], drift))
    return [rows if isinstance(rows, RefusedError) else next(found) for rows in requests]


def _predicted(predictor: Embedder, batches: Sequence[Array], drift: Drift | None) -> list[Tensors | RefusedError]:
    """The answers to each request's rows, computed together; where that fails each alone, so that it fails its own."""
    if not batches:
        return []
    try:
        rows = batches[0] if len(batches) == 1 else np.concatenate(batches)
        predicted = predictor.predict(rows)
        ends = np.cumsum([len(each) for each in batches]).tolist()
        made = [predictor.encode(predicted[end - len(each) : end]) for each, end in zip(batches, ends, strict=True)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001  (as in `decoded`; a panic of Rust's code, as in tokenizers, is no Exception)
        _log.exception("the model failed with %d rows of %d requests", sum(map(len, batches)), len(batches))
        return [ModelError(_FAILED)] if len(batches) == 1 else [_predicted(predictor, [each], drift)[0]
                                                                for each in batches]
    if drift is not None:
        drift.see(rows, predicted)
    return [*made]


def warm_up(predictor: Predictor, artifact: Artifact, max_rows: int) -> float:
    """Answers batches of all sizes once. Returns the seconds that a full one took."""
    rows = predictor.decode(artifact.probe().inputs)
    size, seconds = 1, 0.0
    while size <= max_rows:
        batch = np.resize(rows, (size, *rows.shape[1:]))
        predictor.predict(batch)
        began = time.perf_counter()
        predictor.predict(batch)
        seconds = time.perf_counter() - began
        size *= 2
    return seconds
