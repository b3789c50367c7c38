"""The one error that a person's input can raise. Bugs raise whatever they raise."""


class InputError(ValueError):
    """What a person gave cannot be used.

    The message is one line and says where, what was found, what was expected, and what to do next.
    """
