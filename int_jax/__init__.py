"""Intervention Training (InT, arXiv 2601.14209) in JAX. The public face; everything else may change.

    lm = int_jax.load(path_or_hub_id, mesh=None, dtype="float32")  # LM(model, params, tokenizer, engine)
    lm.generate(prompts, samples=1, max_new_tokens=256, temperature=1., top_k=0, top_p=1., min_p=0., stop_ids=None,
                seed=0) -> list[list[Trace]]                       # prompts: strings (as a user turn) or token ids
    lm.score(token_ids) -> list[np.ndarray]                        # float32 log-probabilities, element 0 is 0
    lm.save(path)                                                  # Hugging Face format
    int_jax.verify(response_text, gold_answer) -> Verdict          # the mathematics grader, in the worker pool
    int_jax.parse_intervention(text) -> Intervention | None        # the proposer's output format, with its repairs
    int_jax.splice(trace, intervention, tokenizer) -> Trace        # the guided attempt, ready to be continued
    int_jax.pass_at_k(n, c, k) -> float                            # unbiased

Names are imported when they are first used: `import int_jax` imports no jax.
"""

import sys
from importlib import import_module
from types import ModuleType

# At once, because it shares its module's name: loaded later, the submodule would take its place. It is light.
from int_jax.verify import verify

__all__ = ["LM", "load", "parse_intervention", "pass_at_k", "splice", "verify"]

_HOME = {"LM": "lm", "load": "lm", "parse_intervention": "proposers.parse", "pass_at_k": "eval"}


def __getattr__(name: str):
    if name == "splice":
        return import_module("int_jax.splice")
    if name not in _HOME:
        raise AttributeError(f"module 'int_jax' has no attribute {name!r}")
    return getattr(import_module(f"int_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Splice(ModuleType):
    """`int_jax.splice` is the module of array functions, and called it is the public function of the same name."""

    def __call__(self, trace, intervention, tokenizer):
        return import_module("int_jax.rollout").splice(trace, intervention, tokenizer)


class _Package(ModuleType):
    def __setattr__(self, name, value):
        if name == "splice":  # the import system, binding the submodule
            value.__class__ = _Splice
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
