"""Errors in the form that OpenAI's clients understand."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY = {429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
"""Headers by status, of errors that pass: seconds to wait."""
LONGEST_QUOTE = 80


class Refusal(Exception):
    """A request that cannot be answered: an HTTP status and OpenAI's error object."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, *, status: int = 400) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}"""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=RETRY.get(self.status))


def shortened(text: str) -> str:
    """A client's own words in a line that goes back to it, or into the log."""
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."
