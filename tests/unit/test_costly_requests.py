"""Whatever a request holds, others are answered meanwhile: real models behind the ingress, in one event loop,
without Ray."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.core.storage import Store
from jobs.common.artifact.artifact import Probe, write_artifact
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.predictor.predictor import MOST_CHARACTERS
from jobs.transformer.build import build_model
from jobs.transformer.chat.template import built_in
from jobs.transformer.decoding import Decoder
from jobs.transformer.predictor import TextPredictor
from jobs.transformer.text.tokenizer import files_of, train
from serving.core.settings import EndpointSettings, ModelSettings, routes
from serving.endpoint.grpc import Calls
from serving.endpoint.http import Endpoint
from serving.model.replica import Replica
from serving.protocols.open_inference_grpc import MOST_FIELDS, message
from serving.protocols.open_inference_json import MOST_VALUES
from serving.text.continuous_batching import ContinuousBatcher
from serving.text.generation import GenerationRequest
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Table
from tests.unit.language_model import language_model, one_thread
from tests.unit.test_completions import ABOUT as OF_TEXT
from tests.unit.test_http import ask
from tests.unit.test_replica import PYDANTIC, ROWS, description, image_model, picture, replica, with_profiles
from tests.unit.token_rows import config_of

pytestmark = PYDANTIC
LAG_S = 0.1
NAMES = ("images", "texts", "lm")


def text_model(folder: Path) -> Replica:
    spec = TensorSpec(name="text", datatype="BYTES", shape=(-1,))
    config = config_of(task="classify", data={"uri": "languages", "tokenizer": "wordpiece", "max_length": 32})
    tokenizer = train(config, ["the cat sat on a mat", "a dog ran to the cat"])
    details = {"max_length": 32, "vocab_size": len(tokenizer), "pad_id": tokenizer.pad_token_id, "start_id": 0,
               "end_id": None}
    model = build_model(config, details, ("a", "b")).eval()
    model.save_pretrained(folder / "saved")
    files = files_of(tokenizer) | {path.name: path.read_bytes() for path in (folder / "saved").iterdir()}
    about = description("transformer", spec, preprocessing={"max_length": 32, "pad_id": tokenizer.pad_token_id},
                        config={"task": "classify"})
    texts = np.array(["the cat"], object)

    def write(answers: Any) -> Any:
        return write_artifact(Store.open(str(folder)), "texts", description=about,
                              files={f"model/{name}": data for name, data in files.items()},
                              probe=Probe(inputs={"text": texts}, outputs={"probabilities": answers}))

    return replica(write(TextPredictor.load(write(np.zeros((1, 2), np.float32))).predict(texts)))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with one_thread():
        images, texts = image_model(tmp_path_factory.mktemp("images")), text_model(tmp_path_factory.mktemp("texts"))
        writer = ContinuousBatcher(Decoder(language_model(chat_template=built_in("chatml"))), ROWS)

        async def write(method: str, *arguments: Any) -> Any:
            return OF_TEXT | {"chats": True} if method == "about" else _refusing(writer, *arguments)

        def connect(settings: ModelSettings) -> Any:
            return {"images": of(images), "texts": of(texts), "lm": write}[settings.name], lambda: True

        settings, measures = EndpointSettings(auth=False, max_request_bytes=32 << 20), EndpointMetrics()
        table = Table(settings, connect, measures.batch)
        models = {f"{name}-1": ModelSettings(name=name, version="1", uri="", digest="d", generates=name == "lm",
                                             max_batch_rows=ROWS) for name in NAMES}
        table.change(routes({name: {"1": 1.0} for name in NAMES}, models)["models"])
        yield Endpoint(settings, table, measures)


async def _refusing(writer: ContinuousBatcher, asked: GenerationRequest) -> Any:
    async for found in writer.write(asked):
        yield found


def of(replica: Replica) -> Callable[..., Awaitable[Any]]:
    async def call(method: str, *arguments: Any) -> Any:
        return replica.about() if method == "about" else await getattr(replica, method)(*arguments)

    return call


# ── what is sent ──
def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = picture("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 5
    return exif.tobytes()


def of_files(*files: bytes) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(files)],
                        "parameters": {"content_type": "base64"},
                        "data": [base64.b64encode(file).decode() for file in files]}]}


def of_texts(*texts: str) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}


def of_pixels(data: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [ROWS, 28, 28, 1], "data": data}]}


def of_messages(*said: str) -> dict[str, Any]:
    return {"model": "lm", "messages": [{"role": "user", "content": text} for text in said]}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


IMAGES, TEXTS, COMPLETIONS = "/v2/models/images/infer", "/v2/models/texts/infer", "/v1/completions"
CHATS = "/v1/chat/completions"
COSTLY: dict[str, tuple[str, Callable[[], Any], int, str]] = {
    "strings among numbers": (IMAGES, lambda: of_pixels(["x" * 50_000, *[""] * (ROWS * 784 - 1)]), 400,
                              "holds strings"),
    "as many numbers as are read": (IMAGES, lambda: of_pixels([128] * (MOST_VALUES - 9)), 400, "28, 28, 1] says 50176"),
    "as many lists as are read": (IMAGES, lambda: of_pixels([[]] * 65_000), 400, "has 0 values in shape [65000, 0]"),
    "empty objects": (IMAGES, lambda: b'{"inputs": [' + b"{}," * 5_000_000 + b"{}]}", 400, "commas: at most"),
    "large pictures": (IMAGES, lambda: of_files(*[picture("PNG")] * ROWS), 400, "25,000,000 pixels together"),
    "large pictures to explain": ("/v2/models/images/explain", lambda: of_files(*[picture("PNG")] * 8), 400,
                                  "pixels together"),
    "a PNG": (IMAGES, lambda: of_files(picture("PNG")), 200, ""),
    "a JPEG": (IMAGES, lambda: of_files(picture("JPEG", progressive=True)), 200, ""),
    "a WebP": (IMAGES, lambda: of_files(picture("WEBP", method=0)), 200, ""),
    "a transparent PNG that is turned": (IMAGES, lambda: of_files(picture("PNG", mode="RGBA", exif=turned())), 200, ""),
    "a PNG of 16 bits": (IMAGES, lambda: of_files(picture("PNG", mode="I;16", transparency=1)), 200, ""),
    "a JPEG of many scans": (IMAGES, lambda: of_files(with_scans(1000)), 400, "compressed texts or scans"),
    "a PNG of many profiles": (IMAGES, lambda: of_files(with_profiles(1000)), 400, "compressed texts or scans"),
    "long texts": (TEXTS, lambda: of_texts(*["the cat! " * 455] * ROWS), 200, ""),
    "a text that is too long": (TEXTS, lambda: of_texts("the cat! " * 500_000), 400,
                                "4,500,000 characters: at most 262,144"),
    "a long text to explain": ("/v2/models/texts/explain", lambda: of_texts("the cat! " * 29_000), 200, ""),
    "a long prompt": (COMPLETIONS, lambda: {"model": "lm", "prompt": "def " * (MOST_CHARACTERS // 4)}, 400,
                      "the model takes 2048"),
    "a prompt that is too long": (COMPLETIONS, lambda: {"model": "lm", "prompt": "def " * 1_000_000}, 400,
                                  "at most 262,144"),
    "many prompts": (COMPLETIONS, lambda: {"model": "lm", "prompt": ["a"] * 10**6}, 400, "commas: at most"),
    "many prompts that are read": (COMPLETIONS, lambda: {"model": "lm", "prompt": ["a"] * 400_000}, 400, "at most 64"),
    "a conversation that is too long": (CHATS, lambda: of_messages("the cat! " * 500_000), 400, "at most 262,144"),
    "a conversation of many messages": (CHATS, lambda: of_messages(*["a"] * 60_000), 400, "at most 262,144"),
    "a long conversation": (CHATS, lambda: of_messages(*["a" * 600] * 400), 400, "the model takes 2048"),
    "a conversation of many special tokens": (CHATS, lambda: of_messages("<|im_end|>" * 26_000), 400,
                                              "the model takes 2048"),
    "a deep schema": (CHATS, lambda: of_messages("a") | {"response_format": {
        "type": "json_schema", "json_schema": {"schema": nested(200)}}}, 400, "cannot be kept to"),
    "a deeper schema": (CHATS, lambda: of_messages("a") | {"response_format": {
        "type": "json_schema", "json_schema": {"schema": nested(300)}}}, 400, "nested too deeply"),
    "a deep tool": (CHATS, lambda: of_messages("a") | {"tools": [{
        "type": "function", "function": {"name": "a", "parameters": nested(300)}}]}, 400, "nested too deeply"),
    "many tokens": (COMPLETIONS, lambda: {"model": "lm", "prompt": [1] * 500_000}, 400, "the model takes 2048"),
}


async def lag(app: Endpoint, request: Awaitable[Any]) -> tuple[Any, float]:
    """What is answered, and the longest time for which `/v2/health/live` was not, in seconds that this process
    computed: a machine that is busy with others' work makes these no more.
    """
    longest, task, last = 0.0, asyncio.ensure_future(request), time.process_time()
    while not task.done():
        await asyncio.sleep(0.001)
        assert (await ask(app, "/v2/health/live", method="GET"))[0] == 200
        longest, last = max(longest, time.process_time() - last), time.process_time()
    return await task, longest


@pytest.mark.parametrize("costly", COSTLY)
def test_whether_the_server_lives_is_answered_whatever_a_request_holds(app: Endpoint, costly: str) -> None:
    path, make, status, says = COSTLY[costly]
    made = make()
    body = made if isinstance(made, bytes) else json.dumps(made).encode()

    async def scene() -> float:
        answer, seconds = await lag(app, ask(app, path, body))
        assert answer[0] == status, answer
        assert says in json.dumps(answer[2])
        return seconds

    assert any(asyncio.run(scene()) < LAG_S for _ in range(3))


def test_so_it_is_over_grpc(app: Endpoint) -> None:
    class Context:
        said = ""

        def invocation_metadata(self) -> Any:
            return []

        def set_code(self, code: Any) -> None: ...
        def set_trailing_metadata(self, trailer: Any) -> None: ...
        def set_details(self, details: str) -> None:
            self.said = details

    def typed(count: int) -> bytes:
        call = message("ModelInferRequest")(model_name="images")
        call.inputs.add(name="image", datatype="UINT8",
                        shape=[ROWS, 28, 28, 1]).contents.uint_contents.extend([1] * count)
        return call.SerializeToString()

    def of_files_alone(*files: bytes) -> bytes:
        call = message("ModelInferRequest")(model_name="images")
        call.inputs.add(name="image", datatype="BYTES", shape=[len(files)]).contents.bytes_contents.extend(files)
        return call.SerializeToString()

    async def scene(data: bytes, says: str) -> float:
        context = Context()
        _, seconds = await lag(app, Calls(app.core)("ModelInfer", data, context))
        assert says in context.said
        return seconds

    for data, says in (
        (b"\x2a\0" * 8_000_000, f"more than {MOST_FIELDS:,} fields"), (typed(10_000_000), "at most 524,288"),
        (typed(MOST_VALUES), "its shape [64, 28, 28, 1] says 50176"),
        (of_files_alone(*[picture("PNG")] * ROWS), "25,000,000 pixels together"), (of_files_alone(picture("PNG")), ""),
    ):
        assert any(asyncio.run(scene(data, says)) < LAG_S for _ in range(3)), says
