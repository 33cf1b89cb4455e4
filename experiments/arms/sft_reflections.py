"""SFT on self-reflections, then RL: the policy rewrites each wrong attempt, the reference in view, from end to end.

It tries as often as InT continues a guided attempt; the first rewrite that is right is trained on, whole.
"""

from experiments.arms import Arm, Policy
from int_jax.batching import response_weights
from int_jax.intervention_training import failures
from int_jax.lab import Lab
from int_jax.privileged import REFERENCE, demonstration
from int_jax.rollout import open_trace
from int_jax.rows import Stage


def train(lab: Lab):
    domain = lab.domain
    wrong = failures(lab.attempts(lab.tasks), lab.unsolved)
    prompts = [
        open_trace(domain, trace.task, "reflector", domain.step_texts(trace)).replace(key=trace.key)
        for trace in wrong
        if trace.task.reference.strip()
    ]
    rows = lab.guided(prompts, Stage("rewrites"))
    if lost := len(prompts) - len(rows):
        lab.note(
            f"sft_reflections: {lost} of {len(prompts)} prompts fill the model's positions; they are left out"
        )
    rewrites = [row.right[0] for row in rows if row.right]
    traces = [
        demonstration(domain, open_trace(domain, trace.task), trace.response, REFERENCE) for trace in rewrites
    ]
    start = lab.fine_tune("sft_reflections", traces, weigh=response_weights, end_of_turn=None)
    return lab.reinforce("sft_reflections_rl", start, lab.pool())


ARM = Arm(
    {
        "sft_reflections": Policy("SFT reflections", "violet", "6 4"),
        "sft_reflections_rl": Policy("reflections + RL", "violet", "2 3"),
    },
    ("attempts", "sft", "rl"),
    train,
    at_least={"guided.keep": True},
    roles=("reflector",),
)
