"""The pages of an endpoint, in a browser."""

import base64
import io
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.browser import Page, browser, needs_chromium
from tests.integration.serving.shared import Endpoint

COLOURS = """(() => {
  const {data} = document.querySelector('#heat').getContext('2d').getImageData(0, 0, 280, 280), found = [0, 0];
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] > data[i + 2] + 40) found[0]++;
    if (data[i + 2] > data[i] + 40) found[1]++;
  }
  return found;
})()"""
"""How many of the drawn explanation's pixels are red, and how many blue."""


@pytest.fixture(scope="module")
def page(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


def opened(page: Page, endpoint: Endpoint, model: str, path: str = "/") -> None:
    page.size(1000, 800)
    page.open(f"http://{endpoint.host}{path}", endpoint.headers)
    page.until("document.querySelectorAll('#tabs button').length === 4")
    page.until("document.querySelector('#replicas').textContent")  # which moves what is below it
    page.click(f"#tab-{model}")
    page.until(f"document.querySelector('[aria-selected=true]').textContent === '{model}'")


@needs_chromium
def test_a_drawn_digit_is_told(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "mlp")
    page.draw("#canvas",
              *((0.5 + 0.22 * math.sin(k * math.pi / 12), 0.5 - 0.34 * math.cos(k * math.pi / 12)) for k in range(25)))
    page.until("document.querySelector('#said').textContent.startsWith('0, ')")
    assert page.js("document.querySelectorAll('#bars li').length") == 10
    assert endpoint.artifacts["mlp"].digest in page.js("document.querySelector('#about').title")
    assert "Authorization: Bearer" in page.js("document.querySelector('#curl').textContent")
    assert page.js("document.querySelector('#made').textContent") == "Made by the run mlp"  # with keys, no more of it
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
def test_what_an_answer_rests_on_is_drawn_over_the_image_and_said(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "mlp")
    page.click("#image .example")
    page.until("!document.querySelector('#why').hidden")
    page.click("#explain")
    said = page.until("document.querySelector('#explained').hidden ? '' : "
                      "document.querySelector('#because').textContent")
    label = page.js("document.querySelector('#said').textContent").partition(",")[0]
    assert said.startswith(f"Speaks most for {label}: ")
    assert "in log odds" in said
    assert page.js("document.querySelector('#because').getAttribute('aria-live')") == "polite"
    assert page.js("document.querySelector('#explain').getAttribute('aria-expanded')") == "true"
    red, blue = page.js(COLOURS)
    assert red > 20
    assert blue > 20
    page.click("#explain")
    assert page.js("document.querySelector('#heat').hidden") is True
    page.click("#explain")
    page.until("!document.querySelector('#heat').hidden")
    page.draw("#canvas", (0.3, 0.3), (0.6, 0.6))
    page.until("!document.querySelector('#why').hidden")
    assert page.js("document.querySelector('#heat').hidden") is True, "it was of another image"
    assert page.errors == []


@needs_chromium
def test_a_file_is_sent_as_it_is_and_shown_as_the_endpoint_reads_it(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "mlp")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right: what lies on the left comes to the top
    image, file = Image.new("LA", (80, 40), (255, 0)), io.BytesIO()
    image.paste((255, 255), (0, 0, 40, 40))
    image.save(file, "PNG", exif=exif)
    data = base64.b64encode(file.getvalue()).decode()
    page.js(f"file(new File([Uint8Array.from(atob('{data}'), each => each.charCodeAt())], 'a.png'))")
    page.until("!document.querySelector('#why').hidden")
    assert page.js("answered.body.inputs[0].data") == [data]
    assert page.js("[20, 260].map(y => pen.getImageData(140, y, 1, 1).data[0])") == [255, 0]
    assert page.js("answered.place") == [70, 0, 140, 280]
    for fit, place in (("crop", [70, 70, 140, 140]), ("pad", [0, 0, 280, 280])):
        assert page.js(f"model.properties.picture_fit = '{fit}'; looked(70, 0, 140, 280)") == place
    assert page.errors == []


@needs_chromium
def test_what_an_answer_rests_on_is_shown_in_the_text(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "transformer")
    page.click("#words")
    page.type("Donnerstag im Winter")
    page.click("#send")
    page.until("!document.querySelector('#why').hidden")
    page.click("#explain")
    page.until("!document.querySelector('#explained').hidden")
    assert page.js("document.querySelector('#pieces').textContent") == "Donnerstag im Winter"
    assert page.js("document.querySelectorAll('#pieces span').length") > 2
    shares = page.js("[...document.querySelectorAll('#pieces span')].map(e => +e.style.getPropertyValue('--share'))")
    assert max(shares) == 0.5
    assert "“" in page.js("document.querySelector('#because').textContent")
    assert page.errors == []


@needs_chromium
def test_the_live_replicas_are_shown(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "mlp")
    shown = page.until("document.querySelector('#replicas').textContent")
    assert shown == "live replicas: endpoint 1 · mlp 1 · cnn 1 · transformer 1 · lm 1"


@needs_chromium
def test_the_pages_fit_a_narrow_screen_and_name_all_that_can_be_used(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "mlp")
    page.size(360, 700)
    page.click("#image .example")
    page.until("document.querySelectorAll('#bars li').length === 10")
    page.click("#explain")
    page.until("!document.querySelector('#explained').hidden")
    page.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.js("document.documentElement.scrollWidth") <= 360
    nameless = ("[...document.querySelectorAll('button, textarea, input, canvas:not([aria-hidden])')]"
                ".filter(e => !e.textContent.trim() && !e.ariaLabel && !(e.labels && e.labels.length)).map(e => "
                "e.outerHTML)")
    assert page.js(nameless) == []
    page.open(f"http://{endpoint.host}/docs", endpoint.headers)
    page.until("document.querySelectorAll('details').length > 10")
    page.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.js("document.documentElement.scrollWidth") <= 360
    assert page.errors == []


@needs_chromium
def test_text_is_written_as_it_comes_and_can_be_stopped(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "lm")
    page.click("#as-text")
    page.js("document.querySelector('#temperature').value = 0; document.querySelector('#prompt').value = 'the cat '")
    page.js("document.querySelector('#max-tokens').value = 30")
    page.js("document.querySelector('#prompt').focus()")
    for _ in range(5):
        page.press("Tab", 9)
    assert page.js("document.activeElement.id") == "go"
    page.press("Enter", 13)
    page.until("document.querySelector('#said').textContent.startsWith('30 tokens')")
    asked = {"model": "lm", "prompt": "the cat ", "max_tokens": 30, "temperature": 0}
    wanted = json.loads(endpoint.ask("/v1/completions", asked)[2])["choices"][0]["text"]
    assert page.js("document.querySelector('#written').textContent") == "the cat " + wanted
    assert "tokens/s, the first after" in page.js("document.querySelector('#said').textContent")
    assert endpoint.artifacts["lm"].digest == page.js("document.querySelector('#about').title")
    assert '"max_tokens":30' in page.js("document.querySelector('#curl').textContent")
    assert "from openai import OpenAI" in page.js("document.querySelector('#python').textContent")
    page.js("document.querySelector('#max-tokens').value = 2000")
    page.click("#go")
    page.until("document.querySelector('#written').textContent.length > 60")
    page.click("#halt")
    page.until("document.querySelector('#said').textContent === 'Stopped.'")
    page.js("document.querySelector('#max-tokens').value = 5000")
    page.click("#go")
    page.until("document.querySelector('#said').textContent.includes('the model takes 2048')")
    page.size(360, 700)
    assert page.js("document.documentElement.scrollWidth") <= 360
    assert [each for each in page.errors if "400" not in each] == []
    page.errors.clear()


@needs_chromium
def test_a_conversation_goes_on_can_be_stopped_and_begun_anew(page: Page, endpoint: Endpoint) -> None:
    opened(page, endpoint, "lm")
    assert page.js("document.querySelector('#as-chat').ariaPressed") == "true"
    page.js("document.querySelector('#temperature').value = 0; document.querySelector('#max-tokens').value = 20")
    page.click("#system")
    page.type("the cat sat.")
    page.click("#message")
    page.type("a dog")
    page.press("Enter", 13)
    page.until("document.querySelector('#said').textContent.includes('tokens/s, the first after')")
    said: list[dict[str, str]] = [{"role": "system", "content": "the cat sat."}, {"role": "user", "content": "a dog"}]
    asked = {"model": "lm", "messages": said, "max_tokens": 20, "temperature": 0}
    answer = json.loads(endpoint.ask("/v1/chat/completions", asked)[2])["choices"][0]["message"]
    shown = "[...document.querySelectorAll('#talk li')].map(each => [each.className, each.lastChild.data])"
    wanted = [[each["role"], each["content"]] for each in [*said, answer]]
    assert page.js(shown) == wanted
    assert page.js("talk") == [said[1], {"role": "assistant", "content": answer["content"]}]
    assert "client.chat.completions.create" in page.js("document.querySelector('#python').textContent")
    page.js("document.querySelector('#max-tokens').value = 1800")
    page.type("the cat")
    page.click("#go")
    page.until("document.querySelector('#talk li:last-child').lastChild.data.length > 30")
    page.click("#halt")
    page.until("document.querySelector('#said').textContent === 'Stopped.'")
    assert page.js("talk.map(each => each.role)") == ["user", "assistant"] * 2, "what has come is part of it"
    page.js("document.querySelector('#max-tokens').value = 5000")
    page.click("#message")
    page.type("too much")
    page.click("#go")
    page.until("document.querySelector('#said').textContent.includes('the model takes 2048')")
    assert page.js("[document.querySelector('#message').value, talk.length]") == ["too much", 4], "to be sent again"
    page.click("#anew")
    assert page.js("[talk.length, document.querySelectorAll('#talk li').length]") == [0, 1]
    page.size(360, 700)
    assert page.js("document.documentElement.scrollWidth") <= 360
    assert [each for each in page.errors if "400" not in each] == []
    page.errors.clear()
