"""One model class for all methods: embed, perceive, splice, decode, loss.

Shapes: B samples, T positions, H hidden size, V vocabulary, N media items in reading order.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmtune.core.conditioning import Slot
from mmtune.core.errors import ShapeError, UsageError
from mmtune.core.perception import Features, Perception
from mmtune.hosts.host import Host
from mmtune.methods import METHODS
from mmtune.methods.base import Method
from mmtune.modalities.base import Modality
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.decoding import generate_quickly, steps_lowered, with_own_penalty
from mmtune.model.parts import ModelParts
from mmtune.nn.splice import splice_tokens

Media = Mapping[str, Mapping[str, Tensor]]
IGNORED = -100


class MMTuneModel(ModelParts, PreTrainedModel):
    """A causal language model, encoders, and the method between them.

    Args:
        config: What the parts are.
        language_model: Any decoder of transformers with a known layout.
        encoders: Modality name to its encoder.
        modalities: Modality name to its description.
        seed: Seed of the method's initial weights; the global random state is left alone.
    """

    config_class = MMTuneConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        config: MMTuneConfig,
        language_model: PreTrainedModel,
        encoders: Mapping[str, nn.Module],
        modalities: Mapping[str, Modality],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(config)
        self.slot = Slot()
        self.modalities = dict(modalities)
        self.language_model = language_model
        self.encoders = nn.ModuleDict(encoders)
        self.host = Host(language_model)
        method_class = METHODS.load(config.method)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.method: Method = method_class(self.method_settings(config), self.host, self.modalities)
            self.method.attach(self.host, dict(encoders), self.slot)
        ordered = sorted(self.modalities)  # a saved configuration does not keep their order
        self.placeholder_ids = {name: self.host.vocab_size + index for index, name in enumerate(ordered)}
        accepted = inspect.signature(language_model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        # A boolean mask of positions is understood since transformers 5.22; before it, all logits are computed.
        self._slices_logits = "logits_to_keep" in accepted and Version(transformers.__version__) >= Version("5.22")
        self.lora_names: frozenset[str] = frozenset()
        self.trains_in_team = False  # True: every forward touches every trained parameter
        self.owns_language_model = False  # True: the weights travel with every save, as in a converted folder
        self.owned_encoders: set[str] = set()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        media: Media | None = None,
        num_items_in_batch: Tensor | int | None = None,
        target_logits_only: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Score a batch.

        Args:
            input_ids: ``[B, T]``; ids from ``host.vocab_size`` on are placeholders of media.
            attention_mask: ``[B, T]``, 1 at text and placeholders, 0 at padding on either side.
            labels: ``[B, T]``, -100 where nothing is learned; shifted here.
            position_ids: ``[B, T]``; counted from the attention mask when absent. Where they begin again within a row
                and nothing is padded, several samples are packed into it.
            media: Modality name to its collated inputs, among them ``owner`` ``[N]``, the sample of each item.
            num_items_in_batch: Target tokens over all micro-batches of a step; the mean of this batch when absent.
            target_logits_only: With labels, run the LM head only where a target is predicted. Most positions of
                instruction data predict none, and logits are the widest tensors of a step. ``logits`` are then
                ``[K, V]``, one row a target in reading order.
        """
        anchor = self.anchor() if self.training and self.trains_in_team else None  # last in backward, see ADR 19
        perception = self.perceive(media, input_ids.shape[0])
        inputs = self._embed(input_ids, attention_mask, position_ids, perception)
        if anchor is not None:  # also makes gradients reach the first block in every process
            inputs["inputs_embeds"] = inputs["inputs_embeds"] + anchor.to(inputs["inputs_embeds"])
        if labels is not None:
            kwargs.setdefault("use_cache", False)
            if target_logits_only and self._slices_logits:
                kwargs["logits_to_keep"] = _predicts_target(labels)
        with self.slot.bind(perception):
            output: CausalLMOutputWithPast = self.language_model(**inputs, **kwargs)
        if labels is not None:
            scores = output.logits if output.logits.ndim == 2 else output.logits[_predicts_target(labels)]  # [K, V]
            output.loss = self._loss(scores, labels, num_items_in_batch)
            output.logits = scores if target_logits_only else output.logits
            if self.training and not self.trains_in_team and self._may_miss(media):
                output.loss = output.loss + self.anchor().to(output.loss)
        return output

    def _may_miss(self, media: Media | None) -> bool:
        """Whether a batch may leave trained parameters without gradient, which those of a team never are.

        What is read in a trained encoder may differ between items.
        """
        lacks = not self.modalities.keys() <= (media or {}).keys()
        return lacks or any(parameter.requires_grad for parameter in self.encoders.parameters())

    def perceive(self, media: Media | None, batch_size: int) -> Perception:
        """Run the encoders and the method once for a batch."""
        if not media and not self.method.perceives_text:
            return Perception()
        seen = {name: self._encode(name, inputs) for name, inputs in (media or {}).items()}
        return self.method.perceive(seen, batch_size)

    def _encode(self, name: str, inputs: Mapping[str, Tensor]) -> Features:
        encoder = self.encoders[name]
        inside = (encoder, self.method) if self.method.changes_encoders else (encoder,)
        parameters = (parameter for module in inside for parameter in module.parameters())
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        with torch.set_grad_enabled(trains):
            values, mask, breaks = self.method.encode(self.modalities[name], encoder, inputs)
        return Features(values.contiguous(), inputs["owner"], mask, breaks)  # products round by the order in memory

    def _embed(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, perception: Perception
    ) -> dict[str, Tensor]:
        """Embed text, splice tokens, and count positions before masked slots vanish from the mask."""
        is_placeholder = input_ids >= self.host.vocab_size  # [B, T]
        embeddings = self.host.input_embeddings(input_ids.masked_fill(is_placeholder, 0))  # [B, T, H]
        alone = position_ids is not None and (attention_mask is None or bool(attention_mask.all()))
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if self.method.masked_slots:
            attention_mask = attention_mask.masked_fill(is_placeholder, 0)
        else:
            for name, tokens in perception.tokens.items():
                embeddings = splice_tokens(embeddings, input_ids == self.placeholder_ids[name], tokens)
            if int(is_placeholder.sum()) != sum(len(tokens) for tokens in perception.tokens.values()):
                raise ShapeError(
                    "The text has placeholders for which no media came with it.",
                    fix="pass the media of every modality with the input ids",
                )
        if alone and not self.method.masked_slots:  # positions that begin again keep packed rows apart, a mask hides it
            return {"inputs_embeds": embeddings, "position_ids": position_ids}
        inputs = {"inputs_embeds": embeddings, "attention_mask": attention_mask}
        return {**inputs, "position_ids": position_ids} if self._takes_positions else inputs

    def _loss(self, scores: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The loss from the scores ``[K, V]`` of the K targets in reading order."""
        following = labels[:, 1:]
        targets = following[following != IGNORED]  # [K]
        total = nn.functional.cross_entropy(scores.float(), targets, reduction="sum")
        return total / (max(len(targets), 1) if num_items is None else num_items)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        media: Media | None = None,
        *,
        positions: str = "training",
        perception: Perception | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue left-padded prompts; perception is computed once and bound to every step.

        Args:
            positions: ``training`` counts positions as in training; ``original`` repeats what the cached decoding of
                the published code does.
            perception: What ``perceive`` gave for the same media and batch, so that it need not run again.
            kwargs: Options of transformers' ``generate``.

        Returns:
            New ids ``[B * returns, T_new]``, or transformers' output object with ``return_dict_in_generate``.

        Raises:
            UsageError: Unknown ``positions``.
            NotPossibleError: An ``assistant_model``.
        """
        if positions not in ("training", "original"):
            raise UsageError(f"Unknown positions '{positions}'. Allowed: training, original.", fix="use 'training'")
        if perception is None:
            perception = self.perceive(media, input_ids.shape[0])
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        trained = (mask.long().cumsum(-1) - 1).clamp(min=0)  # [B, T]
        used, shift = trained, None
        if positions == "original":
            used = self.method.prompt_positions(trained, mask)
            shift = self.method.decoding_shift((input_ids >= self.host.vocab_size).sum(-1))  # [B]
            shift = shift - (trained - used)[:, -1]  # decoding goes on from where the prompt ends
            shift = shift if self._takes_positions else None
        inputs = self._embed(input_ids, attention_mask, used, perception)
        if self.method.masked_slots and self._takes_positions:
            inputs = _without_empty_columns(inputs)
        penalty = self.language_model.generation_config.repetition_penalty
        options = with_own_penalty(kwargs, penalty)
        with self.slot.bind(perception), steps_lowered(self.language_model, shift):
            # Shares that a team gathers for a step may be met again in training, which inference mode would forbid.
            return generate_quickly(self.language_model, inputs, options, inference=not self.trains_in_team)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute blocks in backward, each with the perception it ran with in forward.

        Blocks run again in backward, when the slot is released; unbound, gradients are silently wrong (docs/adr/0003).
        """

        def contexts() -> tuple[Any, Any]:
            return nullcontext(), self.slot.bind(self.slot.perception)

        options = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False, "context_fn": contexts}
        self.checkpoint_language_model(options)

    def train(self, mode: bool = True) -> MMTuneModel:
        """Like ``nn.Module.train``, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        for encoder in self.encoders.values():
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.host.input_embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's."""
        return self.language_model.get_output_embeddings()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> MMTuneModel:
        """Load a checkpoint, its base and its encoders; see ``mmtune.model.checkpoint.load_model``."""
        from mmtune.model.checkpoint import load_model

        return load_model(str(pretrained_model_name_or_path), **kwargs)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:  # type: ignore[override]
        """Write what was trained; see ``mmtune.model.checkpoint.save_model``."""
        from mmtune.model.checkpoint import save_model

        save_model(self, str(save_directory))


def _without_empty_columns(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Leave out positions that no row attends to; the others keep their numbers, so that every answer stays the same.

    The masked slots of a single prompt go this way: a mask of ones alone takes the fast paths of attention.
    """
    kept = inputs["attention_mask"].bool().any(0)  # [T]
    return inputs if bool(kept.all()) else {name: value[:, kept] for name, value in inputs.items()}


def _predicts_target(labels: Tensor) -> Tensor:
    """``[B, T]`` bool: positions whose next position is a target."""
    return nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))


AutoModel.register(MMTuneConfig, MMTuneModel)
AutoModelForImageTextToText.register(MMTuneConfig, MMTuneModel)
