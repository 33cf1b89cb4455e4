"""JSON over HTTP, by the standard library: time-outs, a few tries, and errors that show what the server said."""

import dataclasses
import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

BUSY = (429, 502, 503, 504)  # the server has too much to do, or a gateway does not reach it: asked again
SHOWN_CHARS = 1_000  # of what a server says, in an error


@dataclasses.dataclass(frozen=True)
class Server:
    """Where something is asked.

    Attributes:
      url: what all paths begin with. key: sent as a bearer token, where there is one.
      timeout_s: that an answer may take. tries: before a server that does not answer, or is busy, is given up.
      wait_s: before the second try; twice as long before each further one.
    """

    url: str
    key: str = dataclasses.field(default="", repr=False)
    timeout_s: float = 3600.0
    tries: int = 5
    wait_s: float = 1.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the URL of a server is {self.url!r}: give one such as http://localhost:8000")

    def ask(self, path: str, body: Any = None) -> Any:
        """What the server answers at `path`, as JSON types: to a POST of `body`, or to a GET without one.

        Whoever asks must be content to be heard twice: where no answer comes, nobody knows whether the first one was.

        Raises: RuntimeError for an answer that is an error, or no JSON; ConnectionError where none came in all tries.
        """
        url, said = self.url.rstrip("/") + path, ""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        for tried in range(self.tries):
            if tried:
                time.sleep(self.wait_s * 2 ** (tried - 1))
            try:
                request = urllib.request.Request(url, data, headers)
                with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                    return _json(url, answer.read())
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")[:SHOWN_CHARS]
                said = f"{error.code} {error.reason}: {text}"
                if error.code not in BUSY:
                    raise RuntimeError(f"{url} refuses what it was asked, {said}") from None
            # URLError, a refused or broken connection and a time-out are all of OSError.
            except (OSError, http.client.HTTPException) as error:
                said = f"{type(error).__name__}: {error}"
        raise ConnectionError(
            f"{url} has not answered in {self.tries} tries of at most {self.timeout_s:g} s, the last with {said}: see "
            "whether the server runs, and whether the URL is its own"
        )


def _json(url: str, answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        text = answer.decode(errors="replace")[:SHOWN_CHARS]
        raise RuntimeError(f"{url} answers with what is no JSON: {text!r}") from None
