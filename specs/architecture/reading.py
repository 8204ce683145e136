"""Reading a config.json: every key is read, known to be harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specs.errors import InputError, nearest_names

# Bounds that no real model reaches; beyond them a number is a slip or an attack.
MAX_SIZE = 1 << 24
MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 14

# Keys that change neither shapes nor the forward pass of a served model: training, generation, file format.
_HARMLESS = """
    architectures attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout custom_pipelines decoder_start_token_id diversity_penalty
    do_sample dropout dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id hidden_dropout id2label
    init_std initializer_range label2id layerdrop length_penalty max_length min_length model_type name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
    quantization_config repetition_penalty rescale_prenorm_residual resid_pdrop return_dict return_dict_in_generate
    router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens task_specific_params temperature
    tokenizer_class top_k top_p torch_dtype transformers_version transformers.js_config typical_p unk_token_id use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())


class ConfigReader:
    """Typed reads of a config with errors that name file, line, field, expectation and the nearest key."""

    def __init__(
        self,
        config: Mapping[str, Any],
        name: str,
        file: str | None = None,
        text: str | None = None,
        *,
        inside: str = "",
        whole: Mapping[str, Any] | None = None,
    ) -> None:
        """`inside`: the key of `whole` whose mapping this config is, where it is not the whole file."""
        self.config = config
        self.name = name
        self.file = file
        self.whole = config if whole is None else whole
        self._text = text
        self._inside = inside
        self._seen: set[str] = set()

    def nested(self, key: str, inherited: Mapping[str, Any]) -> ConfigReader:
        """A reader of the mapping at `key`, to which `inherited` keys of this config are added."""
        inner = self.raw(key)
        if not isinstance(inner, Mapping):
            raise self.error(key, f"is {_shown(inner)}", "the config of the text model")
        return ConfigReader(
            {**inner, **inherited}, self.name, self.file, self._text, inside=f"{key}.", whole=self.whole
        )

    def error(self, key: str, message: str, expected: str | None = None, nearest: tuple[str, ...] = ()) -> InputError:
        """An `InputError` at `key`; the line is where the key first stands in the file."""
        line = None
        if self._text is not None:
            place = self._text.find(f'"{key}"')
            line = None if place < 0 else self._text.count("\n", 0, place) + 1
        field = self._inside + key if self.file is not None else f"architecture.{self._inside}{key}"
        return InputError(message, file=self.file, line=line, field=field, expected=expected, nearest=nearest)

    def has(self, key: str) -> bool:
        """Whether the key stands in the config with a value other than null."""
        return self.config.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it stands (null where absent); the key counts as read."""
        self._seen.add(key)
        return self.config.get(key)

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number in [low, high]; required unless there is a default."""
        value = self.raw(key)
        if value is None:
            if default is not None:
                return default
            raise self.missing(key)
        expected = f"a whole number from {low} to {high}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"is {_shown(value)}", expected)
        if not low <= value <= high:
            raise self.error(key, f"is {_shown(value)}", expected)
        return value

    def optional_integer(self, key: str, *, low: int = 1, high: int = MAX_SIZE) -> int | None:
        """The same, or None where null or absent."""
        return self.integer(key, low=low, high=high) if self.raw(key) is not None else None

    def number(self, key: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number above `low` and at most `high`."""
        value = self.raw(key)
        if value is None:
            if default is not None:
                return default
            raise self.missing(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            raise self.error(key, f"is {_shown(value)}", f"a number above {low:g}, at most {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"is {_shown(value)}", "true or false")
        return value

    def expect(self, key: str, *allowed: Any) -> Any:
        """The value, refused unless absent, null or one of `allowed`: other values mean another forward pass."""
        value = self.raw(key)
        if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
            raise self.error(
                key,
                f"is {_shown(value)}, which this model family cannot express here",
                " or ".join(_shown(one) for one in allowed) if allowed else "no such key",
            )
        return value

    def missing(self, key: str) -> InputError:
        """The error for a required key that is not there."""
        candidates = [name for name in self.config if name not in self._seen]
        return self.error(key, "is missing from the model's config", "the key", nearest_names(key, candidates, 1))

    def finish(self, family: str, harmless: frozenset[str] = frozenset()) -> None:
        """Refuse a key that nothing has read and that might change the model; null, false, 0 and empty are fine."""
        for key, value in self.config.items():
            if key in self._seen or key in HARMLESS or key in harmless or key.startswith("_") or not value:
                continue
            raise self.error(
                key,
                f"is not a key that the {family} family knows, and might change the model's shape",
                "a config of that family; remove the key if it does not matter",
                nearest_names(key, self._seen, 1),
            )


def _shown(value: Any) -> str:
    """A value as JSON would print it, cut short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "an integer of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
