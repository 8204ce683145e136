"""Reference log-probabilities of a checkpoint: the family's own transformers code, whole sequences, no cache.

Independent of generated programs, of paging and of the engine; slow, for checking only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from specs.errors import InputError


class Reference:
    """`logprobs(tokens)`: [tokens, vocab] float32, row t of what comes after token t."""

    def __init__(self, model_dir: str | Path, device: str = "cpu") -> None:
        try:
            import transformers
        except ImportError:
            raise InputError(
                "the reference needs transformers", expected="pip install 'capstan-llm[runtime]'"
            ) from None
        library: Any = transformers  # its annotations are partial
        library.utils.logging.disable_progress_bar()
        self._device = device
        try:
            self._model = library.AutoModelForCausalLM.from_pretrained(
                str(model_dir), dtype=torch.float32, attn_implementation="eager", local_files_only=True
            )
        except Exception as error:  # the library raises whatever its parsers raise
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"transformers makes no reference of it ({first})", file=str(model_dir)) from error
        self._model.eval().to(device)

    @torch.inference_mode()
    def logprobs(self, tokens: Sequence[int]) -> torch.Tensor:
        logits = self._model(torch.tensor([list(tokens)], device=self._device)).logits[0]
        return torch.log_softmax(logits.float(), dim=-1).cpu()
