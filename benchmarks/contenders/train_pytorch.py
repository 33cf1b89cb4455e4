"""PyTorch: transformers' model and `generate`, a loss by hand, torch.optim.AdamW (fused); rows padded on the right."""

import copy

import torch

from contenders import pytorch
from contenders.batches import advantages, padded


def prepare(task: dict):
    """See training.py."""
    model = copy.deepcopy(pytorch.load(task["model"], task["dtype"])).train()
    optimizer = torch.optim.AdamW(model.parameters(), task["rate"], weight_decay=0.0, fused=True)

    def step(ids_BT, mask_BT, weight_BT) -> float:
        logits = model(ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
        )
        loss = (nll * weight_BT[:, 1:].flatten()).sum() / (weight_BT != 0).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def supervised_once(seed: int, whole: bool = False):
        ids_BT, real_BT = map(torch.tensor, padded(task["sequences"]))
        weight_BT = real_BT.float()
        weight_BT[:, 0] = 0
        loss = step(ids_BT.long(), None if real_BT.all() else real_BT.long(), weight_BT)
        return loss if whole else real_BT.sum(1).tolist()

    def grpo_once(seed: int) -> list[int]:
        torch.manual_seed(seed)
        prompts = torch.tensor(task["prompts"])
        settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            ids_BT = model.eval().generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, max_new_tokens=task["new"],
                num_return_sequences=task["samples"], **settings,
            )  # fmt: skip
        model.train()
        responses = ids_BT[:, prompts.shape[1] :].numpy()
        weight_BT = torch.zeros(ids_BT.shape)
        weight_BT[:, prompts.shape[1] :] = torch.tensor(advantages(responses, task["samples"])[:, None])
        step(ids_BT, None, weight_BT)
        return [responses.shape[1]] * len(responses)

    return supervised_once if "sequences" in task else grpo_once
