"""Asking the Hugging Face hub: each request about a data set has a time limit, is checked, and is tried again a few times.

The hub's own client waits without a limit for some answers, believes whatever a range of bytes is answered with, and sleeps
for as long as a Retry-After says. `install` puts a client in its place that does otherwise; what is not about data sets,
models for instance, passes through it unchanged.
"""

from __future__ import annotations

import email.utils
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from lmloop.data.source import one_line

REACH_S = 3.0
"""How long the hub may take to answer at all, once per process."""

STALL_S = 10.0
"""A connection over which no byte has come for so long is broken."""

SLOW_S = 30.0
SLOWEST_BYTES_PER_S = 500.0
"""And so is one that after SLOW_S is slower than this on average: a few bytes now and then are a stall too."""

PAUSES_S = (1.0, 4.0, 15.0)
"""Pauses before a request is sent again, each half to one and a half times as long, so that many clients do not come back
at once. After the last it has failed: a dead server costs about 20 s, one that accepts and says nothing about 60."""

MAX_RETRY_AFTER_S = 120.0
"""The longest of the pauses that a server may ask for by Retry-After."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_POLL_S = 0.1
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RESET = re.compile(r"\br=0;\s*t=(\d+)")

# Of its own: the global generator belongs to the run, whose numbers must not depend on the network.
_random = random.Random()


class HubError(ConnectionError):
    """The hub, or the way to it, failed in spite of several attempts. One line."""


class _Unfit(Exception):  # noqa: N818
    """An answer that is not what was asked for; `after_s` is how long the server wants to be left alone."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


@cache
def install() -> None:
    """Have the hub's library send its requests through our client; once per process."""
    import huggingface_hub.utils
    from huggingface_hub.utils import get_session, set_client_factory

    huggingface_hub.utils.logging.set_verbosity_error()  # a warning for each attempt says nothing that helps
    # httpx or, in later versions, httpx2
    library: Any = sys.modules[type(get_session()).__module__.partition(".")[0]]
    client = _client_class(library)
    set_client_factory(lambda: client(follow_redirects=True, timeout=None))


def _client_class(library: Any) -> Any:
    """Our client, made from that of the HTTP library that the hub's library uses."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    class Body(library.SyncByteStream):
        """The body of an answer, which must be as long as it should be and come at some speed."""

        def __init__(self, inner: Any, expected: int | None) -> None:
            self.inner = inner
            self.expected = expected

        def __iter__(self) -> Any:
            start, count = time.monotonic(), 0
            for chunk in self.inner:
                count += len(chunk)
                yield chunk
                lasted_s = time.monotonic() - start
                if lasted_s > SLOW_S and count < SLOWEST_BYTES_PER_S * lasted_s:
                    raise _Unfit(f"only {count} bytes in {lasted_s:.0f} s")
            if self.expected not in (None, count):
                raise _Unfit(f"{count} bytes came in place of {self.expected}")

        def close(self) -> None:
            self.inner.close()

    class Client(library.Client):
        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            if constants.HF_HUB_OFFLINE:
                raise OfflineModeIsEnabled(f"{request.url} is not asked: HF_HUB_OFFLINE is set")
            if not str(request.url).startswith(constants.ENDPOINT) or "/datasets/" not in request.url.path:
                return super().send(request, stream=stream, **options)
            return _patiently(lambda: self.once(request, stream, options), library, request.url.host)

        def once(self, request: Any, stream: bool, options: dict[str, Any]) -> Any:
            limits = dict.fromkeys(("connect", "read", "write", "pool"), STALL_S)
            request.extensions = {**request.extensions, "timeout": limits}
            if "Range" in request.headers:
                request.headers["Accept-Encoding"] = "identity"
            response = super().send(request, stream=True, **options)
            try:
                response.stream = Body(response.stream, _check(request, response))
                if not stream:
                    response.read()
            except BaseException:
                response.close()
                raise
            return response

    return Client


def _check(request: Any, response: Any) -> int | None:
    """The length that the body must have, where the request said so. _Unfit: this cannot be the answer."""
    status, headers = response.status_code, response.headers
    if status in _BUSY:
        raise _Unfit(f"answers {status} {response.reason_phrase}".rstrip(), _retry_after_s(headers))
    if status == 200 and headers.get("Content-Type", "").startswith("text/html") and not _wants_html(request.url.path):
        raise _Unfit("sent a web page in place of data")
    asked = _RANGE.fullmatch(request.headers.get("Range", ""))
    if asked is None or status not in (200, 206):
        return None
    first, last = int(asked[1]), int(asked[2])
    if status == 200:
        if first == 0 and headers.get("Content-Length") == str(last + 1):
            return last + 1
        raise _Unfit("sent a whole file in place of a part: it does not know ranges")
    came = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if came is not None and came[3] != "*":
        last = min(last, int(came[3]) - 1)
    if came is None or (int(came[1]), int(came[2])) != (first, last) or "Content-Encoding" in headers:
        said = one_line(headers.get("Content-Range", "nothing"), 60)
        raise _Unfit(f"sent another part of a file than was asked for ({said}, not bytes {first}-{last})")
    return last - first + 1


def _wants_html(path: str) -> bool:
    return path.lower().endswith((".html", ".htm"))


def _retry_after_s(headers: Any) -> float:
    """What a busy server asks for, in seconds; 0 where it does not."""
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        return max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        reset = _RESET.search(headers.get("RateLimit", ""))  # the hub's own way
        return float(reset[1]) if reset else 0.0


def _patiently(ask: Callable[[], Any], library: Any, host: str) -> Any:
    """What `ask` returns at the first attempt that succeeds. HubError after the last."""
    pauses = iter(PAUSES_S)
    while True:
        try:
            return ask()
        except (library.RequestError, _Unfit) as error:
            pause_s = next(pauses, None)
            if pause_s is None or not _pause(pause_s, getattr(error, "after_s", 0.0)):
                raise HubError(f"{host}: {_words(error, library)}") from error


def _pause(pause_s: float, after_s: float) -> bool:
    """Wait before the next attempt. False: the program ends, so there is none."""
    wait_s = min(max(pause_s * _random.uniform(0.5, 1.5), after_s), MAX_RETRY_AFTER_S)
    until = time.monotonic() + wait_s
    while (left_s := until - time.monotonic()) > 0:
        if not threading.main_thread().is_alive():
            return False
        time.sleep(min(left_s, _POLL_S))
    return True


def _words(error: Exception, library: Any) -> str:
    if isinstance(error, library.TimeoutException):
        return f"no answer for {STALL_S:g} s"
    if isinstance(error, library.TooManyRedirects):
        return "redirects in a circle"
    return one_line(error, 160)


@cache
def unreachable() -> str | None:
    """Why the hub does not answer, or None when it does; asked once per process.

    The attempts above take 20 s for each data set before they give up. Names are looked up in a thread, for no timeout ends
    a lookup.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_ask(constants.ENDPOINT)), daemon=True, name="hub-reach")
    thread.start()
    thread.join(REACH_S)
    return answer[0] if answer else f"no answer within {REACH_S:.0f} s"


def _ask(endpoint: str) -> str | None:
    import urllib.error
    import urllib.request

    reason, start = "", time.monotonic()
    for attempt in range(2):
        if attempt:
            time.sleep(0.5)
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=2 * REACH_S):
                return None
        except urllib.error.HTTPError:
            return None  # an answer, whatever it says
        except (OSError, ValueError) as error:
            reason = one_line(getattr(error, "reason", None) or error, 120)
        if time.monotonic() - start > REACH_S / 2:
            break  # nobody waits for a second answer
    return reason
