"""What a Prometheus gets from an endpoint's cluster: counters that agree with what was asked, to the last request."""

import json
import re
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from prometheus_client.parser import text_string_to_metric_families

from cluster.core.storage import Store
from jobs.common.artifact.drift_reference import DRIFTED
from jobs.common.data.reader import Reader
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare
from tests import runs
from tests.integration.serving.shared import Endpoint, one_image

PREFIX = "ray_trainyard_serving_"
OF_RAY = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "otel_scope_name", "otel_scope_version",
          "otel_scope_schema_url"}
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scrape:
    """text: the exposition. types, labels: by metric.
    values: by sample's name and our own labels, added up over processes."""

    text: str
    types: dict[str, str]
    labels: dict[str, set[str]]
    values: dict[tuple[str, Labels], float]

    @staticmethod
    def of(endpoint: Endpoint) -> "Scrape":
        (url,) = endpoint.job.until(lambda: re.findall(r"^metrics: (\S+)$", endpoint.job.text, re.MULTILINE))
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        types: dict[str, str] = {}
        labels: dict[str, set[str]] = {}
        values: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples if family.name.startswith(PREFIX) else ():
                own = {name: value for name, value in sample.labels.items() if name not in OF_RAY | {"le"}}
                name = sample.name if family.type == "counter" else family.name
                types[name], labels[name] = family.type, labels.get(name, set()) | set(own)
                bound = {"le": sample.labels["le"]} if "le" in sample.labels else {}
                key = sample.name, tuple(sorted((own | bound).items()))
                values[key] = values.get(key, 0) + sample.value
        return Scrape(text, types, labels, values)

    def all(self, name: str) -> dict[Labels, float]:
        return {labels: value for (each, labels), value in self.values.items() if each == PREFIX + name}

    def of_model(self, name: str, model: str, **labels: str) -> float:
        return self.all(name).get(tuple(sorted({"model": model, "version": "1" if model else "", **labels}.items())), 0)


def answered(endpoint: Endpoint) -> Counter[str]:
    """All that the endpoint has answered so far, by status, as its access log has it."""
    lines = (endpoint.keys_file.parent / "access.log").read_text().splitlines()
    return Counter(str(json.loads(line)["status"]) for line in lines)


def settled(endpoint: Endpoint) -> Scrape:
    """When all that was answered has been exported."""
    deadline = time.monotonic() + 40
    while True:
        scrape, by_status = Scrape.of(endpoint), Counter[str]()
        for labels, value in scrape.all("requests_total").items():
            by_status[dict(labels)["status"]] += int(value)
        if by_status == answered(endpoint):
            return scrape
        assert time.monotonic() < deadline, (by_status, answered(endpoint))
        time.sleep(0.3)


def test_counters_agree_with_what_was_asked(endpoint: Endpoint) -> None:
    before = settled(endpoint)
    infer, many = "/v2/models/mlp/infer", one_image(endpoint, shape=[5, 28, 28, 1], data=[0] * 5 * 784)
    bytes_of_no_image = one_image(endpoint, datatype="BYTES", shape=[1], data=["bm9uZQ=="],
                                  parameters={"content_type": "base64"})
    words = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["confidential", "Donnerstag"]}]}
    asked: list[tuple[int, str, Any, dict[str, str] | None]] = [
        *[(200, infer, one_image(endpoint), None)] * 3, (200, infer, many, None),
        (200, "/v2/models/transformer/infer", words, None),
        (200, infer, one_image(endpoint), endpoint.headers | {"X-Request-Id": "an-id-of-mine"}),
        (200, "/v2/models/mlp", None, None), (400, infer, b"{", None), (400, infer, bytes_of_no_image, None),
        (401, infer, one_image(endpoint), {}),
        (401, infer, one_image(endpoint), {"Authorization": "Bearer secret-of-mine"}),
        (404, "/v2/models/model-of-mine/infer", one_image(endpoint), None), (405, infer, None, None),
        (413, infer, b"x" * ((1 << 20) + 1), None),
        (504, infer, one_image(endpoint) | {"parameters": {"timeout": 1}}, None)]
    for status, path, body, headers in asked:
        assert endpoint.ask(path, body, headers)[0] == status
    after = settled(endpoint)

    def grown(name: str, model: str = "mlp", **labels: str) -> float:
        return after.of_model(name, model, **labels) - before.of_model(name, model, **labels)

    by_status = {status: grown("requests_total", status=status) for status in ("200", "400", "413", "504")}
    assert by_status == {"200": 5, "400": 2, "413": 1, "504": 1}
    assert grown("requests_total", "transformer", status="200") == 1
    assert {status: grown("requests_total", "", status=status) for status in ("200", "401", "404", "405")} == {
        "200": 1, "401": 2, "404": 1, "405": 1}
    causes = {cause: grown("errors_total", cause=cause)
              for cause in ("bad_request", "too_large", "deadline", "key", "unknown")}
    assert causes == {"bad_request": 2, "too_large": 1, "deadline": 1, "key": 0, "unknown": 0}
    assert {cause: grown("errors_total", "", cause=cause) for cause in ("key", "unknown", "bad_request")} == {
        "key": 2, "unknown": 1, "bad_request": 1}
    assert (grown("rows_total"), grown("rows_total", "transformer")) == (9, 2)
    assert grown("latency_seconds_count") == 9 == grown("latency_seconds_bucket", le="+Inf")
    assert 0 < grown("latency_seconds_bucket", le="1.0") <= 9
    assert grown("batch_rows_count") == 6, "one after the other, so each was a batch, also the one whose image is none"
    assert (grown("batch_rows_bucket", le="1.0"), grown("batch_rows_bucket", le="8.0")) == (5, 6)
    assert after.of_model("queued_requests", "mlp") == 0
    for secret in (endpoint.key, "secret-of-mine", "tester", "an-id-of-mine", "confidential", "model-of-mine"):
        assert secret not in after.text


def test_changed_images_have_drifted_and_the_reference_s_own_have_not(endpoint: Endpoint) -> None:
    """At 64 rows a second: the perceptron is shown them inverted, the convolutional network as they are,
    both many times."""
    dataset = prepare(ImageDataConfig(), Store.open(str(endpoint.keys_file.parent)), use_ray=False)
    images = Reader.open(dataset, "test", ImageDataConfig()).rows(0, dataset.splits["test"].num_rows)["image"]
    client, deadline = endpoint.client(), time.monotonic() + 60
    mlp: dict[str, float] = {}
    cnn: dict[str, float] = {}
    turn = 0
    while not (mlp and cnn and mlp["brightness"] > DRIFTED > max(cnn.values())):
        for _ in range(4):
            rows = np.take(images, range(64 * turn, 64 * turn + 64), axis=0, mode="wrap")
            for model, shown in (("mlp", 255 - rows), ("cnn", rows)):
                tensor = triton.InferInput("image", list(rows.shape), "UINT8").set_data_from_numpy(shown)
                client.infer(model, [tensor], headers=endpoint.headers)
            turn += 1
            time.sleep(0.25)
        scrape = Scrape.of(endpoint)
        mlp, cnn = (drift(scrape, model) for model in ("mlp", "cnn"))
        assert time.monotonic() < deadline, (mlp, cnn)
    assert len(mlp) == len(cnn) == 9


def drift(scrape: Scrape, model: str) -> dict[str, float]:
    """By feature."""
    figures = {tuple(dict(labels).values()): value for labels, value in scrape.all("drift_psi").items()}
    return {feature: value for (feature, name, version), value in figures.items() if (name, version) == (model, "1")}


@pytest.mark.in_order  # the others have made errors and drift
def test_the_documented_metrics_are_those_that_are_scraped(endpoint: Endpoint) -> None:
    scrape = settled(endpoint)
    table = re.findall(r"^\| `(ray_\w+)` \| (\w+) \| ([\w, ]*)\|", (runs.ROOT / "serving/README.md").read_text(),
                       re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in table}
    found = {name: (scrape.types[name], scrape.labels[name]) for name in scrape.types}
    assert found == {name: documented[name] for name in found}
    elsewhere = re.compile(r"ray_trainyard_serving_(shadow_rows_total|went_back|explanation_seconds|tokens_total|"
                           r"first_token_.*|prefix_.*)")
    assert [name for name in documented if name not in found and not elsewhere.fullmatch(name)] == []


def test_no_series_is_of_a_model_that_is_not_served(endpoint: Endpoint) -> None:
    models = {dict(labels).get("model", "") for _, labels in Scrape.of(endpoint).values}
    assert models == {"", *endpoint.artifacts}


@pytest.fixture(scope="module", autouse=True)
def asked_once(endpoint: Endpoint) -> None:
    """So that every metric is there."""
    endpoint.ask("/v2/models/mlp/infer", one_image(endpoint))
