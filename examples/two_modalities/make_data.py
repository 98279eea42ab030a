"""Pictures and short tones in one conversation, made on the spot, and a small ear that was taught to tell tones apart.

    python examples/two_modalities/make_data.py two_modalities/data

A picture shows one or two things of the nano world, none of them a dinosaur. The dinosaur is heard: the pitch of its
call is its colour, a pure call is a small one and a buzzing call a big one. Some questions need the picture, some the
sound, and some both. Written are ``train.json``, ``val.json`` and ``test.json`` (message rows with ``images`` and
``audios``), the test again with blank pictures and with silence, the media, and ``ear/``: a Whisper of two small layers
that is trained here, by itself, for half a minute at most, as published encoders were before anybody used them.
"""

from __future__ import annotations

import argparse
import json
import random
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from mmtune.nano.world.draw import draw_scene
from mmtune.nano.world.scene import COLORS, SIZES, Question, Scene, Thing, ask, sample_scene

RATE = 16_000  # samples a second, what Whisper reads
SECONDS = 1  # of every call, and the window of the ear
PITCH = {color: 220.0 * 2 ** (index * 3 / 8) for index, color in enumerate(COLORS)}  # Hz; neighbours are 30 % apart
DETUNE = 0.03  # share of the pitch by which a call may be off
SIZES_OF_SPLITS = {"train": 3000, "val": 120, "test": 600}
BY_SHAPE, BY_COLOR = ("color_of_shape", "size_of_shape"), ("shape_of_color", "size_of_color")
EXAM = ("picture_color", "picture_size", "sound_color", "sound_size", "both_shape", "both_size", "both_count")
"""What the test asks in turn: of a seen thing, of the heard one, and what takes both to answer."""

Row = dict[str, Any]


def call(color: str, size: str, rng: random.Random) -> np.ndarray:
    """The samples of a dinosaur's call, float in -1 to 1."""
    pitch = PITCH[color] * (1 + rng.uniform(-DETUNE, DETUNE))
    time = np.arange(RATE * SECONDS) / RATE
    phase = 2 * np.pi * (pitch * time + rng.random())
    wave_form = np.sin(phase) if size == "small" else 0.7 * np.sign(np.sin(phase))
    fade = np.minimum(1, np.minimum(time, SECONDS - time) / 0.02)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 0.005, len(time))
    return rng.uniform(0.3, 0.9) * wave_form * fade + noise


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Mono, 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def teach_ear(folder: Path, steps: int = 200, seed: int = 0) -> float:
    """Train a tiny Whisper to name colour and size of calls, write it, and return its share of right colours."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    mels = 40
    config = WhisperConfig(
        vocab_size=8, num_mel_bins=mels, d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, max_source_positions=50 * SECONDS,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    ear, extractor = WhisperModel(config), WhisperFeatureExtractor(feature_size=mels, chunk_length=SECONDS)
    heads = torch.nn.ModuleDict({"color": torch.nn.Linear(64, len(COLORS)), "size": torch.nn.Linear(64, len(SIZES))})
    optimizer = torch.optim.AdamW([*ear.encoder.parameters(), *heads.parameters()], lr=2e-3)
    right = 0.0
    for step in range(steps):
        names = [(rng.choice(COLORS), rng.choice(SIZES)) for _ in range(16)]
        sounds = [call(color, size, rng).astype("float32") for color, size in names]
        features = extractor(sounds, sampling_rate=RATE, return_tensors="pt")["input_features"]
        heard = ear.encoder(features).last_hidden_state.mean(1)  # [16, 64]
        colors = torch.tensor([COLORS.index(color) for color, _ in names])
        sizes = torch.tensor([SIZES.index(size) for _, size in names])
        loss = torch.nn.functional.cross_entropy(heads["color"](heard), colors)
        loss = loss + torch.nn.functional.cross_entropy(heads["size"](heard), sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps - 20:
            right += float((heads["color"](heard).argmax(-1) == colors).float().mean()) / min(20, steps)
    ear.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return right


def world(rng: random.Random) -> tuple[Scene, Thing]:
    """One or two seen things, and a heard dinosaur of another colour."""
    while True:
        seen = sample_scene(rng, 1, 2, held_out=False)
        left = [color for color in COLORS if color not in {thing.color for thing in seen.things}]
        if all(thing.shape != "dinosaur" for thing in seen.things):
            return seen, Thing("dinosaur", rng.choice(left), rng.choice(SIZES), 1, 1)


def lesson(rng: random.Random, kind: str) -> tuple[Scene | None, Thing | None, list[Question]]:
    """What is shown and played, and the same questions about every thing of it, so that answers tell things apart."""
    seen, heard = world(rng)
    things = {"both": (*seen.things, heard), "picture": seen.things, "sound": (heard,)}[kind]
    types = rng.choice((BY_SHAPE, BY_COLOR))
    asked = [ask(Scene((thing,)), rng, type) for type in types for thing in things]
    asked += [ask(Scene(things), rng, "count"), ask(Scene(things), rng, "yesno")]
    shown, played = (None if kind == "sound" else seen), (None if kind == "picture" else heard)
    return shown, played, rng.sample(asked, len(asked))


def exam(rng: random.Random, type: str) -> tuple[Scene, Thing, list[Question]]:
    """One question about a picture with a call."""
    seen, heard = world(rng)
    everything = Scene((*seen.things, heard))
    about = Scene((heard,)) if type.startswith("sound") else seen if type.startswith("picture") else everything
    attribute = type.partition("_")[2]
    form = "of_color" if type.startswith("both") else "of_shape"
    return seen, heard, [ask(about, rng, "count" if attribute == "count" else f"{attribute}_{form}")]


class Writer:
    """Writes rows and their media under one folder; the same seed gives the same bytes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        for name in ("images", "sounds"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        draw_scene(Scene(()), seed=0).save(folder / "images" / "blank.png")
        write_wav(folder / "sounds" / "silence.wav", np.zeros(RATE * SECONDS))

    def row(self, split: str, index: int) -> Row:
        """Draw, play and write down one row."""
        name = f"{split}{index:05d}"
        rng = random.Random(f"{self.seed} {name}")
        if split == "test":
            kind = EXAM[index % len(EXAM)]
            seen, heard, asked = exam(rng, kind)
        else:
            kind = ("both", "both", "picture", "both", "sound")[index % 5]
            seen, heard, asked = lesson(rng, kind)
        row: Row = {"id": name, "type": kind, "images": [], "audios": []}
        if seen is not None:
            row["images"].append(f"images/{name}.png")
            draw_scene(seen, seed=rng.getrandbits(32)).save(self.folder / row["images"][0])
        if heard is not None:
            row["audios"].append(f"sounds/{name}.wav")
            write_wav(self.folder / row["audios"][0], call(heard.color, heard.size, rng))
        markers = "<image>\n" * len(row["images"]) + "<audio>\n" * len(row["audios"])
        row["messages"] = []
        for place, question in enumerate(asked):
            row["messages"].append({"role": "user", "content": ("" if place else markers) + question.text})
            row["messages"].append({"role": "assistant", "content": question.answer})
        return row

    def write(self, name: str, rows: list[Row]) -> None:
        """One JSON file."""
        (self.folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def make_data(folder: Path, seed: int = 0, ear_steps: int = 200, **sizes: int) -> None:
    """Write all splits, both impoverished tests, the media and the ear."""
    writer = Writer(folder, seed)
    for split, count in {**SIZES_OF_SPLITS, **sizes}.items():
        rows = [writer.row(split, index) for index in range(count)]
        writer.write(split, rows)
        if split == "test":
            writer.write("test_blank", [{**row, "images": ["images/blank.png"]} for row in rows])
            writer.write("test_silent", [{**row, "audios": ["sounds/silence.wav"]} for row in rows])
    right = teach_ear(folder / "ear", ear_steps, seed)
    print(f"{folder}: {', '.join({**SIZES_OF_SPLITS, **sizes})}; the ear names {right:.0%} of the colours")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make pictures, calls, questions about them, and a small ear.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_data(given.folder, given.seed)


if __name__ == "__main__":
    main()
