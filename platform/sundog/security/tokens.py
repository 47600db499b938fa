"""Bearer tokens of an OpenID provider beside our own keys: signature, issuer, audience, expiry, services.

Verifies from memory; the provider's keys are fetched in the background and kept while it is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any

import httpx
import jwt
from pydantic import BaseModel, ConfigDict, ValidationError

from sundog.clock import WALL
from sundog.errors import SpecError
from sundog.security.authoriser import ANONYMOUS, Authoriser, Headers, Identity, Refusal

REFRESH_S = 600.0
SOONEST_S = 10.0
"""An unknown key id may make us ask the provider again, but not more often than this."""
MAX_SEEN = 10_000
# Asymmetric ones only: with a shared secret whoever verifies could sign.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
_EXAMPLE = 'SUNDOG_OIDC={"issuer": "https://login.example", "audience": "sundog"}'

log = logging.getLogger("sundog.gateway")
Fetch = Callable[[str], Awaitable[dict[str, Any]]]


class Oidc(BaseModel):
    """`SUNDOG_OIDC`. Without `jwks_url` the issuer's discovery document says where its keys are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str
    audience: str
    jwks_url: str | None = None
    claim: str = "sundog_services"
    """which claim lists the services that a token is for; patterns as in the scopes of keys"""
    services: tuple[str, ...] = ()
    """what a token without that claim is for"""


def oidc_of(text: str) -> Oidc | None:
    """Raises SpecError."""
    if not text.strip():
        return None
    try:
        return Oidc.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise SpecError(
            f"SUNDOG_OIDC is not understood: {where}: {first['msg']}", f"write {_EXAMPLE}"
        ) from None


class TokenRing:
    """Tokens for who brings one, `keys` for who does not; nobody is let in without either."""

    def __init__(
        self,
        oidc: Oidc,
        keys: Authoriser,
        fetch: Fetch | None = None,
        now_s: Callable[[], float] = WALL.now_s,
    ) -> None:
        self._oidc = oidc
        self._keys = keys
        self._fetch = fetch or _get
        self._now_s = now_s
        self._signers: dict[str, Any] = {}
        self._seen: dict[bytes, tuple[str, tuple[str, ...], float]] = {}
        self._wanted = asyncio.Event()

    def authorise(self, headers: Headers, service: str) -> Identity | Refusal:
        token = _bearer(headers)
        if token is None or token.count(b".") != 2:
            verdict = self._keys.authorise(headers, service)
            if verdict is ANONYMOUS:
                return Refusal(401, "this gateway asks for a token of its provider, or for a key")
            return verdict
        known = self._seen.get(token)
        if known is None or known[2] <= self._now_s():
            checked = self._check(token)
            if isinstance(checked, Refusal):
                return checked
            known = checked
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen[token] = known
        subject, services, _ = known
        if service and not any(fnmatchcase(service, pattern) for pattern in services):
            return Refusal(
                403, f"this token is not for service {service!r}", key_id=f"jwt:{subject}"
            )
        return Identity(f"jwt:{subject}", services)

    def _check(self, token: bytes) -> tuple[str, tuple[str, ...], float] | Refusal:
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
            signer = self._signers.get(kid)
            if signer is None:
                self._wanted.set()
                return Refusal(
                    401, "no key of the provider signed this token, as far as is known", 1
                )
            claims = jwt.decode(
                token, signer, algorithms=ALGORITHMS, audience=self._oidc.audience,
                issuer=self._oidc.issuer,
                options={"require": ["exp", "sub"], "verify_exp": False, "verify_nbf": False,
                         "verify_iat": False},
            )  # fmt: skip
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            # Not only its own: a token that names another algorithm than its key's is a TypeError.
            return Refusal(401, f"this token is not accepted: {error}")
        now_s = self._now_s()
        if not isinstance(claims["exp"], int | float) or claims["exp"] <= now_s:
            return Refusal(401, "this token has expired")
        if isinstance(claims.get("nbf"), int | float) and claims["nbf"] > now_s + 60:
            return Refusal(401, "this token is not valid yet")
        listed = claims.get(self._oidc.claim, self._oidc.services)
        if isinstance(listed, str):
            listed = listed.split()
        # Anything else, null or a number, names no service.
        named = listed if isinstance(listed, list | tuple) else ()
        services = tuple(s for s in named if isinstance(s, str))
        subject = "".join(c for c in str(claims["sub"])[:64] if c.isalnum() or c in "-_.@|:")
        return subject, services, float(claims["exp"])

    async def refresh(self) -> None:
        """Fetch the provider's keys. Raises what the fetch raises, and then keeps the old ones."""
        url = self._oidc.jwks_url
        if url is None:
            issuer = self._oidc.issuer.rstrip("/")
            url = (await self._fetch(f"{issuer}/.well-known/openid-configuration"))["jwks_uri"]
        found = jwt.PyJWKSet.from_dict(await self._fetch(str(url)))
        self._signers = {k.key_id or "": k.key for k in found.keys}
        self._seen.clear()  # what a withdrawn key has signed counts no more

    async def refresh_forever(self) -> None:
        while True:
            try:
                await self.refresh()
            except (httpx.HTTPError, jwt.PyJWTError, KeyError, ValueError, TypeError) as error:
                log.warning("the provider's keys are not fetched, the old ones stay: %s", error)
            self._wanted.clear()
            await asyncio.sleep(SOONEST_S if self._signers else 1.0)
            try:
                async with asyncio.timeout(REFRESH_S if self._signers else SOONEST_S):
                    await self._wanted.wait()
            except TimeoutError:
                continue


async def _get(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=10, follow_redirects=False) as client:
        answer = await client.get(url)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document


def _bearer(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip() if scheme.lower() == b"bearer" else None
    return None
