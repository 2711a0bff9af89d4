"""The built-in tiny model: an Idefics3 of one and a quarter million parameters that reads 96x96 pictures.

Small enough to be pretrained, fine-tuned, sampled and served on two CPU cores, and a true image-text-to-text model all
the same: transformers, TRL, PEFT and vLLM run it by their ordinary roads (Idefics3 needs no torchvision). This file builds
it with random weights; `pretrain.py` trains the checkpoints that vlrm ships.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ..data_synth.worlds import WORLDS, sample_scene
from ..data_synth.worlds.base import format_solution, right_solution

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PATCH, SIZE = 16, 96
IMAGE_TOKENS = (SIZE // PATCH) ** 2
SPECIAL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<image>", "<fake_token_around_image>", "<global-img>"]
# One piece of text becomes one token: a word with what stands before it, a digit, a sign.
PIECE = r"\n?[A-Za-z]+:?|[ \n]?[A-Za-z]+:?|[ ]?[0-9]|[ ]?[^\sA-Za-z0-9]+|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# What a critique says beyond the words of the worlds' own solutions.
CRITIQUE_WORDS = """Solution: Critique each step. Compare each step. Describe the picture.
Step 1 Intent: none | ok; ok no; no => Correct => Incorrect Verdict: Correct Incorrect Correction: Image: Logic: unreadable
Image: x
Logic: x
Intent: x
Verdict: x
Correction: x
Answer: x
Step 1
read row value add the rows times multiply find star choose start walk arrive back straight left right bar is lane"""


def corpus() -> list[str]:
    """Texts that hold every word of the worlds; the tokenizer's merges are learnt from them, the same each time."""
    rng, texts = random.Random(0), [CRITIQUE_WORDS]
    for world in WORLDS.values():
        for _ in range(400):
            scene = sample_scene(world, "train", rng)
            steps = right_solution(world, scene)
            intents = "\n".join(f"Intent: {truth.intent}" for truth in world.check(scene, steps))
            texts += [world.question(scene), format_solution(steps), world.describe(scene), intents]
            texts += [f"Correction: {step}" for step in steps]
            texts += [f" {claim.stated} | {claim.true} ok;" for truth in world.check(scene, steps) for claim in truth.claims]
    return texts


def build_tokenizer() -> Any:
    """A byte-level BPE in which every word of the worlds is one token and any other text is legal too."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1024, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(corpus(), trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
        },
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=2048,
    )


def build_processor() -> Any:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(
        do_resize=True,
        size={"longest_edge": SIZE},
        max_image_size={"longest_edge": SIZE},
        do_image_splitting=False,
        do_rescale=True,
        rescale_factor=1 / 64,
        do_normalize=True,
        image_mean=[238 / 64] * 3,
        image_std=[1.0] * 3,
    )
    return Idefics3Processor(images, build_tokenizer(), image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def build_tiny(
    path: str | Path, seed: int = 0, hidden: int = 128, layers: int = 4, vision_hidden: int = 96, vision_layers: int = 3
) -> Path:
    """Writes a tiny Idefics3 with random weights into the folder `path`: config, weights, tokenizer, processor."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    path = Path(path)
    processor = build_processor()
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Idefics3Config(
        image_token_id=ids["<image>"],
        pad_token_id=ids["<|pad|>"],
        tie_word_embeddings=True,
        scale_factor=1,
        vision_config={
            "hidden_size": vision_hidden,
            "intermediate_size": 4 * vision_hidden,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_hidden // 32,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 32,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|end|>"],
            "pad_token_id": ids["<|pad|>"],
        },
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|end|>"]
    model.generation_config.pad_token_id = ids["<|pad|>"]
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path
