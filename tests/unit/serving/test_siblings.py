"""Two gateways on private sockets that answer for each other where a page concerns both."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from gateway_kit import Served, gateway_of, tensors
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from sundog.security.peers import Identity
from sundog.serving import http_body
from sundog.serving.http_server import build_server, http_protocols
from sundog.serving.inbound import CERTIFICATE_KEY, Inbound
from sundog.serving.siblings import Siblings, labelled, merged

TEXT = '# TYPE a counter\na{service="x"} 1\n# TYPE b gauge\nb 2\n'


@dataclass
class Replica:
    metadata: dict
    node_id: str = "here"


def gateway(path):
    """What Serve tells of another gateway of this node."""
    certificate = Identity.make("another").certificate
    return Replica({"sundog_gateway": path, CERTIFICATE_KEY: certificate})


def siblings(known, name="one"):
    me = Identity.make(name)
    return Siblings(pages(known), name, me, "here", Inbound(me, "127.0.0.1"))


class Same:
    def predict(self, inputs):
        return {"y": inputs["x"]}


def pages(known, text=TEXT):
    async def feedback(request):
        word = (await request.body()).decode()
        return JSONResponse({"word": word}, 200 if word in known else 404)

    async def metrics(request):
        return PlainTextResponse(text)

    routes = [Route("/feedback", feedback, methods=["POST"]), Route("/metrics", metrics)]
    return Starlette(routes=[*routes, Route("/else", metrics)])


def ask(app, method, path, **more):
    async def one():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://x"
        ) as client:
            return await client.request(method, path, **more)

    return asyncio.run(one())


@pytest.fixture
def other():
    """The socket of a whole gateway: it remembers nothing, and counts."""
    import tempfile

    signature = {
        "inputs": tensors(("x", "FP32", (-1,))),
        "outputs": tensors(("y", "FP32", (-1,))),
    }
    with tempfile.TemporaryDirectory(prefix="sib-", dir="/tmp") as folder:
        path = Path(folder) / "s"
        with gateway_of({"same": Served(Same(), signature)}, path):
            yield str(path)


def test_metrics_are_those_of_all_and_a_metric_stays_together(other):
    app = siblings(())
    app.on_gateways([gateway(other), gateway("/gone")])
    text = ask(app, "GET", "/metrics").text
    assert 'a{gateway="one",service="x"} 1' in text
    assert 'b{gateway="one"} 2' in text
    assert 'sundog_gateway_replicas{service="same",version="1"} 1' in text
    assert ask(app, "GET", "/metrics", headers={"x-sundog-asked-by": "b"}).text == labelled(
        TEXT, "one"
    )


def test_what_one_does_not_know_another_may(other):
    app = siblings(("mine",))
    assert ask(app, "POST", "/feedback", content="mine").status_code == 200
    assert ask(app, "POST", "/feedback", content="theirs").status_code == 404
    knows = siblings(("theirs",), "two")
    app._others = {
        "x": httpx.AsyncClient(transport=httpx.ASGITransport(knows), base_url="http://x")
    }
    assert ask(app, "POST", "/feedback", content="theirs").json() == {"word": "theirs"}
    app._others = {"x": httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")}
    assert ask(app, "POST", "/feedback", content="nobody's").status_code == 404, "no round dance"


def test_a_gateway_of_another_node_is_asked_over_tls_and_nobody_else_may_ask():
    async def main():
        servers, apps, doors, tasks = [], [], [], []
        for name, word in (("one", "mine"), ("two", "theirs")):
            me = Identity.make(name)
            door = Inbound(me, "127.0.0.1")
            app = Siblings(pages((word,)), name, me, f"node-of-{name}", door)
            servers.append(build_server(app))
            app.answer_with(http_protocols(servers[-1]))
            apps.append(app)
            doors.append(door)
            tasks.append(asyncio.create_task(door.serve_forever()))
        told = [Replica(d.metadata(), a._node) for d, a in zip(doors, apps, strict=True)]
        for app in apps:
            app.on_gateways(told)
        one = httpx.AsyncClient(transport=httpx.ASGITransport(apps[0]), base_url="http://x")
        assert (await one.post("/feedback", content="theirs")).json() == {"word": "theirs"}
        text = (await one.get("/metrics")).text
        assert 'b{gateway="one"} 2' in text
        assert 'b{gateway="two"} 2' in text
        stranger = Identity.make("stranger").client(doors[1].metadata()[CERTIFICATE_KEY])
        async with httpx.AsyncClient(verify=stranger) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"https://{doors[1].address}/metrics")
        apps[0].on_gateways(told[:1])
        assert (await one.post("/feedback", content="theirs")).status_code == 404
        for task in tasks:
            task.cancel()

    asyncio.run(main())


def test_itself_is_not_asked(other):
    app = siblings(())
    mine = {"sundog_gateway": other, CERTIFICATE_KEY: app._identity.certificate}
    app.on_gateways([Replica(mine), Replica({"sundog_gateway": other})])
    assert app._others == {}
    assert ask(app, "GET", "/else").text == TEXT


def test_who_left_is_let_go_and_bodies_are_bounded(other, monkeypatch):
    monkeypatch.setattr(http_body, "BODY_TIMEOUT_S", 0.05)
    app = siblings(("mine",))

    assert ask(app, "POST", "/feedback", content=b"x" * 70_000).status_code == 413
    refused = ask_raw(app, b"m")
    assert refused["status"] == 408

    async def news():
        app.on_gateways([gateway(other)])
        [client] = app._others.values()
        assert (await client.get("/metrics")).status_code == 200
        app.on_gateways([])
        while app._closing:
            await asyncio.sleep(0)
        assert client.is_closed

    asyncio.run(news())


def ask_raw(app, first):
    """The start of the answer to a request whose body begins and never ends."""
    sent = []

    async def main():
        parts = [{"type": "http.request", "body": first, "more_body": True}]

        async def receive():
            if not parts:
                await asyncio.Event().wait()
            return parts.pop()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/feedback", "headers": []}
        async with asyncio.timeout(60):
            await app(scope, receive, send)

    asyncio.run(main())
    return sent[0]


def test_merging():
    text = merged([labelled(TEXT, "one"), labelled(TEXT, "two")])
    assert text.splitlines() == [
        "# TYPE a counter", 'a{gateway="one",service="x"} 1', 'a{gateway="two",service="x"} 1',
        "# TYPE b gauge", 'b{gateway="one"} 2', 'b{gateway="two"} 2',
    ]  # fmt: skip
