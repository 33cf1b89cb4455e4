"""What all that train are given alike: padded rows, and the advantages of an iteration of GRPO."""

import numpy as np


def padded(sequences) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] int32 of rows padded on the right to the longest, and which are no padding [B, T]."""
    counts = np.array([len(ids) for ids in sequences])
    real_BT = np.arange(counts.max()) < counts[:, None]
    tokens_BT = np.zeros(real_BT.shape, np.int32)
    tokens_BT[real_BT] = np.concatenate(sequences)
    return tokens_BT, real_BT


def advantages(responses_BT: np.ndarray, samples: int) -> np.ndarray:
    """[B]: the share of odd ids in a response, less its group's mean, over its group's deviation."""
    rewards = np.mean(responses_BT % 2, axis=1).reshape(-1, samples)
    centred = rewards - rewards.mean(1, keepdims=True)
    return (centred / (rewards.std(1, keepdims=True) + 1e-6)).reshape(-1)
