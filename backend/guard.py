"""Who may ask: Basic Auth where Label Studio can send it, and a shared secret in a header for its webhooks, which carry none.

Not here: which address is listened on (backend/__main__.py), and TLS, which a proxy in front adds.
"""

import hmac

from flask import Request

from toxicity.settings import SECRET_HEADER, Settings

OPEN_PATHS = frozenset({"/", "/health"})  # they tell nothing but that the process lives, and probes carry no credentials
WEBHOOK_PATH = "/webhook"


def is_admitted(settings: Settings, request: Request) -> bool:
    """Whether a request may be answered. Without credentials in the settings each may: then only this machine is listened to."""
    if request.path in OPEN_PATHS or not settings.has_credentials():
        return True
    if request.path == WEBHOOK_PATH and _same(request.headers.get(SECRET_HEADER, ""), settings.webhook_secret):
        return True
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    # Both are compared whatever the first gives: how long it takes tells nothing.
    right = (
        _same(given.username or "", settings.basic_auth_user),
        _same(given.password or "", settings.basic_auth_pass),
    )
    return all(right)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass"))
