"""POST /feedback as a caller meets it."""

from __future__ import annotations

from starlette.testclient import TestClient

from sundog.security.authoriser import ANONYMOUS, Refusal
from sundog.serving.calls import Calls
from sundog.serving.feedback import Remembered, router
from sundog.serving.observe import Observer
from sundog.serving.pages import build_pages
from sundog.serving.stats import Metrics


def test_the_page_and_the_requests_share_what_is_remembered():
    remembered = Remembered()
    assert Calls(Nobody(), Scoped(), remembered=remembered).remembered is remembered


class Nobody:
    """No services: the page needs none."""

    services: dict = {}


class Scoped:
    """Everybody may ask, nobody for the service `secret`."""

    def authorise(self, headers, service):
        return Refusal(403, "not yours") if service == "secret" else ANONYMOUS


def test_scores_reach_the_version_that_answered_and_others_are_refused_with_words():
    remembered, observer = Remembered(), Observer()
    pages = build_pages(Nobody(), Metrics(), Scoped(), router(remembered, observer, Scoped()))
    client = TestClient(pages)
    remembered.add("r1", "digits", "3")
    remembered.add("r2", "secret", "1")
    good = client.post("/feedback", json={"request_id": "r1", "score": 0.5})
    assert (good.status_code, good.json()["version"]) == (200, "3")
    again = client.post("/feedback", json={"request_id": "r1", "score": 0.5})
    assert again.status_code == 409
    unknown = client.post("/feedback", json={"request_id": "r9", "score": 0.5})
    assert unknown.status_code == 404
    assert "x-request-id" in unknown.json()["error"]
    assert client.post("/feedback", json={"request_id": "r2", "score": 1}).status_code == 403
    assert client.post("/feedback", content=b"{").status_code == 400
    assert client.post("/feedback", content=b"x" * 70000).status_code == 413
    [(age_s, score)] = observer.take()["digits"].arms["3"].feedback
    assert (age_s < 5, score) == (True, 0.5)
