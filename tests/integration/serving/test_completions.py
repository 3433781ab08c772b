"""Text from an endpoint, asked for by OpenAI's own client;
the rest of the protocol is in tests/unit/test_completions.py."""

import http.client
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest
import schemathesis
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jobs.transformer.model import Classifier, LanguageModel, load
from tests.integration.serving.shared import Endpoint
from tests.integration.serving.test_metrics import Scrape

LONG: dict[str, Any] = {"model": "lm", "prompt": ["the cat "] * 8, "max_tokens": 2000, "temperature": 0}


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{endpoint.host}/v1", api_key=endpoint.key, max_retries=0) as made:
        yield made


def test_the_text_is_what_the_artifacts_model_writes_whole_and_as_it_comes(endpoint: Endpoint,
                                                                           client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "lm", "prompt": "the dog ", "max_tokens": 80, "temperature": 0}
    raw = client.completions.with_raw_response.create(**asked)
    whole = raw.parse()
    model = load(endpoint.artifacts["lm"].uri)
    assert isinstance(model, LanguageModel)
    ids = torch.tensor([[model.start_id, *model.tokenizer("the dog ", add_special_tokens=False)["input_ids"]]])
    with torch.inference_mode():
        wanted = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=80,
                                      eos_token_id=model.start_id, pad_token_id=0, use_cache=True)[0, ids.shape[1]:]
    assert whole.choices[0].text == model.tokenizer.decode(wanted, skip_special_tokens=True)
    digest = endpoint.artifacts["lm"].digest
    assert (whole.system_fingerprint, raw.headers["x-artifact-digest"]) == (f"1-{digest}", digest)
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for event in events for choice in event.choices) == whole.choices[0].text
    assert events[-1].usage == whole.usage
    assert len(events) > 3, "it comes piece by piece"


def test_a_conversation_is_answered_as_the_artifacts_own_template_asks_its_model(endpoint: Endpoint,
                                                                                 client: openai.OpenAI) -> None:
    model = load(endpoint.artifacts["lm"].uri)
    assert isinstance(model, LanguageModel)
    messages: list[Any] = [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "sat."},
                           {"role": "user", "content": "a cat<|endoftext|>"}]
    asked: dict[str, Any] = {"model": "lm", "messages": messages, "max_completion_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == model.answer(messages, max_new_tokens=40)
    events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for event in events for choice in event.choices) == \
        whole.choices[0].message.content
    assert whole.usage is not None
    assert events[-1].usage is not None
    assert events[-1].usage.total_tokens == whole.usage.total_tokens
    with pytest.raises(openai.BadRequestError, match="the chat template says: the system speaks first"):
        client.chat.completions.create(**asked | {"messages": [*messages, {"role": "system", "content": "a"}]})
    with pytest.raises(openai.NotFoundError, match="model 'mlp' writes no text"):
        client.chat.completions.create(**asked | {"model": "mlp"})


def test_seeds_hold_though_many_are_written_together(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        return client.completions.create(model="lm", prompt="a ", max_tokens=40, seed=seed,
                                         temperature=1.2).choices[0].text

    alone = [text(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text, range(8))) == alone
    assert len(set(alone)) == 8


def test_a_prompt_that_begins_as_an_earlier_one_is_counted_and_answered_as_that_was(endpoint: Endpoint,
                                                                                    client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "lm", "prompt": "one beginning of many " * 8, "max_tokens": 20, "seed": 3}
    first, second = (client.completions.create(**asked) for _ in range(2))
    assert first.choices[0].text == second.choices[0].text
    assert first.usage is not None
    assert second.usage is not None
    cached = (first.usage.prompt_tokens - 1) // 16 * 16
    assert second.usage.to_dict() == first.usage.to_dict() | {"prompt_tokens_details": {"cached_tokens": cached}}
    streamed = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert streamed[-1].usage == second.usage
    deadline = time.monotonic() + 40
    while (scrape := Scrape.of(endpoint)).of_model("prefix_tokens_total", "lm") < first.usage.prompt_tokens - 16:
        assert time.monotonic() < deadline, "Ray exports it every few seconds"
        time.sleep(0.3)
    assert scrape.of_model("prefix_cache_bytes", "lm") > 0


def test_who_has_no_key_or_asks_for_what_there_is_not_is_refused_as_the_client_knows_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="the key is not known"):
        client.with_options(api_key="wrong").completions.create(model="lm", prompt="a")
    with pytest.raises(openai.NotFoundError, match="model 'mlp' writes no text"):
        client.completions.create(model="mlp", prompt="a")
    with pytest.raises(openai.BadRequestError, match="together 2060, and the model takes 2048"):
        client.completions.create(model="lm", prompt="the cat the cat " * 128 + "xyz", max_tokens=8)
    assert [model.id for model in client.models.list()] == ["transformer", "lm"]


def test_vectors_of_texts_are_those_of_the_artifacts_model_and_are_logged_and_counted(endpoint: Endpoint,
                                                                                       client: openai.OpenAI) -> None:
    texts = ["Donnerstag", "jeudi", "a secret day"]
    found = client.embeddings.create(model="transformer", input=texts, extra_headers={"X-Request-Id": "a-vector"})
    model = load(endpoint.artifacts["transformer"].uri)
    assert isinstance(model, Classifier)
    for text, each in zip(texts, found.data, strict=True):
        with torch.inference_mode():
            mean = model.model.base_model(**model.encode([text])).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(each.embedding, mean / np.linalg.norm(mean), atol=1e-5)
    log = (endpoint.keys_file.parent / "access.log").read_text()
    (mine,) = [line for line in map(json.loads, log.splitlines()) if line["id"] == "a-vector"]
    assert (mine["status"], mine["path"], mine["caller"]) == (200, "/v1/embeddings", "tester")
    assert "secret" not in log
    with pytest.raises(openai.AuthenticationError, match="the key is not known"):
        client.with_options(api_key="wrong").embeddings.create(model="transformer", input="a")
    with pytest.raises(openai.NotFoundError, match="model 'lm' offers no embeddings"):
        client.embeddings.create(model="lm", input="a")
    deadline = time.monotonic() + 40
    while Scrape.of(endpoint).of_model("tokens_total", "transformer", kind="prompt") < found.usage.prompt_tokens:
        assert time.monotonic() < deadline, "Ray exports it every few seconds"
        time.sleep(0.3)


def test_a_caller_who_goes_ends_the_text(endpoint: Endpoint) -> None:
    (replica,) = [process for process in psutil.Process(endpoint.job.process.pid).children(recursive=True)
                  if process.name() == "ray::ServeReplica:lm-1:Model"]

    def busy(seconds: float) -> float:
        before = sum(replica.cpu_times()[:2])
        time.sleep(seconds)
        return (sum(replica.cpu_times()[:2]) - before) / seconds

    for stream in (True, False):
        connection = http.client.HTTPConnection(endpoint.host)
        connection.request("POST", "/v1/completions", json.dumps(LONG | {"stream": stream}), endpoint.headers)
        assert connection.sock is not None
        connection.sock.settimeout(20)
        answer = connection.getresponse().fp if stream else None
        if answer is not None:
            answer.readline()
        writing = busy(0.5)
        connection.sock.close() if connection.sock else None
        if answer is not None:
            answer.close()
        assert writing > 0.1, "the replica computes while somebody reads"
        deadline = time.monotonic() + 30
        while busy(0.5) > 0.1:
            assert time.monotonic() < deadline, "and no longer"


def test_a_stream_whose_time_is_over_says_so(client: openai.OpenAI) -> None:
    late = {"X-Request-Timeout-Seconds": "0.5"}
    pieces = 0
    with pytest.raises(openai.APIError, match="not finished within") as broken:
        for _ in client.completions.create(**LONG, stream=True, extra_headers=late):
            pieces += 1
    assert broken.value.code == "deadline"
    assert pieces > 0
    with pytest.raises(openai.InternalServerError) as refused:
        client.completions.create(**LONG, extra_headers=late)
    assert refused.value.status_code == 504


def test_the_access_log_has_requests_for_text_without_their_text(endpoint: Endpoint, client: openai.OpenAI) -> None:
    client.completions.create(model="lm", prompt="a secret cat", max_tokens=5, extra_headers={"X-Request-Id": "a-text"})
    log = (endpoint.keys_file.parent / "access.log").read_text()
    (mine,) = [line for line in map(json.loads, log.splitlines()) if line["id"] == "a-text"]
    assert (mine["status"], mine["path"], mine["caller"]) == (200, "/v1/completions", "tester")
    assert "secret" not in log


def test_any_request_for_text_is_answered_or_refused_as_documented(endpoint: Endpoint) -> None:
    """Bodies that fit the description and that do not, 40 for each of 6 operations."""
    checks = [schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance,
              response_schema_conformance]
    described = schemathesis.openapi.from_dict(json.loads(endpoint.ask("/openapi.json")[2])).include(path_regex="^/v1/")
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 6
    for operation in operations:
        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def tried(case: Any) -> None:
            case.call_and_validate(base_url=f"http://{endpoint.host}", headers=endpoint.headers, checks=checks)

        tried()


@pytest.fixture
def root_logger() -> Iterator[None]:
    """As it was, afterwards: Ray's configuration of vLLM gives it a handler when it is imported."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Ray's configuration of vLLM imports
def test_what_is_written_for_vllm_fits_rays_own_schema(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """As data: vLLM itself, and Ray's application for it, cannot be imported without its GPU packages."""
    import ast

    with capsys.disabled():  # their loggers keep the stream that there is then
        from ray.llm._internal.serve.core.configs import llm_config
        from ray.serve.schema import ServeDeploySchema

    from serving.__main__ import main

    artifact = endpoint.artifacts["lm"]
    command = ["config", "--engine", "vllm", "--model", f"lm={artifact.uri}", "--gpus-per-replica", "2",
               "--accelerator", "A100"]
    assert main([*command, "--no-auth", "--max-replicas", "3"]) == 0
    text = capsys.readouterr().out
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert application.import_path == "ray.serve.llm:build_openai_app"
    builder = ast.parse((Path(llm_config.__file__).parents[1] / "ingress/builder.py").read_text())
    (fields,) = [node for node in builder.body if isinstance(node, ast.ClassDef) and node.name == "LLMServingArgs"]
    known = {node.target.id for node in fields.body if isinstance(node, ast.AnnAssign)
             and isinstance(node.target, ast.Name)}
    assert set(application.args) == {"llm_configs"} <= known
    made = llm_config.LLMConfig.model_validate(application.args["llm_configs"][0])
    assert (made.model_id, made.accelerator_type) == ("lm", "A100")
    assert made.model_loading_config.model_source == f"{artifact.uri}/model"
    assert made.engine_kwargs["tensor_parallel_size"] == 2
    assert "checks no keys" in text
    with pytest.raises(ValueError, match="Extra inputs"):
        llm_config.LLMConfig.model_validate(application.args["llm_configs"][0] | {"unknown": 1})
    for flags, message in ((["--keys", "keys"], "pass --no-auth"),
                           (["--no-auth", "--gpus-per-replica", "0.5"], "whole GPUs"),
                           (["--no-auth", "--model", f"mlp={endpoint.artifacts['mlp'].uri}"], "mlp writes no text")):
        assert main([*command, *flags]) == 2
        assert message in capsys.readouterr().err


TASK = """
task: talk
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}, cache_dir: FOLDER}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["§"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_lm_eval_judges_the_endpoint_and_the_artifact_s_folder_alike(
        endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(endpoint.artifacts["lm"].uri)
    assert isinstance(model, LanguageModel)
    asked = ["the dog", "a cat", "one mat", "birds"]
    said = [model.answer([{"role": "user", "content": text}], max_new_tokens=12) for text in asked]
    rows = [{"question": text, "answer": answer} for text, answer in zip(asked, ["another", *said[1:]], strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "talk.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    monkeypatch.setenv("OPENAI_API_KEY", endpoint.key)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    for name, arguments in (("local-chat-completions",
                             {"model": "lm", "base_url": f"http://{endpoint.host}/v1/chat/completions"}),
                            ("hf", {"pretrained": f"{endpoint.artifacts['lm'].uri}/model", "dtype": "float32"})):
        found = simple_evaluate(name, arguments, ["talk"], device="cpu", task_manager=tasks, bootstrap_iters=0,
                                apply_chat_template=True)
        assert [sample["resps"] for sample in found["samples"]["talk"]] == [[[text]] for text in said], name
        assert found["results"]["talk"]["exact_match,none"] == 3 / 4
