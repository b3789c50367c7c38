"""The J-Quants client as this project uses it: paced, patient, and silent about the key.

Requests, paging and parsing are those of ``jquants-api-client``. Here is what it leaves to its
user: how fast to ask, when to ask again, which answers are none, and errors that a person can act
on. What is asked for, and what becomes of it, is decided in ``jquants``.
"""

import datetime as dt
import logging
import re
from dataclasses import dataclass
from typing import Any

import requests
from jquantsapi import ClientV2
from requests.adapters import HTTPAdapter

from atft_model.errors import InputError
from atft_pipeline.sources.jquants_plan import NotInPlanError, OutsidePlanError, Window
from atft_pipeline.sources.pace import Pace

RATE_BACKOFF_SECONDS = 30.0
"""First wait after 429, doubled each time: who goes on asking is shut out for about 5 minutes."""
BACKOFF_SECONDS = 2.0
"""First wait after another failure, doubled each time."""
MAX_WAIT_SECONDS = 600.0
MESSAGE_LENGTH = 200

# The vendor's words, and what they mean for the caller.
COVERED = re.compile(
    r"covers the following dates:\s*(\d{4}-\d\d-\d\d)?\s*[~～]\s*(\d{4}-\d\d-\d\d)?"
)
NOT_IN_PLAN = "not available on your subscription"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    """Why a request gave nothing usable, and how long to wait before the next attempt."""

    reason: str
    wait: float


class PacedClient(ClientV2):
    """``ClientV2`` that asks at the plan's pace and again after a passing failure.

    Args:
        api_key: Sent as a header and nowhere else.
        base_url: The API's address, without a slash at the end.
        pace: Spaces every request, each page and each further attempt included.
        timeout_seconds: How long the server may be silent.
        attempts: How often one page is asked for before the sync gives up.

    Raises:
        InputError: from any call, in one line: a refused key, a refused request, or no usable
            answer in ``attempts``.
        OutsidePlanError: the plan covers other dates.
        NotInPlanError: the plan does not have the table.
    """

    def __init__(
        self, api_key: str, base_url: str, pace: Pace, timeout_seconds: float, attempts: int
    ) -> None:
        super().__init__(api_key=api_key)
        self.JQUANTS_API_BASE = base_url
        self.pace = pace
        self.timeout_seconds = timeout_seconds
        self.attempts = attempts

    def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            self._session.close()

    def _load_config(self) -> dict[str, Any]:
        """Nothing: the key is given, and the client's own files are not looked for."""
        return {}

    def _request_session(
        self, status_forcelist: list[int] | None = None, allowed_methods: list[str] | None = None
    ) -> requests.Session:
        """A session that neither retries by itself (at once, unpaced) nor follows a redirect.

        A redirect would take the header with the key to another host.
        """
        if self._session is None:
            self._session = requests.Session()
            self._session.max_redirects = 0
            for scheme in ("https://", "http://"):
                self._session.mount(scheme, _Adapter(self.timeout_seconds))
        return self._session

    def _get(self, url: str, params: dict[str, Any] | None = None) -> requests.Response:
        """One page; the client's paging comes here for each."""
        what = _describe(url.removeprefix(self.JQUANTS_API_BASE), params)
        failure = _Failure("not asked", 0.0)
        for attempt in range(self.attempts):
            if attempt:
                logger.warning(
                    "J-Quants %s: %s; attempt %d of %d in %.0f s",
                    what, failure.reason, attempt + 1, self.attempts, failure.wait,
                )  # fmt: skip
                self.pace.clock.sleep(failure.wait)
            self.pace.wait()
            answer = self._attempt(url, params, attempt, what)
            if isinstance(answer, requests.Response):
                return answer
            failure = answer
        raise InputError(
            f"J-Quants {what}: no usable answer in {self.attempts} attempts (last: "
            f"{failure.reason}); what was fetched before is kept; run again later to go on"
        )

    def _attempt(
        self, url: str, params: dict[str, Any] | None, attempt: int, what: str
    ) -> requests.Response | _Failure:
        wait = min(BACKOFF_SECONDS * 2**attempt, MAX_WAIT_SECONDS)
        try:
            response = super()._get(url, params)
        except (requests.HTTPError, requests.TooManyRedirects) as error:
            refused = error.response
        except requests.Timeout:
            return _Failure(f"no answer within {self.timeout_seconds:g} s", wait)
        except requests.ConnectionError as error:
            return _Failure(f"no connection ({self._clean(str(error))})", wait)
        except requests.RequestException as error:
            return _Failure(f"the answer broke off ({type(error).__name__})", wait)
        else:
            problem = _not_a_page(response, params)
            return _Failure(problem, wait) if problem else response
        # Outside of the handler, so that no error carries the client's one along.
        if refused is None:
            return _Failure("an error without an answer", wait)
        return self._refused(refused, attempt, wait, what)

    def _refused(
        self, response: requests.Response, attempt: int, wait: float, what: str
    ) -> _Failure:
        """The failure of a status that may pass; raises for one that will not."""
        status, message = response.status_code, self._clean(_message(response))
        if status == 429:
            wait = min(RATE_BACKOFF_SECONDS * 2**attempt, MAX_WAIT_SECONDS)
        if status == 429 or status >= 500:
            asked = response.headers.get("Retry-After", "")
            wait = max(wait, min(float(asked), MAX_WAIT_SECONDS)) if asked.isdigit() else wait
            return _Failure(f"{status} {message}", wait)
        covered = COVERED.search(message)
        if covered:
            first, last = (dt.date.fromisoformat(day) if day else None for day in covered.groups())
            raise OutsidePlanError(Window(first or dt.date.min, last or dt.date.max))
        if status == 403 and NOT_IN_PLAN in message:
            raise NotInPlanError(message)
        if status in (401, 403):
            raise InputError(
                f"J-Quants {what}: refused with {status} ({message}); expected a valid API key of "
                "an active plan; check JQUANTS_API_KEY and the plan on the J-Quants dashboard"
            )
        raise InputError(
            f"J-Quants {what}: refused with {status} ({message}); expected an answer; correct the "
            "dates or, if the API has changed, the version of jquants-api-client"
        )

    def _clean(self, text: str) -> str:
        """The text in one short line without the key: a server may repeat what it was sent."""
        line = " ".join(text.replace(self._api_key, "***").split())
        return line if len(line) <= MESSAGE_LENGTH else f"{line[:MESSAGE_LENGTH]}..."


class _Adapter(HTTPAdapter):
    """Sends with this time limit: the client's own is fixed at 30 s."""

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(max_retries=0)
        self.timeout_seconds = timeout_seconds

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None,
        verify: Any = True, cert: Any = None, proxies: Any = None,
    ) -> requests.Response:  # fmt: skip
        return super().send(request, stream, self.timeout_seconds, verify, cert, proxies)


def _describe(path: str, params: dict[str, Any] | None) -> str:
    """The request in words; a page's key is long and says nothing."""
    shown = [f"{name}={value}" for name, value in (params or {}).items() if "key" not in name]
    return path + ("?" + "&".join(shown) if shown else "")


def _not_a_page(response: requests.Response, params: dict[str, Any] | None) -> str | None:
    """Why a response of a good status is no page of data; the client would read some as no rows."""
    if response.status_code != 200:
        return f"status {response.status_code}, which holds no data"
    try:
        payload = response.json()
    except requests.JSONDecodeError:
        return f"the answer is no JSON or broke off ({len(response.content)} bytes)"
    if not isinstance(payload, dict) or not isinstance(payload.get("data"), list):
        return "the answer holds no list 'data'"
    key = payload.get("pagination_key")
    if key and key == (params or {}).get("pagination_key"):
        return "a page names itself as the next one"
    return None


def _message(response: requests.Response) -> str:
    try:
        body = response.json()
    except requests.JSONDecodeError:
        return response.reason or response.text
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or response.reason or body)
