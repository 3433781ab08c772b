"""Text from an endpoint: tokens a second of 1, 8 and 32 streams, and the time to the first token, against plain
`generate`; and that time after long prompts that begin alike."""

import argparse
import ast
import http.client
import inspect
import json
import statistics
import tarfile
import threading
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.network import free_port
from jobs.common.artifact.artifact import open_artifact
from serving.core.api_keys import new_key
from tests.benchmarks.results import Figure, Outcome
from tests.runs import python, run

TITLE = "text from an endpoint: tokens a second and the first token, against plain `generate` one after the other"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rounds: int = 3
    repeats: int = 3
    """Of one stream, and of prompts that begin alike."""
    tokens: int = 200
    streams: tuple[int, ...] = (1, 8, 32)
    train_steps: int = 200


QUICK = Settings(rounds=1, repeats=1, tokens=30, streams=(1, 8), train_steps=20)
SOURCES = (argparse, ast, inspect, statistics, tarfile, threading, typing)
PLACEMENTS = ("ingress", "replicas")
NOTES = (
    "The Transformer job's `tiny` preset (4 layers of width 128, 4,096 words), trained for a moment on some Python "
    "source; each prompt is a few tokens long, each text drawn at temperature 1 with a seed of its own, up to the "
    "stated number of tokens or the model's own end. By turns, medians over the rounds; each computes with one thread. "
    "What is over `generate`'s is the median of each measurement over the one that was taken right after it.",
    "Ours: `python -m serving up`, so with a key, validation, metrics and HAProxy, streamed as server-sent events to "
    "one client process with a thread a stream; the model in the ingress's process, and in a replica of its own.",
    "`generate`: transformers' own, called for one prompt after the other in a process that does nothing else, while "
    "the endpoint is idle; the first token of a text comes when those before it are done, as for callers who came "
    "together.",
    "Long prompts: the same 4,000 characters of Python source, after a few that no other prompt has (a beginning of "
    "its own) or before them (begins as others), asked one after the other; of the latter all but the last tokens are "
    "known.",
)
OWN, ALIKE = "a long prompt with a beginning of its own", "a long prompt that begins as others"
LONG = inspect.getsource(argparse)[:4000]


@dataclass(frozen=True)
class Server:
    port: int
    key: str

    def stream(self, number: int, tokens: int, **more: Any) -> tuple[int, float]:
        """Tokens, and seconds to the first."""
        body = asked(number) | more | {"model": "lm", "max_tokens": tokens, "stream": True,
                                "stream_options": {"include_usage": True}}
        connection, began, first, written = http.client.HTTPConnection("127.0.0.1",
                                                                       self.port), time.perf_counter(), 0.0, 0
        connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {self.key}"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - began
                usage = json.loads(line[6:])["usage"]
                written = usage["completion_tokens"] if usage else written
        assert written, "the stream broke off"
        return written, first


def asked(number: int) -> dict[str, Any]:
    return {"prompt": f"def f{number}(", "temperature": 1.0, "seed": number}


@contextmanager
def server(artifact: str, placement: str, folder: Path) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    made = Server(free_port(), (both := new_key("benchmark"))[0])
    (folder / "keys").write_text(both[1])
    command = ["up", "--model", f"lm={artifact}", "--port", str(made.port), "--keys", str(folder / "keys"),
               "--placement", placement, "--timeout-s", "300"]
    with python("serving", *command, folder=folder, env={"TRAINYARD_HOME": str(folder)}) as started:
        started.until(lambda: "ready: " in started.text, 120)
        yield made


def together(target: Server, streams: int, tokens: int) -> tuple[float, float]:
    """Tokens a second of all streams, and the median of their seconds to the first."""
    found: list[tuple[int, float]] = []
    threads = [threading.Thread(target=lambda k=k: found.append(target.stream(k, tokens))) for k in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    assert len(found) == streams
    return sum(written for written, _ in found) / seconds, statistics.median(first for _, first in found)


class Alone:
    """transformers' `generate`, one prompt after the other."""

    def __init__(self, artifact: str) -> None:
        import torch

        from jobs.transformer.model import LanguageModel, load

        torch.set_num_threads(1)
        model = load(artifact)
        assert isinstance(model, LanguageModel)
        self._torch, self._model = torch, model

    def together(self, streams: int, tokens: int) -> tuple[float, float]:
        torch, model = self._torch, self._model
        written, firsts, began = 0, [], time.perf_counter()
        for number in range(streams):
            prompt = asked(number)["prompt"]
            ids = torch.tensor([[model.start_id, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
            torch.manual_seed(number)
            streamer = _First()
            with torch.inference_mode():
                made = model.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=True, temperature=1.0,
                    top_k=0,
                    use_cache=True, eos_token_id=model.start_id, pad_token_id=model.start_id, streamer=streamer)
            written += made.shape[1] - ids.shape[1]
            firsts.append(streamer.at - began)
        return written / (time.perf_counter() - began), statistics.median(firsts)


class _First:
    """A streamer of `generate`, which puts the prompt first: notes when the first token after it has come."""

    def __init__(self) -> None:
        self._puts, self.at = 0, 0.0

    def put(self, value: Any) -> None:
        self._puts += 1
        if self._puts == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


def measure(settings: Settings, workspace: Path) -> Outcome:
    (workspace / "source.txt").write_text("".join(inspect.getsource(module) for module in SOURCES))
    with run(workspace / "lm", "--task", "generate", "--data.uri", str(workspace / "source.txt"), "--data.tokenizer",
             "bpe",
             "--data.vocab-size", "4096", "--data.max-length", "256", "--run.tracking-uri", "none", "--train.epochs",
             "20",
             "--train.max-steps", str(settings.train_steps), "--eval.samples", "0", "--eval.bootstrap-samples", "100",
             "--train.global-batch-size", "8", quick=False, job="transformer") as job:
        artifact = open_artifact(job.finished(900)["artifact"]).uri
    alone, found = Alone(artifact), dict[str, list[float]]()

    def note(name: str, streams: int, measured: tuple[float, float]) -> float:
        for what, value in zip(("tokens a second", "first token"), measured, strict=True):
            found.setdefault(f"{streams} streams, {name}: {what}", []).append(value)
        return measured[0]

    for turn in range(settings.rounds):
        for placement in PLACEMENTS:
            with server(artifact, placement, workspace / f"{placement}-{turn}") as target:
                together(target, 2, 5)
                alone.together(1, 5)
                for streams in settings.streams:
                    for _ in range(settings.repeats if streams == 1 else 1):
                        ours = note(placement, streams, together(target, streams, settings.tokens))
                        plain = note("generate", streams, alone.together(streams, settings.tokens))
                        found.setdefault(f"{streams} streams, {placement}: over `generate`'s", []).append(ours / plain)
                for name, seconds in long_prompts(target, settings.repeats).items():
                    found.setdefault(f"{placement}, {name}", []).append(seconds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return Outcome(figures=tuple(figures(settings, medians)), samples=found, notes=NOTES)


def long_prompts(target: Server, repeats: int) -> dict[str, float]:
    """Seconds to the first token."""
    target.stream(0, 1, prompt=LONG)
    own = [target.stream(0, 1, prompt=f"# {k} {LONG}")[1] for k in range(5 * repeats)]
    alike = [target.stream(0, 1, prompt=f"{LONG}# {k}")[1] for k in range(5 * repeats)]
    return {OWN: statistics.median(own), ALIKE: statistics.median(alike)}


def figures(settings: Settings, medians: dict[str, float]) -> Iterator[Figure]:
    for streams in settings.streams:
        for name in (*PLACEMENTS, "generate"):
            of = f"{streams} streams, {name}"
            yield Figure(name=f"{of}: tokens a second", value=medians[f"{of}: tokens a second"])
            yield Figure(name=f"{of}: first token, p50", value=1000 * medians[f"{of}: first token"], unit="ms")
        ratio = max(medians[f"{streams} streams, {name}: over `generate`'s"] for name in PLACEMENTS)
        yield Figure(name=f"{streams} streams: tokens a second over `generate`'s", value=ratio,
                     at_least={1: 1.0, 8: 1.5, 32: 5.0}[streams])
    for placement in PLACEMENTS:
        own, alike = medians[f"{placement}, {OWN}"], medians[f"{placement}, {ALIKE}"]
        yield Figure(name=f"{placement}, {OWN}: first token, p50", value=1000 * own, unit="ms")
        yield Figure(name=f"{placement}, {ALIKE}: first token, p50", value=1000 * alike, unit="ms")
        yield Figure(name=f"{placement}, the former over the latter", value=own / alike, at_least=2.0)
