"""What transformers itself makes of a source in its own layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert import reference
from mmtune.convert.cases import Case
from mmtune.convert.damage import reading
from mmtune.convert.language import Language
from mmtune.convert.lora import Lora
from mmtune.convert.opening_hf import NativeLlava
from mmtune.convert.plan import Picture
from mmtune.convert.tensors import Store
from mmtune.convert.vision import vision_model
from mmtune.core.errors import CheckpointError, VerificationError


class LanguageReference:
    """A plain language model, with or without a LoRA."""

    def __init__(self, language: Language, lora: Lora | None, dtype: torch.dtype | None, *, merge: bool) -> None:
        self.language, self.lora, self.dtype, self.merge = language, lora, dtype, merge
        self.num_parameters = reference.num_parameters(language.tensors)

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        kept = self.dtype if self.merge or self.lora is None else None  # a LoRA's base is not written
        self.model = reference.load_language(self.language, kept, self.lora, merge=self.merge)

    def release(self) -> None:
        """Let go of them again."""
        del self.model

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; see :class:`mmtune.convert.plan.Reference`."""
        found: Tensor = self.model(ids.unsqueeze(0)).logits[0]
        return found, torch.ones(len(found), dtype=torch.bool)


class TowerReference:
    """A vision tower alone."""

    def __init__(self, config: Mapping[str, Any], tensors: Store, dtype: torch.dtype | None, where: str) -> None:
        self.config, self.tensors, self.dtype, self.where = config, tensors, dtype, where
        self.num_parameters = reference.num_parameters(tensors)

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        self.model = vision_model(self.config, where=self.where, on_meta=False)
        values = {name.removeprefix("vision_model."): part.rounded(self.dtype) for name, part in self.tensors.items()}
        self.model.load_state_dict(values)

    def release(self) -> None:
        """Let go of them again."""
        del self.model

    @torch.no_grad()
    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """The last hidden state ``[P, D]`` of a picture."""
        if picture is None:
            raise ValueError("A vision tower is evaluated on a picture.")
        seen: Tensor = self.model(picture.pixels.float(), output_hidden_states=True).hidden_states[-1][0]
        return seen, torch.ones(len(seen), dtype=torch.bool)


class NativeReference:
    """LLaVA or LLaVA-NeXT as transformers loads the folder, with the folder's own processor."""

    def __init__(self, folder: Path, num_parameters: int, dtype: torch.dtype | None) -> None:
        self.folder, self.num_parameters, self.dtype = folder, num_parameters, dtype

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""
        try:
            with reading(self.folder, "The folder"):
                self.native = NativeLlava(self.folder, {})
        except VerificationError as error:
            raise CheckpointError(error.message, where=error.where, fix="copy the whole folder again") from error
        if self.dtype is not None:
            self.native.model.to(self.dtype).float()

    def release(self) -> None:
        """Let go of them again."""
        del self.native

    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence; without its adapter the projector's weights are zero."""
        parameters = [] if adapter else [p for n, p in self.native.model.named_parameters() if "multi_modal_proj" in n]
        kept = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            parameter.data.zero_()
        found = self.native.logits(Case(ids, picture, {}))
        for parameter, values in zip(parameters, kept, strict=True):
            parameter.data.copy_(values)
        return found, torch.ones(len(found), dtype=torch.bool)
