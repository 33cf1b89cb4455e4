"""The worker behind `Process` (see `workers.serve`): it makes and scores reasoning-gym's problems.

It is run by its path (`python -P worker.py DEADLINE_S`), so it imports no jax and not the caller's `__main__`. Its hash
seed is fixed by the caller: several generators iterate over sets, and the same seed must make the same problem in every
process.
"""

import copy
import functools
import hashlib
import json
import re
import resource
import sys
from collections.abc import Callable

from int_jax.workers import serve

CHUNK = 16  # problems of one seed; acre draws all of a data set's problems when it is made

# Data sets that are not admitted, and why.
REFUSED = {
    "coin_flip": "has a scorer that passes 0 for every problem",
    "game_of_life_halting": "has a scorer that passes any text",
    "composite": "is a mixture; name its parts",
    "time_intervals": "depends on today's date: tomorrow the same seed makes another problem",
}
# Their scorers hand the answer to eval, or to sympy's parser, which evaluates Python, too. What could call something
# is refused before it gets there: any call in the first, any name that is not mathematics in the second.
EVALUATED = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
PARSED = (
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
)
FUNCTIONS = (
    *("sqrt", "exp", "log", "ln", "erf", "pi", "abs", "Abs", "sin", "cos", "tan", "sec", "csc", "cot"),
    *("asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
)


def _lines(states) -> str:
    return "\n".join(" ".join(map(str, state)) if isinstance(state, list) else str(state) for state in states)


def _gsm_symbolic(m: dict) -> str:
    worked, _, answer = m["answer_cot"].rpartition("####")
    return f"{worked.strip()}\nThe answer is {answer.strip()}."


def _simple_geometry(m: dict) -> str:
    n, total, known = m["n_sides"], m["total_interior_sum"], m["sum_of_known_angles"]
    first = f"The interior angles of {n} sides add up to ({n} - 2) x 180 = {total}."
    second = f"The known ones add up to {known}."
    return f"{first}\n{second}\nThe missing one is {total} - {known} = {m['missing_angle_rounded']}."


def _base_conversion(m: dict) -> str:
    value, source, target = m["decimal_value"], m["source_base"], m["target_base"]
    first = f"{m['source_repr']} in base {source} is {value} in base 10."
    return f"{first}\n{value} in base {target} is {m['target_repr']}."


def _fraction_simplification(m: dict) -> str:
    n, d, k = m["numerator"], m["denominator"], m["reduction_factor"]
    first = f"The greatest common divisor of {n} and {d} is {k}."
    top, bottom = m["simplified_numerator"], m["simplified_denominator"]
    return f"{first}\n{n} / {k} = {top} and {d} / {k} = {bottom}.\nThe fraction is {top}/{bottom}."


def _count_bits(m: dict) -> str:
    return f"{m['number']} in binary is {m['binary']}.\nIt has {m['solution']} ones."


# Data sets whose metadata hold more of the way than the answer: what makes a reference solution of it.
REFERENCES = {
    "base_conversion": _base_conversion,
    "count_bits": _count_bits,
    "fraction_simplification": _fraction_simplification,
    "gsm_symbolic": _gsm_symbolic,
    "simple_geometry": _simple_geometry,
    "string_manipulation": lambda m: _lines(m["states"]),
    "string_splitting": lambda m: _lines(m["states"]),
    "string_synthesis": lambda m: _lines(m["states"]),
}


def digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def harmless(name: str, answer: str) -> bool:
    """Whether an answer may be shown to its scorer."""
    if name in EVALUATED:
        return "(" not in answer
    if name in PARSED:
        names = re.findall(r"[^\W\d]\w*", answer)
        return all(len(one) == 1 or one in FUNCTIONS for one in names) and not set(answer) & set("\"'\\[]{}")
    return name != "complex_arithmetic" or "nan" not in answer.casefold()  # nan passes for every number


@functools.lru_cache(maxsize=64)
def dataset(name: str, config: str, seed: int):
    import reasoning_gym

    return reasoning_gym.create_dataset(name, **json.loads(config), seed=seed, size=CHUNK)


@functools.lru_cache(maxsize=1024)
def problem(name: str, config: str, seed: int, index: int) -> dict:
    return dataset(name, config, seed)[index]


def make(name: str, config: dict, seed: int) -> dict:
    """{"items": [[index, question, answer, reference], ...]}, or {"error": what the generator says}."""
    spelled = json.dumps(config, sort_keys=True)
    try:
        dataset(name, spelled, seed)
    except Exception as error:  # a configuration it does not take: asserts, types, values
        return {"error": f"{type(error).__name__}: {error}"}
    items = []
    for index in range(CHUNK):
        one = problem(name, spelled, seed, index)
        reference = REFERENCES[name](one["metadata"]) if name in REFERENCES else ""
        answer = "" if one["answer"] is None else str(one["answer"])
        items.append([index, one["question"], answer, reference])
    return {"items": items}


def recall(name: str, config: dict, seed: int, index: int, expected: str) -> dict:
    """Make a problem again, apart from its score: sokoban takes seconds. {"same": whether it is the expected one}."""
    question = problem(name, json.dumps(config, sort_keys=True), seed, index)["question"]
    return {"same": digest(question) == expected}


def score(name: str, config: dict, seed: int, index: int, answer: str) -> dict:
    """{"score": 0 to 1} or {"fault": a verdict's reason}."""
    if not harmless(name, answer):
        return {"fault": "unparsable"}
    spelled = json.dumps(config, sort_keys=True)
    one = copy.deepcopy(problem(name, spelled, seed, index))
    try:
        value = float(dataset(name, spelled, seed).score_answer(answer, one))
    except Exception:  # of the many scorers some do not expect every text
        return {"fault": "unparsable"}
    return {"score": value} if 0 <= value <= 1 else {"fault": "unparsable"}


def names() -> dict:
    from reasoning_gym.factory import DATASETS

    return {"names": sorted(set(DATASETS) - set(REFUSED))}


OPERATIONS: dict[str, Callable[..., dict]] = {"make": make, "recall": recall, "score": score, "names": names}


def operate(operation: str, arguments: dict) -> dict:
    return OPERATIONS[operation](**arguments)


def main(deadline_s: float) -> None:
    import reasoning_gym  # noqa: F401  # within the start's deadline, not the first item's

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file is written from here on
    serve(operate, deadline_s)


if __name__ == "__main__":
    main(float(sys.argv[1]))
