"""The pages of an endpoint, in a browser."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from tests.browser import Page, browser, needs_chromium
from tests.integration.serving.shared import Endpoint


@pytest.fixture(scope="module")
def page(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


def opened(page: Page, endpoint: Endpoint, model: str, path: str = "/") -> None:
    page.size(1000, 800)
    page.open(f"http://{endpoint.host}{path}", endpoint.headers)
    page.until("document.querySelectorAll('#tabs button').length === 3")
    page.click(f"#tab-{model}")
    page.until(f"document.querySelector('[aria-selected=true]').textContent === '{model}'")


@needs_chromium
def test_a_drawn_digit_is_told(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "mlp")
    page.draw("#canvas", *((0.5 + 0.22 * math.sin(k * math.pi / 12), 0.5 - 0.34 * math.cos(k * math.pi / 12)) for k in range(25)))
    assert page.until("document.querySelector('#said').textContent").startswith("0, ")
    assert page.js("document.querySelectorAll('#bars li').length") == 10
    assert endpoint.artifacts["mlp"].digest in page.js("document.querySelector('#about').title")
    assert "Authorization: Bearer" in page.js("document.querySelector('#curl').textContent")
    page.click("#clear")
    assert page.js("document.querySelectorAll('#bars li').length") == 0
    assert page.errors == []


@needs_chromium
def test_a_typed_text_is_told_from_the_keyboard_alone(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "cnn")
    page.press("ArrowRight", 39)
    page.until("document.activeElement.textContent === 'transformer'")
    for _ in range(6):
        page.press("Tab", 9)
        if page.js("document.activeElement.id") == "words":
            break
    page.type("Donnerstag")
    page.until("document.querySelectorAll('#bars li').length === 10")
    text = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Donnerstag"]}]}
    data = json.loads(endpoint.ask("/v2/models/transformer/infer", text)[2])["outputs"][0]["data"]
    best = endpoint.artifacts["transformer"].manifest.description.labels[int(np.argmax(data))]
    assert page.js("document.querySelector('#said').textContent").startswith(f"{best}, ")
    assert page.js("document.querySelector('#said').getAttribute('aria-live')") == "polite"


@needs_chromium
def test_the_pages_fit_a_narrow_screen_and_name_all_that_can_be_used(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "mlp")
    page.size(360, 700)
    page.click("#image .example")
    page.until("document.querySelectorAll('#bars li').length === 10")
    page.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.js("document.documentElement.scrollWidth") <= 360
    nameless = ("[...document.querySelectorAll('button, textarea, input, canvas')].filter(e => !e.textContent.trim() "
                "&& !e.ariaLabel && !(e.labels && e.labels.length)).map(e => e.outerHTML)")
    assert page.js(nameless) == []
    page.open(f"http://{endpoint.host}/docs", endpoint.headers)
    page.until("document.querySelectorAll('details').length > 10")
    page.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.js("document.documentElement.scrollWidth") <= 360
    assert page.errors == []
