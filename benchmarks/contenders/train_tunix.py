"""google-tunix: the jitted step of its PeftTrainer with its own losses, and its sampler; without its Python loop."""

import jax.numpy as jnp
import numpy as np
import optax
from tunix.rl.algo_core import grpo_loss_fn
from tunix.rl.common import TrainExample
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from contenders import tunix
from contenders.batches import advantages, padded


def prepare(task: dict):
    """See training.py."""
    mesh, model, config = tunix.load(task["model"], task["dtype"])
    tx = optax.adamw(task["rate"], weight_decay=0.0)
    with mesh:
        trainer = PeftTrainer(model, tx, TrainingConfig(eval_every_n_steps=1 << 30, max_steps=1 << 30))
    pad = 0  # prompts and responses of the benchmark's model have none

    def supervised_once(seed: int) -> list[int]:
        tokens_BT, real_BT = padded(task["sequences"])
        mask_BT = jnp.asarray(real_BT)
        step({
            "input_tokens": jnp.asarray(tokens_BT),
            "input_mask": mask_BT,
            "positions": build_positions_from_mask(mask_BT),
            "attention_mask": make_causal_attn_mask(mask_BT),
        })  # fmt: skip
        return real_BT.sum(1).tolist()

    def step(inputs) -> None:
        with mesh:
            train, _ = trainer.jit_train_and_eval_step()
            loss, *_ = train(inputs)
            loss.block_until_ready()

    if "sequences" in task:
        return supervised_once

    sampler = tunix.sampler(model, config, len(task["prompts"][0]) + task["new"])
    knobs = GRPOConfig(num_generations=task["samples"], beta=0.0)
    knobs.temperature = 1.0
    trainer.with_loss_fn(
        lambda model, example: grpo_loss_fn(model, example, knobs, pad_id=pad, eos_id=-1), has_aux=True
    ).with_gen_model_input_fn(lambda example: {"example": example})
    texts = [" ".join(map(str, prompt)) for prompt in task["prompts"] for _ in range(task["samples"])]
    prompts_BP = jnp.asarray(np.repeat(np.array(task["prompts"], np.int32), task["samples"], axis=0))

    def grpo_once(seed: int) -> list[int]:
        with mesh:
            out = sampler(
                texts,
                task["new"],
                prompts_BP.shape[1],
                temperature=1.0,
                top_p=1.0,
                seed=seed,
                eos_tokens=[-1],
            )
        responses = np.stack([np.asarray(ids) for ids in out.tokens])
        step(
            TrainExample(
                prompt_ids=prompts_BP,
                prompt_mask=jnp.ones(prompts_BP.shape, bool),
                completion_ids=jnp.asarray(responses),
                completion_mask=jnp.ones(responses.shape, bool),
                advantages=jnp.asarray(advantages(responses, task["samples"]), jnp.float32),
                ref_per_token_logps=None,
                old_per_token_logps=None,
            )
        )
        return [responses.shape[1]] * len(responses)

    return grpo_once
