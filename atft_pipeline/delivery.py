"""Delivers one message to one address; no part of an address reaches a log or an error.

What is worth a message is decided in ``alerts.py``.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

HIDDEN = "***"
SHORTEST_SECRET = 4
"""Shorter pieces of an address are words such as a port; hiding them would hide the message."""


@dataclass(frozen=True)
class Address:
    """Where alerts go.

    Attributes:
        label: What logs say instead of the address: its scheme and its place among those of the
            same scheme, such as ``slack 2``.
        url: In apprise's spelling; tokens and passwords are part of it.
    """

    label: str
    url: str = field(repr=False)


class DeliveryError(RuntimeError):
    """An address refused a message; names the address by its label alone."""


def labelled(urls: Iterable[str]) -> list[Address]:
    """The addresses with their labels."""
    seen: Counter[str] = Counter()
    found = []
    for url in urls:
        scheme, separator, _ = url.partition("://")
        scheme = scheme if separator and scheme.isalnum() else "address"
        seen[scheme] += 1
        found.append(Address(f"{scheme} {seen[scheme]}", url))
    return found


def deliver(address: Address, title: str, body: str) -> None:
    """Sends one message.

    Raises:
        DeliveryError: apprise cannot read the address, or its service did not take the message.
    """
    import apprise  # 0.3 s of processor time: not at definition load

    with _apprise_says() as said:
        notifier = apprise.Apprise()
        if not notifier.add(address.url):
            raise DeliveryError(
                f"{address.label}: ATFT_ALERTS holds an address that apprise cannot read; "
                "expected one such as slack://... (then: make alert-test)"
            )
        taken = notifier.notify(title=title, body=body)
    if not taken:
        reason = hide(" ".join(said), secrets_of(address.url)) or "no reason given"
        raise DeliveryError(f"{address.label}: not delivered: {reason}")


def secrets_of(url: str) -> list[str]:
    """Every piece of an address that could be a token: with some services even the host is one."""
    _, _, rest = url.partition("://")
    pieces = re.split(r"[/:@?&=,]", rest or url)
    return [url, *(piece for piece in pieces if len(piece) >= SHORTEST_SECRET)]


def hide(text: str, secrets: Iterable[str]) -> str:
    """The text with ``***`` for every secret."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


@contextmanager
def _apprise_says() -> Iterator[list[str]]:
    """Collects apprise's warnings, which quote addresses, instead of letting them be logged."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger = logging.getLogger("apprise")
    collector, propagate = Collector(logging.WARNING), logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate
