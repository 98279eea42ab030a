"""LLaVA's first releases, with start and end tokens around pictures: prompts and answers of the original's way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, CLIPImageProcessorPil, CLIPVisionModel

import mmtune
from mmtune.convert.run import convert
from mmtune.core.errors import CheckpointError, NotPossibleError
from mmtune.data.sample import conversation
from tests.convert.originals import (
    LLAVA,
    LLM,
    copy_tokenizer,
    language_state,
    make_llava,
    make_vlora,
    read_json,
    save_weights,
    write_json,
)

ADDED = {"[PAD]": 440, "<im_patch>": 441, "<im_start>": 442, "<im_end>": 443}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
QUESTION = "What color is the boat?"


def make_first(root: Path, *, added: bool = True, legacy: bool = True) -> Path:
    """A checkpoint as the first releases are: four new rows, whose names may be missing in the tokenizer's files."""
    rows = len(ADDED) if added else 3
    config = {"mm_use_im_start_end": True, "mm_use_im_patch_token": True}
    config |= {"vocab_size": 440 + rows, "image_aspect_ratio": "square"}
    source = make_llava(root, projector="linear", config=config)
    torch.manual_seed(5)
    state = load_file(source / "model.safetensors")
    state |= {name: torch.cat([state[name], 0.2 * torch.randn(rows, LLM["hidden_size"])]) for name in TABLES}
    save_weights(source, state)
    settings = {key: value for key, value in read_json(source / "tokenizer_config.json").items() if "added" not in key}
    write_json(source / "tokenizer_config.json", {**settings, "legacy": legacy})
    if added:
        write_json(source / "added_tokens.json", ADDED)
    return source


def by_hand(source: Path, before: str, after: str, *, start: int, legacy: bool) -> list[int]:
    """The text as the slow tokenizer of the original splits it: at control tokens, each piece by itself."""
    model = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    behind = model.encode(after)
    if not legacy:  # nothing stands before a text behind a control token
        mark = model.encode("!")
        behind = model.encode("!" + after)[len(mark) :]
    return [1, *model.encode(before), start, -200, start + 1, *behind]


def evaluate_by_hand(source: Path, ids: list[int], picture: Image.Image) -> tuple[Tensor, list[int]]:
    """Embeddings put together by hand through the plain language model: logits of the prompt, greedy ids."""
    state = load_file(source / "model.safetensors")
    config = {key: value for key, value in read_json(source / "config.json").items() if not key.startswith("mm_")}
    folder = source.parent / "plain"
    save_weights(folder, {k: v for k, v in state.items() if "mm_projector" not in k and "vision_tower" not in k})
    write_json(folder / "config.json", {**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    language = AutoModelForCausalLM.from_pretrained(folder).eval()
    tower = CLIPVisionModel.from_pretrained(source.parent / "tower").eval()
    prepare = CLIPImageProcessorPil.from_pretrained(source.parent / "tower")
    with torch.no_grad():
        pixels = prepare(picture, return_tensors="pt")["pixel_values"]
        seen = tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
        tokens = seen @ state["model.mm_projector.weight"].T + state["model.mm_projector.bias"]
        place = ids.index(-200)
        embed = language.get_input_embeddings()
        rows = torch.cat([embed(torch.tensor(ids[:place])), tokens, embed(torch.tensor(ids[place + 1 :]))])
        logits = language(inputs_embeds=rows.unsqueeze(0)).logits[0]
        new = language.generate(
            inputs_embeds=rows.unsqueeze(0),
            attention_mask=torch.ones(1, len(rows), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
        )
    return logits, new[0].tolist()


@pytest.fixture
def picture() -> Image.Image:
    noise = torch.randint(0, 256, (9, 12, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((60, 45))


@pytest.mark.parametrize(("added", "legacy"), [(True, True), (False, True), (True, False)])
def test_prompts_and_answers(tmp_path: Path, picture: Image.Image, added: bool, legacy: bool) -> None:
    source = make_first(tmp_path, added=added, legacy=legacy)
    result = convert(source, tmp_path / "out", settings={"template": "llava_v0"})
    assert result["verified"]["greedy_equal"] is True
    model, processor = mmtune.load(tmp_path / "out", device="cpu")
    prompt = processor.encode_prompt(conversation(QUESTION, media={"image": [picture]}))
    start = ADDED["<im_start>"] if added else 441
    wanted = by_hand(source, f"{SYSTEM}###Human: ", f"\n{QUESTION}###Assistant:", start=start, legacy=legacy)
    count = sum(token >= model.host.vocab_size for token in prompt.input_ids)
    place = wanted.index(-200)
    assert count == 16
    assert prompt.input_ids == [*wanted[:place], *[model.placeholder_ids["image"]] * count, *wanted[place + 1 :]]
    given = processor.collate([prompt], side="left")
    given.pop("ids"), given.pop("labels", None)
    logits, answer = evaluate_by_hand(source, wanted, picture)
    with torch.no_grad():
        assert (model(**given).logits[0] - logits).abs().max() < 1e-4
    assert model.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist() == answer


def test_a_difference_from_a_base_without_the_tokens(tmp_path: Path) -> None:
    source = make_first(tmp_path)
    base = tmp_path / "base"
    torch.manual_seed(7)
    state = {name: value + 0.01 * torch.randn_like(value) for name, value in language_state(440).items()}
    save_weights(base, state)
    plain = {key: value for key, value in read_json(source / "config.json").items() if not key.startswith("mm_")}
    plain |= {"vocab_size": 440, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    write_json(base / "config.json", plain)
    copy_tokenizer(LLAVA / "checkpoint", base)
    full = load_file(source / "model.safetensors")
    delta = dict(full)
    for name, value in state.items():
        delta[name] = full[name].clone()
        delta[name][: len(value)] -= value
    save_weights(source, delta)
    convert(source, tmp_path / "out", llm=str(base))
    written = load_file(tmp_path / "out" / "language_model" / "model.safetensors")
    assert all((full[name] - value).abs().max() < 1e-6 for name, value in written.items())
    _, processor = mmtune.load(tmp_path / "out", device="cpu")
    assert processor.tokenizer.convert_tokens_to_ids("<im_end>") == ADDED["<im_end>"]


def test_back_and_to_transformers(tmp_path: Path, picture: Image.Image) -> None:
    source = make_first(tmp_path)
    convert(source, tmp_path / "out", verify=False)
    convert(tmp_path / "out", tmp_path / "back", to="llava")
    first, second = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items() if "inv_freq" not in name)
    assert read_json(tmp_path / "back" / "config.json") == read_json(source / "config.json")
    convert(source, tmp_path / "native", to="hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "native", backend="pil")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert f"USER: <im_start><image><im_end>\n{QUESTION} ASSISTANT:" in prompt
    ids = processor(text=prompt, images=[picture], return_tensors="pt")["input_ids"][0].tolist()
    place = ids.index(processor.image_token_id)
    assert (ids[place - 1], ids[place + 16]) == (ADDED["<im_start>"], ADDED["<im_end>"])
    convert(tmp_path / "native", tmp_path / "again")
    ours = [mmtune.load(tmp_path / name, device="cpu")[1] for name in ("out", "again")]
    shown = [one.render_prompt(conversation(QUESTION, media={"image": [picture]})) for one in ours]
    assert shown[0] == shown[1] == prompt.removeprefix("<s>")


def test_texts_that_are_not_llavas_stay_with_mmtune(tmp_path: Path) -> None:
    source = make_first(tmp_path)
    convert(source, tmp_path / "out", verify=False)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["start"] = "Picture: "
    write_json(path, config)
    with pytest.raises(NotPossibleError, match="Picture"):
        convert(tmp_path / "out", tmp_path / "back", to="llava")


def test_what_is_refused(tmp_path: Path) -> None:
    whole = make_llava(tmp_path / "a", config={"mm_use_im_start_end": True})  # no rows for the tokens
    with pytest.raises(CheckpointError, match="442 tokens"):
        convert(whole, tmp_path / "out")
    vlora = make_vlora(tmp_path / "b", config={"mm_use_im_start_end": True})
    with pytest.raises(NotPossibleError, match="start and end"):
        convert(vlora, tmp_path / "out")
    adapter = LLAVA / "stage1_llava_pretrain"
    copied = tmp_path / "c"
    copied.mkdir()
    (copied / "mm_projector.bin").write_bytes((adapter / "mm_projector.bin").read_bytes())
    write_json(copied / "config.json", {**read_json(adapter / "config.json"), "mm_use_im_start_end": True})
    with pytest.raises(NotPossibleError, match="embeddings of its base"):
        convert(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_token_of_patches_alone(tmp_path: Path) -> None:
    """``<im_patch>`` has a row and stands in no prompt."""
    source = make_llava(tmp_path, config={"mm_use_im_patch_token": True, "vocab_size": 441})
    state = load_file(source / "model.safetensors")
    save_weights(source, state | {name: torch.cat([state[name], state[name][:1]]) for name in TABLES})
    write_json(source / "added_tokens.json", {"<im_patch>": 440})
    assert convert(source, tmp_path / "out")["verified"]["greedy_equal"] is True
    model, processor = mmtune.load(tmp_path / "out", device="cpu")
    assert processor.frame is None
    assert model.placeholder_ids["image"] == 441
