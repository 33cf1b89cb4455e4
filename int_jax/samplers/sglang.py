"""SGLang's server as a sampler: /generate with token ids.

Written from the sources of SGLang 0.5.23, and not tried with a running server. What it is started with:

    python -m sglang.launch_server --model-path MODEL --enable-deterministic-inference

Without the flag it has no seeds, and is refused. It reports log-probabilities at the sampling temperature, before
filters, unless SGLANG_RETURN_ORIGINAL_LOGPROB is set. Parameters are pushed by /update_weights_from_disk, which also
forgets the prefixes of the old ones.
"""

import dataclasses
import functools
from typing import Any

from int_jax.http_json import Server
from int_jax.sampler import Sampling
from int_jax.samplers.http import Drawn, HTTPSampler

# What a server may otherwise take from the model's generation_config.json.
NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclasses.dataclass
class SGLang(HTTPSampler):
    """See the module."""

    @functools.cached_property
    def _seeded(self) -> bool:
        return bool(self.server.ask("/server_info")["enable_deterministic_inference"])

    def draw(self, ids: list[int], sampling: Sampling, count: int, seed: int) -> Drawn:
        if sampling.temperature > 0 and not self._seeded:
            raise ValueError(
                f"{self.server.url} takes no seeds, so that its responses could not be drawn again: start SGLang with "
                "--enable-deterministic-inference"
            )
        told = self._generate(ids, sampling, count, seed, {})
        logp = [one for one, *_ in told["meta_info"]["output_token_logprobs"]]
        return Drawn(told["output_ids"], logp)

    def logps(self, ids: list[int], tokens: list[int], sampling: Sampling) -> list[float]:
        told = self._generate(ids, sampling, 1, 0, {"token_ids_logprob": tokens})
        found = {token: one for one, token, *_ in told["meta_info"]["output_token_ids_logprobs"][0]}
        return [found[token] for token in tokens]

    def _generate(
        self, ids: list[int], sampling: Sampling, count: int, seed: int, more: dict
    ) -> dict[str, Any]:
        body = {
            "input_ids": ids,
            "return_logprob": True,
            "sampling_params": {
                "max_new_tokens": count,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k or -1,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "sampling_seed": seed,
                # With it SGLang would pass over stop_token_ids, too.
                "ignore_eos": not sampling.stop_ids,
                "stop_token_ids": list(sampling.stop_ids),
                "stop": list(sampling.stop),
                "no_stop_trim": True,
                "skip_special_tokens": False,
                "spaces_between_special_tokens": False,
                **NEUTRAL,
            },
            **more,
        }
        return self.server.ask("/generate", body)

    def load(self, folder: str) -> None:
        told = self.server.ask("/update_weights_from_disk", {"model_path": folder, "flush_cache": True})
        if not told["success"]:
            raise RuntimeError(f"{self.server.url} does not load {folder}: {told['message']}")


def build(url: str, **more) -> SGLang:
    """See `samplers.Build`."""
    return SGLang(Server(url), **more)
