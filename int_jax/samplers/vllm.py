"""vLLM's OpenAI-compatible server (`vllm serve`) as a sampler: /v1/completions with token ids.

Written for vLLM 0.32 and tried with its build for CPUs. What it is started with:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL [--logprobs-mode processed_logprobs]

As vLLM comes, it reports log-probabilities at temperature 1, before filters; with processed_logprobs at the sampling
temperature, after them. At temperature 1 without filters both are right.

Without the mode no parameters can be pushed: /collective_rpc calls each worker's `reload_weights` with the folder, and
/reset_prefix_cache forgets what the old ones had computed. On CPUs a head that is tied to the embedding keeps a copy of
its own, which reloading leaves as it was (seen with 0.32): push there only what has a head of its own.

At most 128 tokens may spell the beginning of a text that a response must begin with.
"""

import dataclasses
from typing import Any

from int_jax.http_json import Server
from int_jax.sampler import Sampling
from int_jax.samplers.http import Drawn, HTTPSampler

# What a server may otherwise take from the model's generation_config.json.
NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclasses.dataclass
class VLLM(HTTPSampler):
    """See the module."""

    def draw(self, ids: list[int], sampling: Sampling, count: int, seed: int) -> Drawn:
        choice = self._complete(ids, sampling, count, seed, {"logprobs": 0})
        return Drawn(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    def logps(self, ids: list[int], tokens: list[int], sampling: Sampling) -> list[float]:
        asked = {"logprobs": 0, "logprob_token_ids": tokens}
        (told,) = self._complete(ids, sampling, 1, 0, asked)["logprobs"]["top_logprobs"]
        return [told[f"token_id:{token}"] for token in tokens]

    def _complete(
        self, ids: list[int], sampling: Sampling, count: int, seed: int, more: dict
    ) -> dict[str, Any]:
        body = {
            "prompt": ids,
            "max_tokens": count,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "seed": seed,
            # Which tokens end a response is said here alone, not by the model's files.
            "ignore_eos": True,
            "stop_token_ids": list(sampling.stop_ids),
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **NEUTRAL,
            **more,
        }
        return self.server.ask("/v1/completions", body)["choices"][0]

    def load(self, folder: str) -> None:
        asked = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self.server.ask("/collective_rpc", asked)
        if not self.server.ask("/reset_prefix_cache", {})["success"]:
            raise RuntimeError(
                f"{self.server.url} has loaded {folder} and keeps prefixes of the parameters before, since it still "
                "draws for somebody: let no one else use it"
            )


def build(url: str, **more) -> VLLM:
    """See `samplers.Build`."""
    return VLLM(Server(url), **more)
