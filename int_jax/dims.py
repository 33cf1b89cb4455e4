"""The key of dimension letters, and `@check`, which compares name suffixes with shapes while tracing.

An array's name ends in its shape: `hidden_BTD` has axes rows, sequence, model. The suffix documents the shape, is
checked here, is spelled in the einsum, and picks the sharding (`sharding.py`). After Noam Shazeer's "shape suffixes".
"""

import functools
import inspect
from collections.abc import Mapping

KEY = {
    "A": "states of the beginnings that responses must have",
    "B": "rows of a batch",
    "C": "tokens of one chunk, of the vocabulary head or of decoding",
    "D": "model (residual stream)",
    "E": "stop ids of a row",
    "F": "feed-forward",
    "G": "samples of one problem",
    "H": "query heads",
    "I": "tokens of an intervention, or the values of a place on a TPU's page: of one head, or of several small ones",
    "J": "steps of a trace",
    "K": "one head",
    "L": "layers",
    "M": "micro-batches",
    "N": "key/value heads",
    "P": "pages of one row",
    "Q": "queries per key/value head",
    "R": "response tokens, or the rank of adapters",
    "S": "cache positions",
    "T": "sequence tokens",
    "U": "key/value heads on a TPU's page, keys and values by turns",
    "V": "vocabulary",
    "W": "pages of the pool",
    "X": "queries of one key/value head, Q x T",
    "Y": "ids allowed in one of the states A",
    "Z": "tokens of a page, or the logits of one bin",
}


def suffix(name: str) -> str:
    """The shape suffix of a name, "" if it has none: suffix("q_DHK") == "DHK", suffix("seed") == ""."""
    # All letters of the key: max_len and q_norm have no suffix, PARTS has no underscore.
    _, underscore, tail = name.rpartition("_")
    return tail if underscore and tail and all(letter in KEY for letter in tail) else ""


def _match(name: str, value, sizes: dict, where: str) -> None:
    """Bind the letters of `name` to the sizes of `value`, or raise where they disagree."""
    # A NamedTuple first, since it is a tuple, too: its fields have names of their own.
    if hasattr(value, "_fields"):
        for field, item in zip(value._fields, value, strict=True):
            _match(field, item, sizes, where)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _match(key, item, sizes, where)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _match(name, item, sizes, where)
    elif (letters := suffix(name)) and hasattr(value, "shape"):
        if len(letters) != len(value.shape):
            raise ValueError(f"{where}: {name} names {len(letters)} axes but has shape {tuple(value.shape)}")
        for letter, size in zip(letters, value.shape, strict=True):
            # The first array that has the letter gives its size, whatever it is.
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{where}: axis {letter} ({KEY[letter]}) of {name} has size {size}, "
                    f"elsewhere in this call it is {sizes[letter]}"
                )


def check(function):
    """Check each argument, and the result, of a call against the letters of its name; costs nothing once traced.

    One letter has one size within a call. NamedTuples, mappings and lists are checked by their fields and keys; the
    result is checked if the function's own name carries a suffix or it returns a NamedTuple.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        sizes: dict[str, int] = {}
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            _match(name, value, sizes, function.__qualname__)
        result = function(*args, **kwargs)
        _match(function.__name__, result, sizes, function.__qualname__)
        return result

    return checked
