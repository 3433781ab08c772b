"""Text over HTTP, asked for by OpenAI's own client: a small model behind the ingress, without Ray."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import orjson
import pytest
import uvicorn

from cluster.core.network import free_port
from jobs.common.artifact.artifact import Probe
from jobs.transformer.decoding import Decoder
from serving.core.errors import BadRequestError, GoneError, ModelError, ParameterError
from serving.core.settings import EndpointSettings, ModelSettings, routes
from serving.endpoint.http import Endpoint
from serving.text.continuous_batching import ContinuousBatcher
from serving.text.generation import GenerationRequest, PromptUsage
from serving.text.openai_protocol import CompletionRequest, parse
from serving.text.stops import Stops
from serving.traffic import rate_limit
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Table
from tests.clock import Clock
from tests.unit.language_model import POSITIONS, language_model, one_thread

ABOUT = {"inputs": (), "outputs": (), "labels": (), "task": "text-generation", "job": "transformer",
         "max_tokens": POSITIONS, "chats": False, "tool_calls": None,
         "example": Probe(inputs={}, outputs={})}


@dataclass
class Replica:
    """Writes in this process. `deaths`: how often it dies before it writes on."""

    writer: ContinuousBatcher
    deaths: list[int] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=lambda: ABOUT)

    async def ask(self, method: str, *arguments: Any) -> Any:
        return self.about if method == "about" else self._generate(*arguments)

    async def _generate(self, asked: GenerationRequest) -> AsyncGenerator[Any]:
        pieces = 0
        async for found in self.writer.write(asked):
            yield found
            pieces += 1
            if self.deaths and pieces > self.deaths[0]:
                self.deaths.pop(0)
                raise GoneError("the replica died with this request")


def endpoint(replica: Replica, **settings: Any) -> Endpoint:
    made, measures = EndpointSettings(**{"auth": False} | settings), EndpointMetrics()
    table = Table(made, lambda model: (replica.ask, lambda: True), measures.batch)
    models = {f"{name}-1": ModelSettings(name=name, version="1", uri="", digest="abc", generates=name == "lm")
              for name in ("lm", "mlp")}
    table.change(routes({"lm": {"1": 1.0}, "mlp": {"1": 1.0}}, models)["models"])
    return Endpoint(made, table, measures)


@contextmanager
def served(app: Endpoint) -> Iterator[openai.OpenAI]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            yield client
    finally:  # a thread that a failed test left would keep pytest from ending
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with one_thread():
        yield Decoder(language_model())


@pytest.fixture(scope="module")
def replica(decoder: Decoder) -> Replica:
    return Replica(ContinuousBatcher(decoder, 16))


@pytest.fixture(scope="module")
def client(replica: Replica) -> Iterator[openai.OpenAI]:
    with served(endpoint(replica)) as made:
        yield made


ASKED: dict[str, Any] = {"model": "lm", "prompt": "def ", "max_tokens": 30, "seed": 7, "temperature": 0.9}


def streamed(client: openai.OpenAI, **asked: Any) -> tuple[list[str], list[Any]]:
    """The texts of the choices, and the events."""
    events = list(client.completions.create(**ASKED | asked, stream=True))
    texts = [""] * (1 + max(choice.index for event in events for choice in event.choices))
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.text
    return texts, events


# ── what a client gets ──
def test_a_completion_has_what_the_client_wants_and_says_which_model_wrote_it(client: openai.OpenAI,
                                                                              decoder: Decoder) -> None:
    raw = client.completions.with_raw_response.create(**ASKED)
    found = raw.parse()
    assert (raw.headers["x-model-version"], raw.headers["x-artifact-digest"]) == ("1", "abc")
    assert (found.model, found.object, found.system_fingerprint) == ("lm", "text_completion", "1-abc")
    assert found.usage is not None
    prompt = len(decoder.tokens("def "))
    assert found.usage.to_dict() == {"prompt_tokens": prompt, "completion_tokens": 30, "total_tokens": prompt + 30,
                                     "prompt_tokens_details": {"cached_tokens": 0}}
    assert found.choices[0].finish_reason == "length"
    assert found.choices[0].text


def test_a_stream_gives_the_text_that_comes_in_one_piece_without_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(**ASKED | {"max_tokens": 150}, n=3)
    texts, events = streamed(client, n=3, max_tokens=150, stream_options={"include_usage": True})
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 3
    assert len(events) > 10, "it comes piece by piece, of more tokens where the machine is busy"
    assert {choice.index: choice.finish_reason for event in events for choice in event.choices
            if choice.finish_reason} == {
        choice.index: choice.finish_reason for choice in whole.choices}
    assert events[-1].usage == whole.usage
    assert events[-1].choices == []
    assert all(event.usage is None for event in events[:-1])
    assert streamed(client)[1][-1].usage is None


def test_what_a_prompt_shares_with_an_earlier_one_is_told_in_its_usage(decoder: Decoder) -> None:
    writer = ContinuousBatcher(Decoder(language_model(), 1 << 22), 16)
    prompts = ["def one(): " * 8, "def one(): " * 4 + "and what differs"]
    shared = (len(decoder.tokens("def one(): " * 4)) // 16) * 16
    whole = (len(decoder.tokens(prompts[0])) - 1) // 16 * 16
    with served(endpoint(Replica(writer))) as client:
        found = [client.completions.create(**ASKED | {"prompt": prompt}).usage for prompt in (*prompts, prompts)]
        (*_, last) = streamed(client, prompt=prompts[0], stream_options={"include_usage": True})[1]
    told = [each.prompt_tokens_details for each in (*found, last.usage) if each is not None]
    last_whole = (len(decoder.tokens(prompts[1])) - 1) // 16 * 16
    assert [each and each.cached_tokens for each in told] == [0, shared, whole + last_whole, whole]


def test_a_seed_gives_the_same_text_also_beside_others(client: openai.OpenAI) -> None:
    seeds = range(12)
    alone = [client.completions.create(**ASKED | {"seed": seed}).choices[0].text for seed in seeds]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda seed: streamed(client, seed=seed)[0][0], seeds))
    assert together == alone
    assert len(set(alone)) == 12
    unseeded = ASKED | {"seed": openai.omit}
    first, second = (client.completions.create(**unseeded).choices[0].text for _ in range(2))
    assert first != second


def test_a_prompt_may_be_text_or_tokens_one_or_several(client: openai.OpenAI, decoder: Decoder) -> None:
    def texts(prompt: Any, **asked: Any) -> list[str]:
        return [choice.text
                for choice in client.completions.create(**ASKED | {"prompt": prompt, "temperature": 0} | asked).choices]

    one, other = texts("def "), texts("class ")
    assert texts(["def ", "class "]) == one + other
    assert texts(decoder.tokens("def ")) == one
    assert texts([decoder.tokens("def "), decoder.tokens("class ")], n=2) == [*one, *one, *other, *other]
    assert len(texts("", max_tokens=1)) == 1


def test_text_ends_before_a_stop_sequence_though_it_spans_tokens(client: openai.OpenAI) -> None:
    whole = client.completions.create(**ASKED).choices[0].text
    stop = whole[10:14]
    assert whole.index(stop) == 10
    found = client.completions.create(**ASKED, stop=["never to be seen", stop])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (whole[:10], "stop")
    assert found.usage is not None and found.usage.completion_tokens < 30
    texts, events = streamed(client, stop=stop)
    assert texts == [whole[:10]]
    assert not any(choice.text.endswith(stop[0]) for event in events for choice in event.choices), "it was kept back"
    begun = whole[-1] + "never to be seen"
    assert streamed(client,
                    stop=begun)[0] == [whole], "what was kept back comes at the end, if no stop sequence came of it"


def test_a_text_ends_where_the_model_ends_it(client: openai.OpenAI, decoder: Decoder) -> None:
    found = client.completions.create(**ASKED | {"max_tokens": 1500, "temperature": 2.0})
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None and found.usage.completion_tokens < 1500
    assert "<|endoftext|>" not in found.choices[0].text


def test_models_are_those_that_write(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["lm"]
    model = client.models.retrieve("lm")
    assert (model.id, model.object, model.owned_by) == ("lm", "model", "trainyard")
    assert model.to_dict()["max_model_len"] == POSITIONS
    assert time.time() - model.created < 600
    for name in ("mlp", "none"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve(name)
        assert refused.value.code == "model_not_found"


# ── what is refused ──
def test_what_does_not_fit_is_refused_with_the_numbers_in_the_clients_own_form(client: openai.OpenAI) -> None:
    for asked, error, param, message in (
        ({"model": "none"}, openai.NotFoundError, "model", "there is no model 'none': there is lm, mlp"),
        ({"model": "mlp"}, openai.NotFoundError, "model", "model 'mlp' writes no text: see /v2/models/mlp"),
        ({"max_tokens": 2044}, openai.BadRequestError, "max_tokens",
         "the prompt has 5 tokens, and max_tokens is 2044: together 2049, and the model takes 2048"),
        ({"prompt": [1, 300]}, openai.BadRequestError, "prompt", "300 is no token: the model has 0 to 256"),
        ({"n": 8, "prompt": ["a"] * 3}, openai.BadRequestError, "n",
         "24 texts in one request: at most 16 (--max-batch-rows)"),
        ({"logprobs": 1}, openai.BadRequestError, "logprobs",
         "`logprobs` is not supported by this endpoint: leave it out"),
    ):
        for stream in (False, True):
            with pytest.raises(error) as refused:
                client.completions.create(**ASKED | asked, stream=stream)
            body = refused.value.body
            assert isinstance(body, dict)
            assert (body["message"], body["param"], body["type"]) == (message, param, "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="there is nothing at this path"):
        client.get("/assistants", cast_to=object)
    with pytest.raises(openai.NotFoundError, match=r"'lm' has no chat template: .* with --task chat") as refused:
        client.chat.completions.create(model="lm", messages=[{"role": "user", "content": "Hello"}])
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(("given", "param"), [
    ({"model": None}, "model"), ({"model": 5}, "model"), ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"), ({"prompt": [1.5]}, "prompt"), ({"prompt": [True]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"), ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"n": 0}, "n"), ({"n": 9}, "n"), ({"seed": 1.5}, "seed"),
    ({"stop": ""}, "stop"), ({"stop": ["a"] * 5}, "stop"), ({"stop": [1]}, "stop"), ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"), ({"user": 5}, "user"),
    ({"best_of": 2}, "best_of"), ({"echo": True}, "echo"), ({"echo": 0}, "echo"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"), ({"logprobs": 0}, "logprobs"),
    ({"presence_penalty": -1}, "presence_penalty"),
    ({"suffix": "x"}, "suffix"), ({"messages": []}, "messages"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
])
def test_each_parameter_that_is_wrong_or_not_supported_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ParameterError) as refused:
        parse(orjson.dumps(ASKED | given), CompletionRequest)
    assert refused.value.param == param
    assert f"`{param}" in str(refused.value)


def test_what_asks_for_nothing_is_taken() -> None:
    neutral = {"best_of": 1, "echo": False, "frequency_penalty": 0, "logit_bias": {}, "logprobs": None,
               "presence_penalty": 0.0,
               "suffix": "", "user": "someone", "stop": None, "stream_options": None, "n": None, "max_tokens": None}
    found = parse(orjson.dumps(ASKED | neutral), CompletionRequest)
    assert (found.asked.max_tokens, found.asked.n, found.stream) == (16, 1, False)
    for body in (b"", b"[]", b"{", b"5", b"\xff", b'{"seed": 1e400}', b'{"seed": 99999999999999999999999}'):
        with pytest.raises(BadRequestError):
            parse(body, CompletionRequest)


def test_keys_and_rates_are_refused_in_the_clients_form(
    replica: Replica, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.core.api_keys import new_key

    monkeypatch.setattr(rate_limit, "time", Clock())
    key, line = new_key("one")
    (tmp_path / "keys").write_text(line)
    with served(endpoint(replica, auth=True, keys_file=str(tmp_path / "keys"), requests_per_s=2.0)) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key"
        mine = client.with_options(api_key=key)
        with pytest.raises(openai.RateLimitError) as limited:
            for _ in range(5):
                mine.models.list()
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) >= 1


# ── what goes wrong on the way ──
def test_a_deadline_ends_a_text_and_a_stream_says_so(replica: Replica) -> None:
    long: dict[str, Any] = {"max_tokens": 2000, "temperature": 0.0}

    def pieces(timeout_s: float) -> int:
        """How many have come when a stream's time is over; 0 where it had not begun by then."""
        count = 0
        with (served(endpoint(replica, timeout_s=timeout_s)) as client,
              pytest.raises(openai.APIError, match=r"not (finished|answered) within") as broken):
            for _ in client.completions.create(**ASKED | long, stream=True):
                count += 1
        assert not count or broken.value.code == "deadline"
        return count

    with served(endpoint(replica, timeout_s=0.3)) as client:
        with pytest.raises(openai.InternalServerError, match=r"not (finished|answered) within") as refused:
            client.completions.create(**ASKED | long)
        assert refused.value.status_code == 504
    assert any(pieces(timeout_s) > 5 for timeout_s in (0.3, 1.0, 4.0, 16.0)), "a busy machine needs longer"
    until(lambda: replica.writer.rows == 0)


def test_a_caller_who_goes_ends_the_text_at_the_next_token(
    replica: Replica, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Serve says it: by cancelling what he waited for."""

    steps, step = 0, decoder.step

    def counted() -> None:
        nonlocal steps
        steps += 1
        step()

    monkeypatch.setattr(decoder, "step", counted)

    async def scene(stream: bool) -> None:
        nonlocal steps
        began, steps = asyncio.Event(), 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request",
                    "body": orjson.dumps(ASKED | {"max_tokens": 2000, "stream": stream, "temperature": 0})}

        async def send(message: dict[str, Any]) -> None:
            began.set()

        scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
        task = asyncio.ensure_future(endpoint(replica)(scope, receive, send))
        while replica.writer.rows != 1:
            await asyncio.sleep(0.005)
        if stream:
            await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: replica.writer.rows == 0, 20)
        assert steps < 1500, "all of the text would be 2000 tokens"

    for stream in (False, True):
        asyncio.run(scene(stream))


def test_requests_wait_for_room_and_are_refused_beyond_the_bound(decoder: Decoder) -> None:
    narrow = Replica(ContinuousBatcher(Decoder(language_model()), 1))
    app = endpoint(narrow, max_queued=1)
    with served(app) as client, ThreadPoolExecutor(1) as pool:
        first = client.completions.create(**ASKED | {"max_tokens": 400, "temperature": 0}, stream=True)
        next(first)
        second = pool.submit(client.completions.create, **ASKED)
        until(lambda: app.table.route("lm", None).waiting == 1)
        with pytest.raises(openai.InternalServerError, match="1 requests wait already") as refused:
            client.completions.create(**ASKED)
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"]
        assert len(list(first)) > 10
        assert second.result().choices[0].finish_reason == "length"
    assert app.table.route("lm", None).waiting == 0


def test_a_replica_that_dies_ends_a_stream_only_after_text_has_come(client: openai.OpenAI, replica: Replica) -> None:
    wanted = client.completions.create(**ASKED).choices[0].text

    def deaths(*after: int) -> Any:
        return served(endpoint(Replica(replica.writer, list(after))))

    with deaths(0, 5) as dying:
        assert dying.completions.create(**ASKED).choices[0].text == wanted
    with deaths(0, 0) as dying:
        assert streamed(dying)[0] == [wanted]
    with deaths(0, 0, 0) as dying, pytest.raises(openai.InternalServerError) as refused:
        dying.completions.create(**ASKED)
    assert refused.value.status_code == 503
    with deaths(3) as dying, pytest.raises(openai.APIError, match="the replica died with this request"):
        streamed(dying)


def test_a_model_that_fails_is_said_without_details_and_the_next_text_is_written(decoder: Decoder) -> None:
    model = language_model()
    writer = ContinuousBatcher(Decoder(model), 4)
    forward, calls = model.model.forward, [0]

    def broken(**given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("secret of the house")
        return forward(**given)

    model.model.forward = broken
    with served(endpoint(Replica(writer))) as client:
        with pytest.raises(openai.APIError, match="internal error") as failed:
            streamed(client)
        assert "secret" not in json.dumps(failed.value.body)
        assert len(streamed(client)[0][0]) > 5
    assert writer.rows == 0


# ── stop sequences ──
@pytest.mark.parametrize(("stops", "pieces", "through", "stopped"), [
    (["END"], ["a", "E", "N", "x", "EN", "D", "y"], ["a", "", "", "ENx", "", ""], True),
    (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], True),
    (["x", "abcx"], ["abc", "x"], ["", ""], True),
    (["bc", "abcd"], ["ab", "cd"], ["", ""], True),
    (["zz"], ["one z", " two", "z"], ["one ", "z two", ""], False),
    ([], ["any", "thing"], ["any", "thing"], False),
])
def test_text_that_may_be_the_beginning_of_a_stop_sequence_is_kept_back(stops: list[str], pieces: list[str],
                                                                        through: list[str],
                                                                        stopped: bool) -> None:
    made, found = Stops(stops), []
    for piece in pieces:
        found.append(made.through(piece))
        if made.stopped:
            break
    assert (found, made.stopped) == (through, stopped)
    if not stopped:
        assert "".join(found) + made.rest() == "".join(pieces)


def until(condition: Any, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_ends_the_thread_that_writes_ends_every_text_and_the_replica(decoder: Decoder) -> None:
    """Else its callers would wait for ever, and Serve would send it more."""
    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(decoder, name)

        def leave(self, gone: Any) -> None:
            raise ValueError("as the test wants it")

    writer = ContinuousBatcher(Broken(), 16)
    writer.check()

    async def ask() -> None:
        async with asyncio.timeout(20):
            async for _ in writer.write(GenerationRequest(prompts=["def "], max_tokens=3)):
                pass

    asyncio.run(ask())  # has all that it asked for before its row is taken out
    with pytest.raises(ModelError, match="the model failed"):
        asyncio.run(ask())
    with pytest.raises(ValueError, match="as the test wants it"):
        writer.check()


def test_a_model_that_is_let_go_of_ends_its_texts_first_and_then_its_thread() -> None:
    writer = ContinuousBatcher(Decoder(language_model()), 4)

    async def write() -> list[str | None]:
        ends: list[str | None] = []
        async for found in writer.write(GenerationRequest(prompts=["a"], max_tokens=20, seed=0)):
            writer.close()
            ends += [] if isinstance(found, PromptUsage) else [piece[3] for piece in found]
        return ends

    assert asyncio.run(write())[-1] in ("stop", "length")
    writer._running.result(timeout=10)
