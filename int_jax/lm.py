"""`load` and `LM`: a model, its parameters, its tokenizer and its engine, behind four methods."""

import ctypes
import dataclasses
import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from int_jax import disk, hf_format, lora, processes
from int_jax.engine import Engine
from int_jax.models import Model, build
from int_jax.sampler import Request, Response, Sampling, independent
from int_jax.sharding import RULES, RULES_DECODE, make_mesh
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, Trace

ROLES = ("system", "user", "assistant")
HUB_FILES = ("*.json", "model*.safetensors", "*.jinja", "merges.txt", "tokenizer.model")


def load(
    path_or_hub_id: str | Path,
    mesh=None,
    dtype: str = "float32",
    param_dtype: str | None = None,
    chat: dict[str, Any] | None = None,
    family: str = "",
) -> "LM":
    """A model directory in Hugging Face format, or the id of one on the hub, ready to generate and score.

    Args:
      mesh: where it lives (`sharding.make_mesh`), by default all devices along "data".
      dtype: of the compute: float32, bfloat16 or float16. Logits are float32 always.
      param_dtype: of the parameters. By default `dtype`, each device of "data" holding a whole copy, to sample from.
        Training in bfloat16 needs "float32": bfloat16 keeps 8 bits, and loses an update smaller than 1/256 of its
        weight. The parameters are then sharded as training has them; sampling makes its own copy in `dtype`.
      chat: what the chat template is told besides the messages, such as {"enable_thinking": False}.
      family: a model family of your own, by its dotted name or its file, for a model_type that is not in the package.

    Compiled programs are kept on disk from here on (`keep_programs`).
    """
    keep_programs()
    path = directory(path_or_hub_id)
    config = hf_format.read_config(path, dtype, family)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise FileNotFoundError(
            f"{path / 'tokenizer.json'}: missing, and there is no other tokenizer file beside it"
        )
    tokenizer = Tokenizer(path, chat)
    # Added tokens may lie beyond the embedding (Gemma 3's image token does): a text model is never given them.
    beyond = {i for i in tokenizer.hf.get_vocab().values() if i >= config.vocab}
    if beyond - tokenizer.hf.added_tokens_decoder.keys():
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab} ids, but vocab_size in config.json is {config.vocab}"
        )
    mesh = make_mesh() if mesh is None else mesh
    # To sample: weights in the compute dtype, whole on each device of "data". To train: as they are trained.
    stored = dtype if param_dtype is None else param_dtype
    rules = RULES_DECODE if param_dtype is None else RULES
    config, params = hf_format.load(path, mesh, stored, rules, family)
    model = build(dataclasses.replace(config, dtype=dtype))
    data = mesh.shape["data"]
    # Rounded up to whole rows of the mesh: 128 slots over a data axis of 3 are 129.
    return LM(model, params, tokenizer, Engine(model, mesh, slots=-(-Engine.slots // data) * data))


def keep_programs() -> None:
    """Keep compiled programs on disk, so that the next process compiles none of them again: where jax is told to
    (JAX_COMPILATION_CACHE_DIR), else under ~/.cache/int_jax. JAX_ENABLE_COMPILATION_CACHE=0 keeps none."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "int_jax" / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


# malloc.h of glibc: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX, and what they are set to. They also have
# variables of the environment.
MALLOC = {-1: 2**31 - 1, -2: 2**26, -4: 0, -8: 1}
MALLOC_VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_ARENA_MAX",
)


def keep_memory() -> None:
    """Let a process that runs on a CPU keep freed memory for what is allocated next, up to 2 GiB, where malloc is
    glibc's and its variables in the environment say nothing else. A run does so; it is for a whole process to choose.

    By default each call of a program on a CPU takes its work space anew from the system and gives it back: 60 MB that
    are zeroed page by page, of 128 rows of a small model a fifth of the time of a decode.
    """
    if sys.platform != "linux" or any(name in os.environ for name in MALLOC_VARIABLES):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for parameter, value in MALLOC.items():
            libc.mallopt(parameter, value)


@functools.cache
def _fetched(address: str) -> Path:
    """A copy of the directory at an address, one for all of this process that ask."""
    path = disk.place(address)
    if not path.is_dir():
        raise FileNotFoundError(f"{address}: there is no such directory")
    return disk.fetched(path)


def directory(path_or_hub_id: str | Path) -> Path:
    """The directory itself, or the snapshot of a hub id, or a copy of what is at gs://..."""
    if disk.is_address(path_or_hub_id):
        return _fetched(str(path_or_hub_id))
    path = disk.place(path_or_hub_id)
    if path.is_dir():
        return path
    tried = f"{path_or_hub_id}: there is no such directory (looked in {Path.cwd()})"
    # "owner/name", or "gpt2" alone
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path_or_hub_id)):
        raise FileNotFoundError(
            f"{tried}, and it is not the id of a model on the Hugging Face hub (owner/name)"
        )
    try:
        from huggingface_hub import snapshot_download  # slow to import, and needed for hub ids alone

        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=list(HUB_FILES)))
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{tried}, and huggingface_hub.snapshot_download({str(path_or_hub_id)!r}) failed: "
            f"{type(error).__name__}: {reason}"
        ) from None


@dataclasses.dataclass(frozen=True)
class LM:
    """A language model: `params` may be replaced (`dataclasses.replace`) by those of a later update."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    engine: Engine

    def generate(
        self,
        prompts,
        samples: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop_ids=None,
        seed: int = 0,
        stop: str | Iterable[str] = (),
    ) -> list[list[Trace]]:
        """Draw `samples` responses to each prompt.

        A response is a function of (params, prompt ids, seed, sample index): the same prompt given twice, in one call
        or in two, gets the same responses, wherever it stands in the list. For other responses change the seed.

        Args:
          prompts: each a string, rendered as a user turn; or a list of chat messages {"role", "content"}, rendered as
            they stand; or a sequence of token ids, taken as it is.
          temperature: 0 is greedy. top_k: 0 keeps every token, as do top_p 1 and min_p 0.
          stop_ids: a response ends with any of these; by default `tokenizer.stop_ids`.
          stop: texts; a response ends with the token that completes one of them, which is kept.

        Returns: for each prompt its `samples` Traces, in order; their task's problem is the prompt as text.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts is one string, {prompts[:40]!r}: pass a list of prompts")
        prompts = list(prompts)
        if prompts and all(isinstance(prompt, Mapping) for prompt in prompts):
            raise TypeError(f"prompts is one conversation of {len(prompts)} messages: pass a list of prompts")
        opened = [self._open(prompt, f"prompts[{i}]") for i, prompt in enumerate(prompts)]
        return self._draw(
            opened, samples, max_new_tokens, temperature, top_k, top_p, min_p, stop_ids, seed, stop
        )

    def continue_traces(
        self,
        traces,
        samples: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop_ids=None,
        seed: int = 0,
        stop: str | Iterable[str] = (),
    ) -> list[list[Trace]]:
        """Draw `samples` continuations of each open trace, such as a guided attempt (`int_jax.splice`).

        A continuation is a function of (params, ids so far, task id, seed, sample index). The arguments are those of
        `generate`, with traces in place of prompts.

        Raises: ValueError for a trace that has ended with a stop token or text.
        """
        for i, trace in enumerate(traces):
            if trace.stop == "stop":
                raise ValueError(f"traces[{i}] has ended: splice a step into it, or give an open trace")
        return self._draw(
            traces, samples, max_new_tokens, temperature, top_k, top_p, min_p, stop_ids, seed, stop
        )

    def _draw(
        self, traces, samples: int, max_new_tokens, temperature, top_k, top_p, min_p, stop_ids, seed, stop
    ):
        if samples < 1:
            raise ValueError(f"samples = {samples}: at least 1 is needed")
        stop_ids = self.tokenizer.stop_ids if stop_ids is None else tuple(int(i) for i in stop_ids)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, stop_ids, seed, stop)
        params = self.engine.decode_params(self.params)

        def draw(part: list[Trace]) -> list[list[Trace]]:
            requests = [
                Request(tuple(trace.tokens.tolist()), trace.task.id, sample, trace.begin)
                for trace in part
                for sample in range(samples)
            ]
            # In the order of the requests: all samples of the first trace, then those of the second.
            drawn = iter(self.engine.generate(params, requests, sampling, tokenizer=self.tokenizer))
            return [[self._extend(trace, next(drawn), sampling, k) for k in range(samples)] for trace in part]

        dealt = processes.deal([*traces], draw, tuple[Trace, ...], independent(self.engine))
        return [[*group] for group in dealt]

    def score(self, token_ids) -> list[np.ndarray]:
        """log p(token t | tokens before t) in nats, float32, for each sequence of ids; element 0 is 0."""
        params = self.engine.decode_params(self.params)
        return self.engine.score(params, [self._checked(ids) for ids in token_ids])[0]

    def save(self, path: str | Path) -> None:
        """Write config, weights and tokenizer in Hugging Face format; `load(path)` brings back the same bits. Adapters
        are merged (peft_format.py writes them alone)."""
        hf_format.save(path, self.model.config, lora.merge(self.params), self.tokenizer.path)

    def _checked(self, ids) -> list[int]:
        """Token ids as ints, each within the vocabulary: an index beyond it would be clipped in silence."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise TypeError(
                f"token ids are a flat sequence of integers, not {ids.dtype} of shape {ids.shape}"
            )
        vocab = self.model.config.vocab
        wrong = ids[(ids < 0) | (ids >= vocab)]
        if wrong.size:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary, 0..{vocab - 1}")
        return ids.astype(int).tolist()

    def _open(self, prompt, name: str) -> Trace:
        """A trace that holds a prompt alone, and the task that names its random stream by the prompt's ids."""
        if isinstance(prompt, str):
            ids, problem = self.tokenizer.render([{"role": "user", "content": prompt}]), prompt
        # A list with a message or a text in it is a conversation, one of numbers is token ids.
        elif isinstance(prompt, list | tuple) and any(isinstance(one, Mapping | str) for one in prompt):
            ids = self.tokenizer.render([_message(one, f"{name}[{i}]") for i, one in enumerate(prompt)])
            problem = self.tokenizer.decode(ids)
        else:
            ids, problem = prompt, self.tokenizer.decode(self._checked(prompt))
        ids = self._checked(ids)  # a template may write a token that was added beyond the embedding
        tokens, count = np.asarray(ids, np.int32), len(ids)
        # "<i4": the same bytes on a machine that stores the high byte first.
        digest = hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=8).hexdigest()
        task = Task(id=f"prompt-{digest}", domain="", problem=problem)
        return Trace(task, tokens, count, np.zeros(count, bool), np.zeros(count, np.float32))

    def _extend(self, trace: Trace, response: Response, sampling: Sampling, sample: int) -> Trace:
        return trace.extend(
            response.tokens,
            response.logp,
            temperature=sampling.temperature,
            step_ends=self.tokenizer.step_ends(response.tokens, trace.prompt_len),
            stop=response.stop,
            key=(sampling.seed, sample),
        )


def _message(one, name: str) -> dict[str, str]:
    """A chat message, whose role and content are text: a template would pass over what it does not know in silence.

    Raises: TypeError, ValueError, naming the message.
    """
    form = "a chat message is {'role': ..., 'content': ...}, both text"
    if not isinstance(one, Mapping):
        raise TypeError(f"{name} is {one!r:.60}: {form}")
    if one.keys() != {"role", "content"}:
        raise ValueError(f"{name} has the keys {sorted(map(str, one))}: {form}")
    if one["role"] not in ROLES:
        raise ValueError(f"{name}['role'] is {one['role']!r:.60}: choose one of {', '.join(ROLES)}")
    if not isinstance(one["content"], str):
        raise TypeError(f"{name}['content'] is {one['content']!r:.60}: {form}")
    return dict(one)
