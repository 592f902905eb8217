"""A causal language model of transformers, from a folder or the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.errors import UserError, counted, one_line
from factory.files.digest import folder_digest
from factory.files.hub import check_not_gated
from factory.files.paths import expanded
from factory.generator.hub import hub_commit
from factory.hf_logging import quiet_model_libraries
from factory.prompts.instructions import THINKING
from factory.prompts.interface import Instruction, Sampling
from factory.training.memory import enough_memory

_FORMS = (
    "give the folder or hub id (owner/name) of a causal language model of transformers, or the URL of an "
    "OpenAI-compatible server"
)


def model_folder(source: str) -> Path | None:
    """The folder of a language model; None for a hub id. Raises UserError if a path is named but missing."""
    path = expanded(source)
    if path.is_dir():
        return path.absolute()
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(f"there is no language model {source}; {_FORMS}.")
    return None


class LocalModel:
    """Answers instructions in batches, with the model's chat template if it has one.

    The same instructions and seed give the same answers on the same kind of device. The state of torch's global random
    generator does not change.
    """

    def __init__(self, source: str, device: str, dtype: str, sampling: Sampling) -> None:
        """`dtype` is the name of a torch type. Raises UserError if `source` is neither a folder nor a hub model."""
        folder = model_folder(source)
        self._source, self._local = str(folder or source), folder is not None
        self._device, self._sampling = device, sampling
        revision = hub_commit(source) if folder is None else folder_digest(folder)
        self.identity = {"model": self._source, "revision": revision, "dtype": dtype}

    def load(self) -> None:
        """Raises UserError if this is not a causal language model, or if its weights are incomplete."""
        quiet_model_libraries()
        revision = None if self._local else self.identity["revision"]
        self._model, self._tokenizer = _load(self._source, revision, self.identity["dtype"])
        with enough_memory(f"the language model {self._source}", "give --dtype bfloat16, or --device cpu"):
            self._model.to(self._device).eval()
        self._config = _generation_config(self._model, self._tokenizer, self._sampling)

    def answer(self, instructions: Sequence[Instruction], seed: int) -> list[str]:
        """Raises UserError if the model cannot read an instruction and write an answer of `max_tokens`."""
        import torch

        texts = [self._text(instruction) for instruction in instructions]
        # A chat template writes the special tokens itself.
        encoded = self._tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=self._tokenizer.chat_template is None
        )
        length = encoded.input_ids.shape[1]
        self._check_length(length)
        inputs = {name: encoded[name].to(self._device) for name in ("input_ids", "attention_mask")}
        devices = [self._device] if self._device.startswith("cuda") else []
        memory = enough_memory(f"{len(texts)} answers of {self._source}", "give a smaller --batch")
        with memory, torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            output = self._model.generate(**inputs, generation_config=self._config)
        answers = self._tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        # Some chat templates end with the opening tag of the reasoning, which is then missing from the answer.
        opening_tags = [THINKING if text.rstrip().endswith(THINKING) else "" for text in texts]
        return [tag + str(answer) for tag, answer in zip(opening_tags, answers, strict=True)]

    def _text(self, instruction: Instruction) -> str:
        if self._tokenizer.chat_template is None:
            return instruction.completion
        # Everything is in the turn of the user, because some templates reject a system prompt. Templates ignore unknown
        # variables.
        messages = [{"role": "user", "content": instruction.chat}]
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )

    def _check_length(self, length: int) -> None:
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and length + self._sampling.max_tokens > limit:
            raise UserError(
                f"{self.identity['model']} reads {limit} tokens, but the instruction has {length} and --max-tokens is "
                f"{self._sampling.max_tokens}; give a smaller --max-tokens or another --lm."
            )


def _generation_config(model: Any, tokenizer: Any, sampling: Sampling) -> Any:
    from transformers import GenerationConfig

    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [tokenizer.eos_token_id if end is None else end]
    if tokenizer.chat_template is None:
        # A model without a chat template would continue with more examples after the line.
        ends += [
            ids[0] for text in ("\n", "\n\n") if len(ids := tokenizer(text, add_special_tokens=False).input_ids) == 1
        ]
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=[token for token in ends if token is not None] or None,
        pad_token_id=tokenizer.pad_token_id,
    )


def _load(source: str, revision: str | None, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": False}
    options |= {"local_files_only": True} if revision is None else {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    except Exception as error:  # missing, truncated and unrelated files raise many types
        check_not_gated(source, error)
        reason = one_line(error)
        raise UserError(f"the language model {source} cannot be loaded ({reason}); {_FORMS}.") from error
    missing = report["missing_keys"]
    if missing:
        raise UserError(
            f"the weights of {source} do not fit its config.json: {counted(len(missing), 'tensor is', 'tensors are')} "
            f"missing, such as {min(missing)}; copy the model again."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {source} has neither a padding nor an end token; give another --lm.")
    return model, tokenizer
