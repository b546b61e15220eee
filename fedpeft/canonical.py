"""The one JSON text of a value, for what is hashed or signed.

Keys sorted, no spaces, ASCII, numbers whole: a float is written as the text of its `repr`, which
gives the same float back.
"""

import json


def canonical(value: object) -> str:
    """Returns the one JSON text of a value made of objects, lists, text, whole numbers and null.

    Raises:
        TypeError: If there is a float, or a key that is no text.
    """
    _refuse_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_float(value: float) -> str:
    """Returns the shortest text that gives the same float back."""
    return repr(float(value))


def read_float(text: object) -> float:
    """Returns the float that `write_float` wrote.

    Raises:
        ValueError: If it is written in any other way.
    """
    if not isinstance(text, str) or repr(float(text)) != text:
        raise ValueError(f"{text!r} is no float as it is written here")
    return float(text)


def _refuse_floats(value: object) -> None:
    if isinstance(value, float):
        raise TypeError(f"a float ({value!r}) has no single JSON text")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key must be text, got {key!r}")
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)
