"""Intervention Training (InT, arXiv 2601.14209) in JAX. The public face; everything else may change.

    lm = int_jax.load(path_or_hub_id, mesh=None, dtype="float32", param_dtype=None, chat=None, family="")
                                                                   # LM(model, params, tokenizer, engine)
    lm.generate(prompts, samples=1, max_new_tokens=256, temperature=1., top_k=0, top_p=1., min_p=0., stop_ids=None,
                seed=0, stop=()) -> list[list[Trace]]    # prompts: strings, lists of chat messages, or token ids
    lm.continue_traces(traces, ...) -> list[list[Trace]]           # the same, from open traces
    lm.score(token_ids) -> list[np.ndarray]                        # float32 log-probabilities, element 0 is 0
    lm.save(path)                                                  # Hugging Face format
    int_jax.verify(response_text, gold_answer, grader="strict") -> Verdict  # of mathematics, in the worker pool
    int_jax.parse_intervention(text) -> Intervention | None        # the proposer's output format, with its repairs
    int_jax.splice(trace, intervention, tokenizer) -> Trace        # the guided attempt, ready to be continued
    int_jax.pass_at_k(n, c, k) -> float                            # unbiased

The records that these return, Trace, Task, Verdict and Intervention, are types.py's. Names are imported when they are
first used: `import int_jax` imports no jax.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

# At once, because it shares its module's name: loaded later, the submodule would take its place. It is light.
from int_jax.verify import verify

__version__: str

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from int_jax.estimates import pass_at_k
    from int_jax.lm import LM, load
    from int_jax.proposers.parse import parse_intervention
    from int_jax.rollout import splice
    from int_jax.types import Intervention, Task, Trace, Verdict

__all__ = [
    "LM",
    "Intervention",
    "Task",
    "Trace",
    "Verdict",
    "load",
    "parse_intervention",
    "pass_at_k",
    "splice",
    "verify",
]

_HOME = {
    "LM": "lm",
    "Intervention": "types",
    "Task": "types",
    "Trace": "types",
    "Verdict": "types",
    "load": "lm",
    "parse_intervention": "proposers.parse",
    "pass_at_k": "estimates",
    "splice": "rollout",
}


def __getattr__(name: str):
    if name == "__version__":
        return metadata.version("int_jax")
    if name not in _HOME:
        raise AttributeError(f"module 'int_jax' has no attribute {name!r}")
    return getattr(import_module(f"int_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
