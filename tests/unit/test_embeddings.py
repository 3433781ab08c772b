"""Vectors of texts, asked for by OpenAI's own client: those of MiniLM against its own published way to make them, and
of small models that nobody has trained; behind the ingress, without Ray."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import orjson
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from cluster.core.errors import ArtifactError, ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, Probe, open_artifact, write_artifact
from jobs.common.artifact.manifest import NO_EMBEDDINGS, Embedding
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.predicting.predict import main as predict
from jobs.transformer.build import build_model
from jobs.transformer.embedding.embedder import Embedder
from jobs.transformer.embedding.pooling import embedding_of
from jobs.transformer.model import Classifier, load
from jobs.transformer.predictor import TextPredictor
from jobs.transformer.weights.lora import put_on
from serving.commands.deploy_config import find
from serving.core.errors import BadRequestError, ParameterError
from serving.core.settings import EndpointSettings, ModelSettings, routes
from serving.endpoint.http import Endpoint
from serving.model.replica import Replica
from serving.text.embeddings import EmbeddingRequest
from serving.text.openai_protocol import parse
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Table
from tests.pretrained import minilm
from tests.unit.language_model import one_thread
from tests.unit.test_completions import served
from tests.unit.test_costly_requests import of
from tests.unit.test_replica import PYDANTIC, description, replica
from tests.unit.token_rows import config_of

pytestmark = PYDANTIC
TEXTS = ["A cat sat on the mat.", "Ein kurzer Satz", "one", "The quick brown fox jumps over the lazy dog. " * 5]
MOST = 128


def encoder(folder: Path, model: Any, embedding: Embedding | None, rule: dict[str, Any] | None = None) -> Artifact:
    """An artifact with MiniLM's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    for each in (model, tokenizer):
        each.save_pretrained(folder / "saved")
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    about = description("transformer", TensorSpec(name="text", datatype="BYTES", shape=(-1,)), config={},
                        preprocessing={"max_length": MOST, "pad_id": 0, "text": rule or {}}, embedding=embedding)
    texts = np.array(["the cat"], object)

    def write(answers: Any) -> Any:
        return write_artifact(Store.open(str(folder)), "texts", description=about,
                              files={f"model/{name}": folder / "saved" / name for name in names},
                              probe=Probe(inputs={"text": texts}, outputs={"probabilities": answers}))

    return write(TextPredictor.load(write(np.zeros((1, 2), np.float32))).predict(texts))


def small(folder: Path, embedding: Embedding | None, **rule: Any) -> Artifact:
    torch.manual_seed(0)
    about = BertConfig(vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, num_labels=2, initializer_range=0.5)
    return encoder(folder, AutoModelForSequenceClassification.from_config(about), embedding, rule)


def pretrained(folder: Path) -> Artifact:
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    config = config_of(task="classify", data={"uri": "languages"}, export={"embeddings": "auto"},
                       model={"name": minilm(), "layers": None, "heads": None, "width": None})
    return encoder(folder, model, embedding_of(config, model.config.hidden_size))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def client(folders: Path) -> Iterator[openai.OpenAI]:
    """MiniLM, two small ones, and one that offers no vectors."""
    cls = Embedding(pooling="cls", normalize=False, dimensions=16)
    with one_thread():
        artifacts = {"minilm": pretrained(folders / "minilm"), "cls": small(folders / "cls", cls),
                     "none": small(folders / "none", None)}
        models = {name: replica(each) for name, each in artifacts.items()}
        settings, measures = EndpointSettings(auth=False), EndpointMetrics()
        table = Table(settings, lambda model: (of(models[model.name]), lambda: True), measures.batch)
        made = {f"{name}-1": ModelSettings(name=name, version="1", uri="", digest=artifact.digest, max_batch_rows=4,
                                           embeds=artifact.manifest.description.embedding is not None)
                for name, artifact in artifacts.items()}
        table.change(routes({name: {"1": 1.0} for name in models}, made)["models"])
        with served(Endpoint(settings, table, measures)) as asked:
            yield asked


def published(texts: Sequence[str]) -> np.ndarray:
    """As MiniLM's own model card has it: each text alone, so that there is nothing to mask, the mean of all its tokens,
    of length 1 (1_Pooling, 2_Normalize)."""
    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModel.from_pretrained(minilm())
    found = []
    for text in texts:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy().astype(np.float64)
        mean = states.sum(0) / len(states)
        found.append(mean / np.sqrt((mean * mean).sum()))
    return np.array(found)


def vectors(answer: Any) -> np.ndarray:
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data])


# ── what a client gets ──
def test_vectors_are_those_that_the_models_publisher_makes_in_the_order_of_the_texts(client: openai.OpenAI) -> None:
    texts = [f"{text} {number}" for number in range(3) for text in TEXTS]
    answer = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    np.testing.assert_allclose(vectors(answer), published(texts), atol=2e-6)
    tokens = AutoTokenizer.from_pretrained(minilm())(texts)["input_ids"]
    count = sum(map(len, tokens))
    assert answer.usage.to_dict() == {"prompt_tokens": count, "total_tokens": count}
    assert (answer.object, answer.model, {each.object for each in answer.data}) == ("list", "minilm", {"embedding"})
    for asked in (texts[3], tokens[3], [tokens[3]]):
        one = client.embeddings.create(model="minilm", input=asked, encoding_format="float", dimensions=384)
        np.testing.assert_allclose(vectors(one), vectors(answer)[3:4], atol=2e-6)


def test_base64_is_the_same_vectors_and_what_the_client_asks_for_by_itself(client: openai.OpenAI) -> None:
    plain = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
    raw = client.embeddings.with_raw_response.create(model="minilm", input=TEXTS, encoding_format="base64")
    given = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in json.loads(raw.text)["data"]]
    np.testing.assert_allclose(np.array(given), vectors(plain), atol=1e-6)
    by_itself = client.embeddings.create(model="minilm", input=TEXTS, user="someone")
    np.testing.assert_allclose(vectors(by_itself), vectors(plain), atol=1e-6)
    assert (raw.headers["x-model-version"], len(raw.headers["x-artifact-digest"])) == ("1", 64)


def test_a_manifest_says_how_tokens_become_one_vector(client: openai.OpenAI, folders: Path) -> None:
    found = vectors(client.embeddings.create(model="cls", input=TEXTS, encoding_format="float"))
    body = AutoModel.from_pretrained(folders / "cls/saved", add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    with torch.inference_mode():
        wanted = [body(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0].numpy() for text in TEXTS]
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-5)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).min() > 0.1
    assert json.loads((folders / "cls/texts/manifest.json").read_text())["embedding"] == {
        "pooling": "cls", "normalize": False, "dimensions": 16}
    assert "embedding" not in json.loads((folders / "none/texts/manifest.json").read_text())
    assert find(f"m={folders / 'cls/texts'}", None, Store.open(str(folders))).embeds


def test_a_text_has_the_same_vector_beside_others_of_any_length(client: openai.OpenAI) -> None:
    texts = ["word " * count for count in (1, 100, 3, 50, 7, 2, 90)]
    alone = [vectors(client.embeddings.create(model="cls", input=text))[0] for text in texts]
    np.testing.assert_allclose(vectors(client.embeddings.create(model="cls", input=texts)), alone, atol=1e-5)
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda text: vectors(client.embeddings.create(model="cls", input=text))[0], texts))
    np.testing.assert_allclose(beside, alone, atol=1e-5)


def test_texts_are_cleaned_as_in_training_and_a_special_token_in_them_is_letters(tmp_path: Path) -> None:
    upper = small(tmp_path, Embedding(pooling="mean", normalize=True, dimensions=16), case="lower")
    found = asyncio.run(_embedded(replica(upper), ["A Word [SEP]", "a word [sep]"]))
    np.testing.assert_array_equal(found["embedding"][0], found["embedding"][1])
    assert found["tokens"][0] > 5


def test_predict_gives_rows_the_vectors_of_the_endpoint(client: openai.OpenAI, folders: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{text} {number}" for number in range(9) for text in TEXTS]
    pq.write_table(pa.table({"id": range(len(texts) + 1), "text": [*texts, "word " * 200]}), tmp_path / "in.parquet")
    command = ["--data.uri", str(tmp_path / "in.parquet"), "--most-failed", "0.1", "--embeddings"]
    for name in ("minilm", "cls"):
        out = tmp_path / name
        assert predict(["--model", str(folders / name / "texts"), "--out", str(out), *command]) == 0
        table = pads.dataset(out).to_table()
        assert table.column_names == ["id", "text", "embedding"]
        wanted = vectors(client.embeddings.create(model=name, input=texts, encoding_format="float"))
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), wanted.shape[1])
        np.testing.assert_allclose(table.column("embedding").to_pylist(), wanted, rtol=0, atol=1e-6)
        (failed,) = pq.read_table(out / "_failed/failed.parquet").to_pylist()
        assert failed["row"] == len(texts) and "202 tokens: the model reads 1 to 128" in failed["reason"]
    capsys.readouterr()
    assert predict(["--model", str(folders / "none/texts"), "--out", str(tmp_path / "none"), *command]) == 2
    with pytest.raises(openai.NotFoundError) as refused:
        client.embeddings.create(model="none", input="a")
    assert NO_EMBEDDINGS in refused.value.message and NO_EMBEDDINGS in capsys.readouterr().err


async def _embedded(made: Replica, texts: Sequence[str]) -> Any:
    return (await made.embed([{"input": np.array(texts, object)}]))[0]


def test_models_that_embed_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["minilm", "cls"]
    assert client.models.retrieve("minilm").to_dict()["max_model_len"] == MOST


def test_updates_that_are_apart_from_their_base_give_the_vectors_of_the_merged_model(folders: Path) -> None:
    found = load(open_artifact(folders / "cls/texts"))
    assert isinstance(found, Classifier)
    torch.manual_seed(1)
    apart = put_on(found.model, LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)).eval()

    def vectors_of(model: Any) -> np.ndarray:
        about = Embedding(pooling="mean", normalize=True, dimensions=16)
        embedder = Embedder(Classifier(model, found.tokenizer, found.labels, MOST), about, str)
        return embedder.predict(embedder.decode({"input": np.array(TEXTS, object)}))["embedding"]

    plain = vectors_of(load(open_artifact(folders / "cls/texts")).model)
    given = vectors_of(apart)
    np.testing.assert_allclose(given, vectors_of(apart.merge_and_unload()), atol=1e-5)
    assert np.abs(given - plain).max() > 1e-3


# ── what is refused ──
def test_what_does_not_fit_the_model_is_refused_in_the_clients_own_form(client: openai.OpenAI) -> None:
    for asked, error, param, message in (
        ({"model": "none"}, openai.NotFoundError, "model",
         "model 'none' offers no embeddings: an artifact of the Transformer job does that was trained with --task "
         "classify --export.embeddings mean (or cls, or auto)"),
        ({"model": "nobody"}, openai.NotFoundError, "model", "there is no model 'nobody': there is minilm, cls, none"),
        ({"dimensions": 8}, openai.BadRequestError, "dimensions",
         "`dimensions` is 8, and vectors of model 'cls' have 16: leave it out"),
        ({"input": ["a", "b " * 200]}, openai.BadRequestError, None,
         "a text of `input` has 202 tokens: the model reads 1 to 128"),
        ({"input": [1, 30522]}, openai.BadRequestError, None, "30522 is no token: the model has 0 to 30521"),
        ({"input": [[1, -1], [1, 2]]}, openai.BadRequestError, None, "-1 is no token: the model has 0 to 30521"),
        ({"input": [1, 1 << 63]}, openai.BadRequestError, None,
         "9223372036854775808 is no token: the model has 0 to 30521"),
    ):
        with pytest.raises(error) as refused:
            client.embeddings.create(**{"model": "cls", "input": "a"} | asked)
        body: Any = refused.value.body
        assert (body["message"], body["param"], body["type"]) == (message, param, "invalid_request_error")


@pytest.mark.parametrize(("given", "says"), [
    ({"input": None}, "`input` is missing"), ({"input": ""}, "`input` is missing, empty"), ({"input": []}, "`input`"),
    ({"input": ["a", ""]}, "`input`"), ({"input": ["a", 1]}, "`input` is missing, empty or mixed"),
    ({"input": [1.5]}, "`input`"), ({"input": [[]]}, "`input`"), ({"input": ["a"] * 2049}, "`input`"),
    ({"model": 5}, "`model` is missing"), ({"dimensions": 0}, "`dimensions` is 0: it must be a whole number from 1"),
    ({"encoding_format": "hex"}, "`encoding_format` must be `float` or `base64`"), ({"user": 1}, "`user` is no string"),
    ({"input": "x" * 300_000}, "the texts have 300,000 characters: at most 262,144"),
    ({"stream": True}, "`stream` is not known: there are dimensions, encoding_format, input, model, user"),
])
def test_what_is_wrong_with_a_request_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(says)}") as refused:
        parse(orjson.dumps({"model": "m", "input": "a"} | given), EmbeddingRequest)
    assert refused.value.param in given
    with pytest.raises(BadRequestError):
        parse(b"[]", EmbeddingRequest)


def test_a_wrong_text_leaves_those_of_other_requests_be(folders: Path, client: openai.OpenAI) -> None:
    made = replica(open_artifact(folders / "cls/texts"))
    requests = [{"input": np.array(texts, object)} for texts in (["a"], ["b " * 500], ["c", "d"])]
    first, second, third = asyncio.run(made.embed(requests))
    assert isinstance(second, BadRequestError)
    assert not isinstance(first, Exception) and not isinstance(third, Exception)
    assert [len(each["embedding"]) for each in (first, third)] == [1, 2]


def test_only_encoders_offer_vectors_and_what_a_folder_says_is_asked_before_training(tmp_path: Path) -> None:
    def config(**options: Any) -> Any:
        return config_of(task="classify", data={"uri": "languages"}, **options)

    details = {"max_length": 32, "vocab_size": 60, "pad_id": 0, "start_id": 0, "end_id": None}
    with pytest.raises(ConfigError, match=r"llama-124m is a llama, whose tokens do not see what follows"):
        build_model(config(model={"name": "llama-124m"}, export={"embeddings": "mean"}), details, ("a", "b"))
    for options, says in (({"task": "generate", "data": {"uri": "stdlib"}}, "is for --task classify"),
                          ({"task": "classify", "data": {"uri": "languages"}}, "pass mean or cls")):
        with pytest.raises(ConfigError, match=f"--export.embeddings auto: .*{says}"):
            config_of(**options, export={"embeddings": "auto"})
    own = {"layers": None, "heads": None, "width": None}
    asked = config(model={"name": str(tmp_path), **own}, export={"embeddings": "auto"})
    with pytest.raises(ConfigError, match=r"does not say how its tokens become one vector .*: pass mean or cls"):
        embedding_of(asked, 16)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{name}"}
                                                       for name in ("Transformer", "Pooling")]))
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    assert embedding_of(asked, 16) == Embedding(pooling="cls", normalize=False, dimensions=16)
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ConfigError, match=r"makes one vector by Transformer, Pooling, pooling_mode_max_tokens"):
        embedding_of(asked, 16)


def test_an_artifact_that_promises_vectors_which_its_job_does_not_make_is_refused(folders: Path) -> None:
    from tests.unit.test_replica import image_model

    images = image_model(folders / "images")
    opened = open_artifact(images.settings.uri)
    about = replace(opened.manifest.description, embedding=Embedding(pooling="mean", normalize=True, dimensions=3))
    lying = write_artifact(Store.open(str(folders)), "lying", description=about, probe=opened.probe(),
                           files={"model.safetensors": opened.read("model.safetensors")})
    with pytest.raises(ArtifactError, match="has `embedding` in its manifest, and the predictor of the job mlp has no"):
        replica(lying)
