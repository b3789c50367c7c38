"""Hooks on modules that last as long as a ``with`` block, for whatever reads the model."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """The hooks stay while inside and are then removed, whatever happened there.

    A generator registers its hooks on entering; should one fail, those before it are removed.
    """
    with ExitStack() as held:
        for handle in handles:
            held.enter_context(handle)
        yield
