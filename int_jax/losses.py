"""Log-probabilities of tokens (the only shift in the project), and the three streams of the loss.

L = sum_t ce_t (-log p_t) / N_ce + sum_t rl_t PG_t / N_rl + sum_t kl_t KL_t / N_kl, with the totals N given. Supervised
fine-tuning on prefix + intervention is the first stream, GRPO and its relatives the second; both may be mixed. How a
token is weighted (sum over sequences, token mean, sequence mean) is decided on the host, in `batching.py`.

A published loss is a few of the small functions here; docs/losses.md says which knobs make which.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from int_jax.dims import check
from int_jax.models import softcap


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Switches of the policy-gradient stream.

    Attributes:
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; InT's 4 and 4 cut only ratios above
        5 (its PipelineRL fork). clip: how, one of SURROGATES.
      old: what the ratio is taken to: the update's "own" log-probabilities (every ratio is then 1, as it is for the
        only update on a batch), or those that the "batch" brings.
      ratio: "token", or "sequence" (GSPO: the geometric mean over the sequence).
      importance_cap: cap of the weights for what was drawn by another policy (`importance_weights`); 0: no weights.
      logit_chunk: tokens whose logits exist at one time, per row. remat: recompute each layer in the backward pass.
    """

    clip_low: float = 4.0
    clip_high: float = 4.0
    clip: str = "ppo"
    old: str = "own"
    ratio: str = "token"
    importance_cap: float = 0.0
    logit_chunk: int = 128
    remat: bool = False

    def __post_init__(self):
        choices = {"clip": tuple(SURROGATES), "old": ("own", "batch"), "ratio": ("token", "sequence")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(allowed)}")


# In the order of `values` in `streams`.
SUMS = (
    *("loss_ce", "loss_rl", "loss_kl", "trained_tokens", "entropy_sum"),
    *("rl_tokens", "logp_gap_sum", "ratio_sum", "ratio_square_sum", "clipped_sum"),
)


def scaled_logits(hidden, head_DV, temperature, cap: float | None = None):
    """float32 logits / temperature; temperature 0 (greedy) is scored at 1. hidden [..., D], temperature [...].

    head_DV: is used in the dtype of `hidden`; that of its gradient, summed over calls, is its own.
    cap: the model's `logit_softcap`, applied before the temperature.
    """
    head_DV = head_DV.astype(hidden.dtype)
    logits = softcap(jnp.einsum("...D,DV->...V", hidden, head_DV, preferred_element_type=jnp.float32), cap)
    return logits / jnp.where(temperature > 0, temperature, 1.0)[..., None]


@check
def token_logp(
    hidden_BTD,
    head_DV,
    tokens_BT,
    positions_BT,
    temperature_BT,
    chunk: int = 128,
    cap: float | None = None,
):
    """log p(token t | tokens before t) and the entropy of that prediction, nats, float32.

    The prediction of token t is read from the hidden state of t - 1; where the position is 0 both are 0. Logits exist
    for `chunk` tokens of each row at a time, forward and backward, never as a [B, T, V] array. cap: as `scaled_logits`.

    Returns: (logp_BT, entropy_BT); no gradient flows through the entropy.
    """
    rows, length = tokens_BT.shape
    # [h0, h1, h2] -> [h0, h0, h1]. The first entry only fills its place, and in a packed row the first token of a
    # sequence gets the last state of another: both have position 0 and are set to 0 below.
    previous_BTD = jnp.concatenate([hidden_BTD[:, :1], hidden_BTD[:, :-1]], axis=1)

    def one(carry, piece):
        hidden_BCD, tokens_BC, temperature_BC = piece
        logits_BCV = scaled_logits(hidden_BCD, head_DV, temperature_BC, cap)
        norm_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        # As logit - logsumexp: log(softmax) would be -inf where a probability is too small for a float32.
        picked_BC = jnp.take_along_axis(logits_BCV, tokens_BC[..., None], axis=-1)[..., 0]
        probs_BCV = jax.lax.stop_gradient(jnp.exp(logits_BCV - norm_BC[..., None]))
        entropy_BC = jax.lax.stop_gradient(jnp.sum(probs_BCV * (norm_BC[..., None] - logits_BCV), axis=-1))
        return carry, (picked_BC - norm_BC, entropy_BC)

    chunk = min(chunk, length)
    if chunk < length:
        # The backward pass computes a chunk's logits again, so that those of one chunk exist at a time there, too.
        one = jax.checkpoint(one)
    # 300 tokens in chunks of 128: 84 more, three chunks. cut: [B, T, ...] -> [chunks, B, C, ...], as scan takes it.
    pad = -length % chunk

    def cut(array):
        padded = jnp.pad(array, [(0, 0), (0, pad)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, -1, chunk, *array.shape[2:]), 1, 0)

    _, pieces = jax.lax.scan(one, None, (cut(previous_BTD), cut(tokens_BT), cut(temperature_BT)))
    # [chunks, B, C] -> [B, chunks x C], less the padding.
    logp_BT, entropy_BT = (jnp.moveaxis(p, 0, 1).reshape(rows, -1)[:, :length] for p in pieces)
    seen_BT = positions_BT > 0
    return jnp.where(seen_BT, logp_BT, 0.0), jnp.where(seen_BT, entropy_BT, 0.0)


@check
def sequence_mean_BT(values_BT, weight_BT, segments_BT):
    """Each token's value replaced by its sequence's weighted mean; a sequence is one segment of one row.

    By sums over segments: an array [B, T, T] would be 1.6 GB for a row of 20,000 tokens.
    """
    most = segments_BT.shape[1] + 1  # 0 is padding, and a row of T tokens has at most T sequences

    # [T] -> [T + 1]: the sum of each segment of one row.
    def total(values, segments):
        return jax.ops.segment_sum(values, segments, most)

    def mean(values, weight, segments):
        # Values 1 3 5 in segments 1 1 2 -> 2 2 5. A segment without weight gives 0, not 0/0.
        return (total(values * weight, segments) / jnp.maximum(total(weight, segments), 1e-8))[segments]

    return jax.vmap(mean)(values_BT, weight_BT, segments_BT)


def clipped_surrogate(logp, old_logp, advantage, clip_low: float, clip_high: float):
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logp - old_logp), each token (PPO, Schulman et al. 2017;
    with low < high DAPO's "clip-higher", Yu et al. 2025)."""
    # A > 0: no gradient above 1 + high. A < 0: none below 1 - low, but still one above 1 + high.
    ratio = jnp.exp(logp - old_logp)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def clipped_importance(logp, old_logp, advantage, clip_low: float, clip_high: float):
    """-sg(clip(r, 1 - low, 1 + high)) A log p with r = exp(logp - old_logp), each token (CISPO, MiniMax 2025, eq. 4).

    No token loses its gradient: the clip bounds its weight alone. sg: no gradient flows through it.
    """
    clipped = jnp.clip(jnp.exp(logp - old_logp), 1.0 - clip_low, 1.0 + clip_high)
    return -jax.lax.stop_gradient(clipped) * advantage * logp


SURROGATES = {"ppo": clipped_surrogate, "cispo": clipped_importance}


def importance_weights(old_logp, sampler_logp, cap: float):
    """min(exp(old_logp - sampler_logp), cap), each token: the trainer's probability before the update over the
    sampler's, truncated (TIS, Yao et al. 2025). Another engine or dtype, or an older policy, makes them differ."""
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(old_logp - sampler_logp), cap))


def k3(logp, reference_logp):
    """k3, an estimate of KL(policy || reference): e^d - d - 1, d = reference - policy (Schulman 2020); never < 0."""
    # About gap^2 / 2: 0.0052 for 0.1, 0.0048 for -0.1.
    gap = reference_logp - logp
    return jnp.exp(gap) - gap - 1.0


def streams(logp_BT, entropy_BT, batch, config: LossConfig):
    """The loss of one micro-batch and its metrics, both as sums whose totals are the batch's.

    Args:
      logp_BT, entropy_BT: of the trained policy. batch: a Batch without its leading axis M.

    Returns: (loss, metrics): summing either over micro-batches gives that of the global batch.
    """
    # "own": every ratio is 1, and its gradient is that of log p: the plain policy gradient.
    old_BT = jax.lax.stop_gradient(logp_BT) if config.old == "own" else batch.old_logp_MBT
    inside_BT = (batch.rl_MBT > 0).astype(jnp.float32)
    now_BT = logp_BT
    if config.ratio == "sequence":
        gap_BT = sequence_mean_BT(logp_BT - old_BT, inside_BT, batch.segments_MBT)
        # The sequence's ratio, with each token's own gradient (GSPO-token, Zheng et al. 2025, eq. 14).
        now_BT = old_BT + jax.lax.stop_gradient(gap_BT - logp_BT) + logp_BT
    bounds = config.clip_low, config.clip_high
    surrogate_BT = SURROGATES[config.clip](now_BT, old_BT, batch.advantage_MBT, *bounds)
    if config.importance_cap:
        weights_BT = importance_weights(old_BT, batch.sampler_logp_MBT, config.importance_cap)
        surrogate_BT = weights_BT * surrogate_BT
    ce = -jnp.sum(batch.ce_MBT * logp_BT) / batch.ce_total
    rl = jnp.sum(batch.rl_MBT * surrogate_BT) / batch.rl_total
    kl = jnp.sum(batch.kl_MBT * k3(logp_BT, batch.reference_logp_MBT)) / batch.kl_total

    trained_BT = ((batch.ce_MBT + batch.rl_MBT) > 0).astype(jnp.float32)
    # Trainer against sampler, whatever the loss's own ratio is taken to.
    gap_BT = jnp.abs(logp_BT - batch.sampler_logp_MBT) * inside_BT
    ratio_BT = jnp.exp(logp_BT - batch.sampler_logp_MBT)
    moved_BT = jnp.exp(now_BT - old_BT)
    outside_BT = (moved_BT > 1 + config.clip_high) | (moved_BT < 1 - config.clip_low)
    values = (
        *(ce, rl, kl, jnp.sum(trained_BT), jnp.sum(entropy_BT * trained_BT)),
        *(jnp.sum(inside_BT), jnp.sum(gap_BT), jnp.sum(ratio_BT * inside_BT)),
        *(jnp.sum(ratio_BT**2 * inside_BT), jnp.sum(outside_BT * inside_BT)),
    )
    # The largest gap stands apart from SUMS: over micro-batches it is a maximum.
    return ce + rl + kl, (dict(zip(SUMS, values, strict=True)), jnp.max(gap_BT))


def means(sums: dict) -> dict:
    """Metrics of one update from the sums over its micro-batches.

    entropy, logp_gap (|trainer - sampler|), ratio (trainer/sampler), clipped (the loss's own ratio is outside its
    bounds): means per token. ess: effective sample size of the trainer/sampler ratios as a share of the tokens, 1
    on-policy.
    """
    trained, drawn = jnp.maximum(sums["trained_tokens"], 1.0), jnp.maximum(sums["rl_tokens"], 1.0)
    return {
        "loss": sums["loss_ce"] + sums["loss_rl"] + sums["loss_kl"],
        **{name: sums[name] for name in ("loss_ce", "loss_rl", "loss_kl", "trained_tokens")},
        "entropy": sums["entropy_sum"] / trained,
        "logp_gap": sums["logp_gap_sum"] / drawn,
        "ratio": sums["ratio_sum"] / drawn,
        "clipped": sums["clipped_sum"] / drawn,
        # (sum r)^2 / (n sum r^2): ratios 1, 1 give 1; ratios 2, 0 give a half.
        "ess": sums["ratio_sum"] ** 2 / jnp.maximum(sums["ratio_square_sum"] * drawn, 1e-8),
    }


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13): 0 up to `limit` - `buffer` tokens, then falling evenly
    to -1 at `limit`, the most that a response may have."""
    # limit 100, buffer 20: 0 up to 80 tokens, -0.5 at 90, -1 at 100.
    return -min(max(length - (limit - buffer), 0) / buffer, 1.0)


ADVANTAGES = ("mean", "mean_std", "leave_one_out", "batch")


def group_advantages(rewards, groups, kind: str = "mean", std_floor: float = 1e-4):
    """The advantage of each response over the others, by `kind`:

    mean: r - mean of its group (InT; Dr. GRPO, Liu et al. 2025). mean_std: (r - mean) / (std + floor) of its group
    (GRPO, Shao et al. 2024). leave_one_out: r - mean of the others of its group (RLOO, Ahmadian et al. 2024).
    batch: (r - mean) / (std + floor) of all rewards (REINFORCE++, Hu 2025). std is that of a sample, n - 1.

    Args:
      rewards: [n] host floats. groups: [n] hashable names; equal names form one group.

    Returns: [n] float32; exactly zero in a group (of "batch": a batch) whose rewards are all equal, NaN in one with a
      reward that is not finite.
    """
    # The mean of three rewards 0.1 is not 0.1 in floats: equal rewards are told by their spread, and stay at 0.
    rewards = np.asarray(rewards, np.float64)
    out = np.zeros(len(rewards), np.float32)
    if kind == "batch":
        groups = [0] * len(rewards)
    numbers: dict = {}
    # Groups by number, in the order they appear: "b", "a", "b" -> 0, 1, 0.
    index = np.array([numbers.setdefault(name, len(numbers)) for name in groups], int)
    for group in range(len(numbers)):
        mine = rewards[index == group]
        if not np.isfinite(mine).all():
            out[index == group] = np.nan
            continue
        if np.ptp(mine) == 0:
            continue
        centred = mine - mine.mean()
        if kind in ("mean_std", "batch"):
            centred = centred / (mine.std(ddof=1) + std_floor)
        elif kind == "leave_one_out":
            # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1). A group of one has no spread and does not come here.
            centred = centred * len(mine) / (len(mine) - 1)
        out[index == group] = centred
    return out
