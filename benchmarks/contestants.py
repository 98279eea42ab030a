"""The contestants of ``training.py``: each trains the same LLaVA on the same rows, a step whenever it is told to.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mmtune.core.memory import memory_in_use, peak_memory_bytes
from mmtune.modalities.image import ImageModality
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.modeling import MMTuneModel

BATCH, ROWS_OF_AN_EPOCH = 8, 2000
NUM_BATCHES = {"equal": 1, "spread": 4, "mixed": 5}
VOCABULARY, IMAGE_TOKEN, PAD = 32000, 31999, 0
LANGUAGE = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
}  # fmt: skip
VISION = {
    "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
PATCHES = (VISION["image_size"] // VISION["patch_size"]) ** 2
WORKLOADS = {
    "equal": "128 text tokens in every row",
    "spread": "10 to 600 text tokens, their logarithms evenly spread",
    "mixed": "four of five rows have 10 to 60 text tokens, the fifth 300 to 600, as answers and descriptions have",
}
DESCRIPTION = (
    f"A language model of {LANGUAGE['num_hidden_layers']} layers of width {LANGUAGE['hidden_size']} with "
    f"{VOCABULARY:,} words, a ViT of {VISION['num_hidden_layers']} layers of width {VISION['hidden_size']} and "
    f"{PATCHES} patches, float32, batches of {BATCH}; language model and projector are trained with fused AdamW, "
    "the last 40 % of each text are targets. Every contestant has the same rows: mmtune in batches of near length as "
    f"`train.grouping: length` makes them in an epoch of {ROWS_OF_AN_EPOCH:,} rows (those in the middles of equal "
    "parts of its order of length), the others in random batches, as is their default."
)


def rows_of(workload: str) -> list[list[dict[str, Any]]]:
    """Batches of rows, each of near length: those in the middle of equal parts of an epoch in order of length."""
    generator = random.Random(0)
    lengths = [128] * ROWS_OF_AN_EPOCH
    if workload == "spread":
        lengths = sorted(round(10 * 60 ** generator.random()) for _ in lengths)
    elif workload == "mixed":
        lengths = sorted(generator.randint(*((300, 600) if row % 5 == 0 else (10, 60))) for row in range(len(lengths)))
    pixels = torch.Generator().manual_seed(0)
    batches = []
    count = NUM_BATCHES[workload]
    for part in range(count):
        start = (2 * part + 1) * ROWS_OF_AN_EPOCH // (2 * count)
        batches.append([_row(length, generator, pixels) for length in lengths[start : start + BATCH]])
    return batches


def _row(length: int, generator: random.Random, pixels: torch.Generator) -> dict[str, Any]:
    text = [generator.randrange(3, IMAGE_TOKEN) for _ in range(length)]
    ids = [1] + [IMAGE_TOKEN] * PATCHES + text
    num_targets = max(1, round(0.4 * length))
    labels = [-100] * (len(ids) - num_targets) + ids[-num_targets:]
    side = VISION["image_size"]
    return {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(3, side, side, generator=pixels)}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad on the right, for the peers."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([list(row[key]) + [value] * (longest - len(row[key])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    pixels = torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])
    return {
        "input_ids": padded("input_ids", PAD), "labels": padded("labels", -100),
        "attention_mask": torch.tensor(mask), "pixel_values": pixels,
    }  # fmt: skip


def peer_model() -> LlavaForConditionalGeneration:
    """Random weights, the same in every process; all but the tower is trained."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**LANGUAGE),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=PATCHES,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    return model


def our_model() -> MMTuneModel:
    """The same weights in parts of our own."""
    peer = peer_model()
    with tempfile.TemporaryDirectory() as folder:
        side = VISION["image_size"]
        peer.config.vision_config.save_pretrained(folder)
        crop = {"height": side, "width": side}
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder)
        image = ImageModality.from_source(folder)
    with torch.device("meta"):  # its parts are the peer's
        lm = LlamaForCausalLM(LlamaConfig(**LANGUAGE))
    lm.model, lm.lm_head = peer.model.language_model, peer.lm_head
    config = MMTuneConfig(method="llava", encoders={"image": {"source": ""}})
    model = MMTuneModel(config, lm, {"image": peer.model.vision_tower}, {"image": image})
    ours, theirs = model.method.parameters(), peer.model.multi_modal_projector.parameters()
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            mine.copy_(other)
    model.requires_grad_(False)
    model.set_trainable(["method", "language"])
    return model


def run(name: str, workload: str, rounds: int, end: Connection) -> None:
    """One contestant in a process of its own: a step for every message, then its peak memory."""
    batches = rows_of(workload)
    before = memory_in_use()
    if name in ("mmtune", "all_logits"):
        _run_ours(batches, rounds, end, focused=name == "mmtune")
    else:
        rows = [row for batch in batches for row in batch]
        random.Random(1).shuffle(rows)
        _run_trainer(name, [*batches[0], *rows * rounds], end)
    end.send({"peak_bytes": peak_memory_bytes() - before})


def _run_ours(batches: list[list[dict[str, Any]]], rounds: int, end: Connection, *, focused: bool) -> None:
    model = our_model().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    end.send("built")
    for rows in [batches[0], *(batches * rounds)]:
        end.recv()
        clock = _Clock()
        batch = collate(rows)
        pixels = batch.pop("pixel_values")
        batch["input_ids"] = batch["input_ids"].masked_fill(
            batch["input_ids"] == IMAGE_TOKEN, model.placeholder_ids["image"]
        )
        media = {"image": {"pixel_values": pixels, "owner": torch.arange(len(rows))}}
        loss = model(**batch, media=media, target_logits_only=focused).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end.send(clock.row(rows, float(loss.detach())))


def _run_trainer(name: str, rows: list[dict[str, Any]], end: Connection) -> None:
    model = peer_model()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder, "per_device_train_batch_size": BATCH, "max_steps": len(rows) // BATCH,
            "learning_rate": 1e-5,
            "optim": "adamw_torch_fused", "report_to": [], "save_strategy": "no", "logging_strategy": "no",
            "remove_unused_columns": False, "use_cpu": True, "disable_tqdm": True, "dataloader_num_workers": 0,
            "gradient_checkpointing": False, "bf16": False,
        }  # fmt: skip
        turn = _Turn(rows, end)
        trainer = _make_trainer(name, model, rows, options, turn)
        end.send("built")
        trainer.train()


def _make_trainer(name: str, model: Any, rows: list[dict[str, Any]], options: dict[str, Any], turn: _Turn) -> Trainer:
    if name == "trainer":
        found = _InOrder(model, TrainingArguments(**options), collate, train_dataset=rows, callbacks=[turn])
    else:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        class InOrder(SFTTrainer):
            """Takes rows as they are given."""

            def _get_train_sampler(self, *_: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

        data = Dataset.from_list([{**row, "pixel_values": row["pixel_values"].tolist()} for row in rows])
        arguments = SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
        found = InOrder(
            model, arguments, collate, train_dataset=data.with_format("torch"), callbacks=[turn],
            processing_class=_tokenizer(),
        )  # fmt: skip
    _record_losses(found, turn)
    return found


class _InOrder(Trainer):
    """Takes rows as they are given."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class _Turn(TrainerCallback):
    """Lets a trainer wait for its turn before it gets the next batch, and measures from there."""

    def __init__(self, rows: list[dict[str, Any]], end: Connection) -> None:
        self._batches: Iterator[list[dict[str, Any]]] = iter(
            [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        )
        self._end = end
        self._clock = _Clock()
        self.loss = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end.send(self._clock.row(next(self._batches), self.loss))
        if state.global_step < state.max_steps:
            self._wait()

    def _wait(self) -> None:
        self._end.recv()
        self._clock = _Clock()


def _record_losses(trainer: Trainer, turn: _Turn) -> None:
    step: Callable[..., Any] = trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        turn.loss = float(loss)
        return loss

    trainer.training_step = recorded  # type: ignore[method-assign]


def _tokenizer() -> Any:
    from mmtune.testing.tiny import tiny_tokenizer

    return tiny_tokenizer()


class _Clock:
    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def row(self, rows: list[dict[str, Any]], loss: float) -> dict[str, float]:
        lengths = [len(row["input_ids"]) for row in rows]
        return {
            "wall_s": time.perf_counter() - self._wall,
            "processor_s": time.process_time() - self._processor,
            "rows": len(rows),
            "tokens": sum(lengths),
            "positions": len(rows) * max(lengths),
            "loss": loss,
            "load": psutil.getloadavg()[0],
        }
