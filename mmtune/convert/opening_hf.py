"""Opens written folders with plain transformers and PEFT, as somebody without mmtune does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    SiglipVisionModel,
)

from mmtune.convert.cases import NEW_TOKENS, Case
from mmtune.convert.plan import IMAGE, Picture
from mmtune.core.errors import VerificationError


def load_exactly(kind: Any, folder: Path) -> Any:
    """A model of transformers whose weight files hold each of its tensors and nothing else, in float32.

    Raises:
        VerificationError: A key is missing, unexpected or of another shape.
    """
    model, info = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, trust_remote_code=False
    )
    wrong = {name: sorted(map(str, keys))[:3] for name, keys in info.items() if keys}
    if wrong:
        raise VerificationError(f"transformers does not load the folder whole: {wrong}.", where=str(folder))
    return model.eval()


def _continue(model: Any, inputs: Mapping[str, Tensor]) -> list[int]:
    prompt = inputs["input_ids"]
    made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return [int(token) for token in made[0, prompt.shape[1] :]]


class CausalLanguageModel:
    """A plain causal LM with its tokenizer."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.model = load_exactly(AutoModelForCausalLM, folder)
        if not (folder / "tokenizer_config.json").is_file():  # the source had none
            return
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        rows = self.model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise VerificationError(f"The tokenizer has {len(tokenizer)} tokens, the model {rows}.", where=str(folder))

    @torch.no_grad()
    def logits(self, case: Case) -> Tensor:
        """See :class:`mmtune.convert.cases.Evaluation`."""
        found: Tensor = self.model(case.ids.unsqueeze(0)).logits[0]
        return found

    def greedy(self, case: Case) -> list[int] | None:
        """See :class:`mmtune.convert.cases.Evaluation`."""
        ids = case.ids.unsqueeze(0)
        return _continue(self.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


class AdaptedLanguageModel(CausalLanguageModel):
    """A PEFT folder on its base."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(
            options["base"], dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
        self.model = PeftModel.from_pretrained(base, str(folder)).eval()


class VisionTower:
    """A vision tower alone."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        kind = str(AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type)
        self.model = load_exactly(SiglipVisionModel if kind == "siglip_vision_model" else CLIPVisionModel, folder)

    @torch.no_grad()
    def logits(self, case: Case) -> Tensor:
        """The last hidden state ``[P, D]``."""
        found: Tensor = self.model(_shown(case).pixels, output_hidden_states=True).hidden_states[-1][0]
        return found

    def greedy(self, case: Case) -> list[int] | None:
        """None: a tower gives no answers."""
        return None


class NativeLlava:
    """``LlavaForConditionalGeneration`` or LLaVA-NeXT, with the folder's own processor preparing the picture."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.model = load_exactly(AutoModelForImageTextToText, folder)
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        self.folder = folder

    @torch.no_grad()
    def logits(self, case: Case) -> Tensor:
        """See :class:`mmtune.convert.cases.Evaluation`."""
        found: Tensor = self.model(**self._inputs(case)).logits[0]
        return found

    def greedy(self, case: Case) -> list[int] | None:
        """See :class:`mmtune.convert.cases.Evaluation`."""
        return _continue(self.model, self._inputs(case))

    def _inputs(self, case: Case) -> dict[str, Tensor]:
        """The case's ids, with as many image tokens and the pixels that the processor makes of the picture."""
        ids = case.ids
        extra: dict[str, Tensor] = {}
        if case.picture is not None:
            made = self._prepared(case.picture)
            token = int(self.model.config.image_token_id)
            count = int((made["input_ids"] == token).sum())
            place = int((ids == IMAGE).nonzero()[0])
            ids = torch.cat([ids[:place], torch.full((count,), token), ids[place + 1 :]])
            extra = {key: made[key] for key in ("pixel_values", "image_sizes") if key in made}
        rows = ids.unsqueeze(0)
        return {"input_ids": rows, "attention_mask": torch.ones_like(rows), **extra}

    def _prepared(self, picture: Picture) -> Mapping[str, Tensor]:
        image = Image.fromarray(_image(picture).numpy())
        made: Mapping[str, Tensor] = self.processor(images=image, text=self.processor.image_token, return_tensors="pt")
        pixels = made["pixel_values"].flatten(0, -4)[: len(picture.pixels)]
        difference = float((pixels - picture.pixels).abs().max())
        if difference > 1e-5:
            raise VerificationError(
                f"The written processor prepares pictures otherwise: pixels differ by {difference:.3g}.",
                where=str(self.folder),
            )
        return made


def _shown(case: Case) -> Picture:
    if case.picture is None:
        raise VerificationError("A vision tower is evaluated on a picture.")
    return case.picture


def _image(picture: Picture) -> Tensor:
    if picture.image is None:
        raise VerificationError("The picture itself is needed to compare its preparation.")
    return picture.image
