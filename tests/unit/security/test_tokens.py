"""Tokens of an OpenID provider: who is let in, who is not, and what happens when its keys change."""

from __future__ import annotations

import asyncio
import json

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sundog.errors import SpecError
from sundog.security.authoriser import Identity, Refusal
from sundog.security.keys import KeyRing, new_key
from sundog.security.tokens import Oidc, TokenRing, oidc_of

ISSUER = "https://login.example"
NOW_S = 1_000_000.0


class Provider:
    """Signs with RSA and serves its keys, as the discovery document says."""

    def __init__(self):
        self.signers = {}
        self.away = False
        self.asked = []

    def new_key(self, kid, algorithm="RS256"):
        private = (
            rsa.generate_private_key(65537, 2048)
            if algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.signers[kid] = (private, algorithm)

    def token(self, kid="a", **claims):
        private, algorithm = self.signers[kid]
        body = {"iss": ISSUER, "aud": "sundog", "sub": "ann", "exp": NOW_S + 60,
                "sundog_services": ["digits", "chat-*"]} | claims  # fmt: skip
        body = {k: v for k, v in body.items() if v is not None}
        return jwt.encode(body, private, algorithm, headers={"kid": kid})

    async def fetch(self, url):
        self.asked.append(url)
        if self.away:
            raise httpx.ConnectError("away")
        if url.endswith("openid-configuration"):
            return {"jwks_uri": f"{ISSUER}/keys"}
        keys = []
        for kid, (private, algorithm) in self.signers.items():
            make = jwt.algorithms.get_default_algorithms()[algorithm].to_jwk
            keys.append({**json.loads(make(private.public_key())), "kid": kid, "alg": algorithm})
        return {"keys": keys}


@pytest.fixture
def provider():
    made = Provider()
    made.new_key("a")
    return made


def ring(provider, keys=None, now=lambda: NOW_S, **more):
    made = TokenRing(
        Oidc(issuer=ISSUER, audience="sundog", **more), keys or KeyRing(), provider.fetch, now
    )
    asyncio.run(made.refresh())
    return made


def ask(made, token, service="digits"):
    return made.authorise([(b"authorization", b"Bearer " + token.encode())], service)


def test_a_good_token_is_let_in_to_its_services(provider):
    made = ring(provider)
    assert ask(made, provider.token()) == Identity("jwt:ann")
    assert ask(made, provider.token(), "chat-small") == Identity("jwt:ann")
    assert ask(made, provider.token(), "other").status == 403
    assert ask(made, provider.token(sundog_services="other more"), "more") == Identity("jwt:ann")
    assert provider.asked == [f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/keys"]


@pytest.mark.parametrize(
    ("claims", "says"),
    [({"aud": "else"}, "udience"), ({"iss": "https://evil"}, "ssuer"), ({"exp": NOW_S - 1}, "expired"),
     ({"exp": None}, "exp"), ({"sub": None}, "sub"), ({"nbf": NOW_S + 600}, "not valid yet")],
)  # fmt: skip
def test_claims_that_are_not_right(provider, claims, says):
    verdict = ask(ring(provider), provider.token(**claims))
    assert isinstance(verdict, Refusal)
    assert (verdict.status, says in verdict.message) == (401, True)


@pytest.mark.parametrize("listed", [3, True, {"digits": 1}, [None, 3]])
def test_a_claim_that_is_no_list_names_no_service(provider, listed):
    token = provider.token(sundog_services=listed)
    assert ask(ring(provider, services=["*"]), token).status == 403


def test_forgeries(provider):
    made = ring(provider)
    good = provider.token()
    head, body, mark = good.split(".")
    public = provider.signers["a"][0].public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    import base64
    import hashlib
    import hmac

    def part(document):
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()

    # The classic: signed with the public key as if it were a shared secret.
    text = f"{part({'alg': 'HS256', 'kid': 'a'})}.{body}"
    secret = hmac.new(public, text.encode(), hashlib.sha256).digest()
    shared = f"{text}.{base64.urlsafe_b64encode(secret).rstrip(b'=').decode()}"
    other = Provider()
    other.new_key("a")
    for token in (
        shared, f"{part({'alg': 'none', 'kid': 'a'})}.{body}.", f"{head}.{body}.{mark[:-8]}AAAAAAAA",
        other.token(), "a.b.c", f"{head}.{part({'sub': 'root'})}.{mark}",
    ):  # fmt: skip
        assert ask(made, token).status == 401, token


@pytest.mark.parametrize("named", ["ES256", "RS256", "PS256", "EdDSA"])
@pytest.mark.parametrize("kind", ["RS256", "ES256"])
def test_a_token_that_names_another_algorithm_than_its_keys_is_refused(provider, kind, named):
    provider.new_key("k", kind)
    made = ring(provider)
    _, body, mark = provider.token("k").split(".")
    head = json.dumps({"alg": named, "kid": "k"}).encode()
    token = f"{jwt.utils.base64url_encode(head).decode()}.{body}.{mark}"
    assert ask(made, token).status == 401


def test_a_token_says_what_its_bearer_may_see_and_whom_a_refusal_is_for(provider):
    made = ring(provider)
    seen = ask(made, provider.token(), "")
    assert [seen.may(s) for s in ("digits", "chat-small", "other")] == [True, True, False]
    assert not seen.sees_all
    assert ask(made, provider.token(), "other").key_id == "jwt:ann"


def test_a_token_that_was_accepted_expires_all_the_same(provider):
    time = [NOW_S]
    made = ring(provider, now=lambda: time[0])
    token = provider.token()
    assert ask(made, token) == Identity("jwt:ann")
    time[0] += 61
    assert ask(made, token).status == 401


def test_new_keys_are_learnt_withdrawn_ones_forgotten_and_old_ones_kept_while_it_is_away(provider):
    made = ring(provider)
    token = provider.token()
    assert ask(made, token) == Identity("jwt:ann")
    provider.new_key("b", "ES256")
    assert ask(made, provider.token("b")).status == 401
    assert made._wanted.is_set(), "an unknown key is asked for"
    asyncio.run(made.refresh())
    assert ask(made, provider.token("b")) == Identity("jwt:ann")
    provider.away = True
    with pytest.raises(httpx.ConnectError):
        asyncio.run(made.refresh())
    assert ask(made, token) == Identity("jwt:ann")
    provider.away = False
    del provider.signers["a"]
    asyncio.run(made.refresh())
    assert ask(made, token).status == 401


def test_keys_work_beside_tokens_and_nobody_is_let_in_without_either(provider):
    keys = KeyRing()
    made = ring(provider, keys)
    assert made.authorise([], "digits").status == 401
    key, record = new_key("me", NOW_S)
    keys.update([record.document()])
    assert ask(made, key) == Identity(record.key_id)
    assert made.authorise([], "digits").status == 401


def test_a_token_without_the_claim_is_for_what_the_configuration_says(provider):
    token = provider.token(sundog_services=None)
    assert ask(ring(provider), token).status == 403
    assert ask(ring(provider, services=["dig*"]), token) == Identity("jwt:ann")


@pytest.mark.parametrize(
    "text", ["nonsense", '{"issuer": "x"}', '{"issuer":"x","audience":"y","z":1}']
)
def test_a_configuration_that_is_not_understood(text):
    with pytest.raises(SpecError, match="SUNDOG_OIDC") as caught:
        oidc_of(text)
    assert "audience" in caught.value.fix


def test_no_configuration():
    assert oidc_of("") is None
