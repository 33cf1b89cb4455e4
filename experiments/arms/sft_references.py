"""SFT on references, then RL: the reference solution of each hard problem, in its own words, whole."""

from experiments.arms import Arm, Policy
from int_jax.batching import response_weights
from int_jax.lab import Lab
from int_jax.privileged import REFERENCE, demonstration
from int_jax.rollout import open_trace


def train(lab: Lab):
    encode = lab.domain.tokenizer.encode
    traces = [
        demonstration(
            lab.domain,
            open_trace(lab.domain, task),
            encode(lab.domain.reference_response(task)),
            REFERENCE,
        )
        for task in lab.hard()
        if task.reference.strip()
    ]
    start = lab.fine_tune("sft_references", traces, weigh=response_weights, end_of_turn=None)
    return lab.reinforce("sft_references_rl", start, lab.pool())


ARM = Arm(
    {
        "sft_references": Policy("SFT references", "grey", "6 4"),
        "sft_references_rl": Policy("references + RL", "grey", "2 3"),
    },
    ("sft", "rl"),
    train,
)
