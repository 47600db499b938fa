"""The playground and the API docs in a real Chromium, before a real gateway."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from browser_kit import browser, missing
from gateway_kit import Served, gateway_of, tensors

from sundog.security.keys import new_key

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser"),
]


class Ink:
    """Ten scores: which half has more ink. Left: 3, right: 7."""

    def predict(self, inputs):
        pictures = inputs["pixels"].reshape(-1, 8, 8)
        scores = np.zeros((len(pictures), 10), np.float32)
        scores[:, 3] = pictures[:, :, :4].sum((1, 2))
        scores[:, 7] = pictures[:, :, 4:].sum((1, 2))
        return {"scores": scores}


class Sum:
    def predict(self, inputs):
        return {"total": inputs["a"].sum(1) + inputs["b"].sum(1)}


@pytest.fixture(scope="module")
def running():
    ink = {"inputs": tensors(("pixels", "FP32", (-1, 64))),
           "outputs": tensors(("scores", "FP32", (-1, 10)))}  # fmt: skip
    total = {"inputs": tensors(("a", "FP32", (-1, 2)), ("b", "FP32", (-1, 1))),
             "outputs": tensors(("total", "FP32", (-1,)))}  # fmt: skip
    with gateway_of({"ink": Served(Ink(), ink), "sum": Served(Sum(), total)}) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(running):
    return running.url


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


def answered(page):
    return page.wait("an answer", lambda: page.text("#said").strip())


def ready(page):
    page.wait("the model", lambda: page.run("return !document.getElementById('send').disabled"))


def stroke(page, x):
    page.click("#clear")
    page.draw("#canvas", [(x, -90), (x, 0), (x, 90)])


def test_a_drawn_digit_gets_its_answer(gateway, page, tmp_path):
    page.open(f"{gateway}/playground?service=ink")
    ready(page)
    # Two strokes, so that the ink is not centred: one half has more of it.
    for x, other, said in ((-80, 80, "3"), (80, -80, "7")):
        stroke(page, x)
        page.draw("#canvas", [(x + 20, -90), (x + 20, 90)])
        page.draw("#canvas", [(other, -5), (other, 5)])
        page.run("document.getElementById('said').textContent = ''")
        page.click("#send")
        assert answered(page) == said
    page.screenshot(tmp_path / "playground.png")
    assert "request" in page.text("#about")
    assert page.run("return document.querySelectorAll('.bar').length") == 10
    assert page.problems() == []


def test_an_uploaded_picture_is_read(gateway, page, tmp_path):
    picture = tmp_path / "seven.svg"
    picture.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="80" height="80">'
        '<rect width="80" height="80" fill="#fff"/><rect x="48" y="8" width="24" height="64"/>'
        '<rect x="8" y="38" width="8" height="4"/></svg>'
    )
    page.open(f"{gateway}/playground?service=ink")
    ready(page)
    page.type("#file", str(picture_as_png(page, picture)))
    page.wait("the picture", lambda: ink(page) > 1000)
    page.click("#send")
    assert answered(page) == "7"


def picture_as_png(page, path: Path) -> Path:
    """Drawn by the browser itself: no image library is needed."""
    url = "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
    page.open("about:blank")
    page.run(
        "window.done = null; const i = new Image(); i.onload = () => {"
        " const c = document.createElement('canvas'); c.width = c.height = 80;"
        " c.getContext('2d').drawImage(i, 0, 0); window.done = c.toDataURL('image/png'); };"
        " i.src = arguments[0];",
        url,
    )
    made = page.wait("a png", lambda: page.run("return window.done"))
    out = path.with_suffix(".png")
    out.write_bytes(base64.b64decode(made.partition(",")[2]))
    page.run("history.back()")
    ready(page)
    return out


def ink(page):
    return page.run(
        "const d = document.getElementById('canvas').getContext('2d').getImageData(0,0,280,280).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i] > 128; return n"
    )


def test_a_row_of_features_and_what_is_wrong_with_one(gateway, page, tmp_path):
    page.open(f"{gateway}/playground?service=sum")
    ready(page)
    page.clear("#fields")
    page.type("#fields", '{"a": [1, 2], "b": [4]}')
    page.click("#send")
    assert "7" in answered(page)
    page.clear("#fields")
    page.type("#fields", '{"a": [1, 2]}')
    page.click("#send")
    page.wait("the fault", lambda: page.run("return document.getElementById('said').className"))
    assert page.text("#said").startswith("400: ")


def test_a_key_is_asked_for_and_used(running, page):
    key, record = new_key("page", 0.0, scopes=["ink"])
    running.call(running.keys.update, [record.document()])
    try:
        page.open(f"{running.url}/playground?service=ink")
        page.wait("what is missing", lambda: page.text("#said").startswith("401: "))
        page.type("#key", key + "\ue007")
        ready(page)
        stroke(page, 60)
        page.click("#send")
        page.wait("an answer", lambda: page.text("#said").strip().isdigit())
        assert key not in page.run("return document.documentElement.outerHTML")
    finally:
        running.call(running.keys.update, [])


def test_the_api_docs_need_nothing_from_elsewhere(gateway, page, tmp_path):
    page.open(f"{gateway}/docs")
    page.wait(
        "the operations",
        lambda: page.run("return document.querySelectorAll('.opblock').length") > 10,
    )
    loaded = page.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert loaded
    assert all(name.startswith((gateway, "data:")) for name in loaded), loaded
    shown = page.run(
        "return [...document.querySelectorAll('.opblock-summary-path')].map((e) => e.dataset.path)"
    )
    assert any(path.endswith("/infer") for path in shown), shown
    page.screenshot(tmp_path / "docs.png")
