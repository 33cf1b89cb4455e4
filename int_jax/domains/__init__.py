"""Domains: where problems come from, who sees what, where a step ends, and what counts as solved.

A domain is a module here with `build(tokenizer, **knobs)`; its name in a config is the module's name. It offers:

    name, separator            its name; the text that ends a step
    proposal_roles             roles a self-verifying proposer plays in turn: ("checker",) or ("teacher", "checker")
    tasks(split, seed, count)  -> list[Task]
    view(task, steps, role)    -> chat messages: the one place that decides what a role sees
    steps(tokens, start)       -> step_ends, token offsets
    step_texts(trace)          -> the text of each step
    verify(trace)              -> Verdict
    leaks(task, text)          -> whether a step gives the final answer away
    reply(trace)               -> a partner's turn as token ids, [] if the partner is silent
    first_error(trace)         -> index of the first wrong step, and
    correction(trace, step)    -> the right step: only where an oracle exists
"""

import importlib
import pkgutil


def load(name: str, tokenizer, **knobs):
    """The domain in int_jax/domains/<name>.py, over a tokenizer."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in known:
        raise ValueError(f"no domain {name!r} in int_jax/domains: choose one of {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").build(tokenizer, **knobs)
