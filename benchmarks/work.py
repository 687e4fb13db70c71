"""The work of both arms of a round: one model, one tokenizer, the same questions, one cheap reward.

The model is a Qwen2 decoder of 2 layers and 0.56 M parameters. The tokenizer splits at spaces, so that prompts have
about as many tokens as with a real model's, and sampled text re-tokenises to the same ids (GenRL trains on
re-tokenised text; here it loses nothing by that). The reward is a hash of the text: it costs nothing, and no group has
equal rewards, so that neither arm can skip one. Reading the work needs only the standard library, because both
environments read it; making it needs transformers and reasoning-gym.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 1024
COMMON_WORDS = 250
PIECE = r" ?[^\s]+|\s"
CHAT_TEMPLATE = "{% for message in messages %} {{ message['role'] }}: {{ message['content'] }}\n{% endfor %} answer:"


@dataclass(frozen=True)
class Question:
    """A question of both arms."""

    question: str
    answer: str


@dataclass(frozen=True)
class Game:
    """The size of a round.

    Args:
        name: `swarm` or `multistage`.
        peers: number of peers.
        stages: exchanges per round.
        questions: per round, each answered in every stage.
        generations: completions per question.
        tokens: per completion, exactly.
    """

    name: str
    peers: int
    stages: int
    questions: int
    generations: int
    tokens: int

    @property
    def tokens_a_round(self) -> int:
        """Return the tokens that one peer samples and trains on."""
        return self.stages * self.questions * self.generations * self.tokens


SWARM = Game("swarm", peers=4, stages=1, questions=8, generations=8, tokens=32)
MULTISTAGE = Game("multistage", peers=1, stages=3, questions=4, generations=4, tokens=64)
LEARNING_RATE = 1e-6


def reward(text: str) -> float:
    """Return a number in [0, 1) by hash."""
    return zlib.crc32(text.encode()) / 2**32


@dataclass(frozen=True)
class Work:
    """The input of an arm: the game, the questions of each round, and the model's folder."""

    game: Game
    rounds: tuple[tuple[Question, ...], ...]
    model: Path

    def questions(self, round: int) -> tuple[Question, ...]:
        return self.rounds[round % len(self.rounds)]

    @classmethod
    def read(cls, folder: Path) -> Work:
        written: dict[str, Any] = json.loads((folder / "work.json").read_text(encoding="utf-8"))
        rounds = tuple(tuple(Question(**question) for question in batch) for batch in written["rounds"])
        return cls(Game(**written["game"]), rounds, folder / "model")

    @classmethod
    def make(cls, folder: Path, game: Game, *, rounds: int = 16, seed: int = 7) -> Work:
        """Write the work: questions from reasoning-gym, new weights, and a tokenizer with the questions' vocabulary."""
        import reasoning_gym

        folder.mkdir(parents=True, exist_ok=True)
        dataset = reasoning_gym.create_dataset("chain_sum", size=rounds * game.questions, seed=seed)
        made = [Question(entry["question"], entry["answer"]) for entry in dataset]
        batches = tuple(tuple(made[start : start + game.questions]) for start in range(0, len(made), game.questions))
        described: Mapping[str, Any] = {
            "game": asdict(game),
            "rounds": [[asdict(question) for question in batch] for batch in batches],
        }
        (folder / "work.json").write_text(json.dumps(described), encoding="utf-8")
        _make_model(folder / "model", (question.question for question in made))
        return cls(game, batches, folder / "model")


def _make_model(folder: Path, texts: Iterable[str]) -> None:
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    counted = Counter(piece for text in texts for piece in re.findall(PIECE, text) if piece.startswith(" "))
    words = ["<pad>", "<eos>", "<unk>", *(word for word, _ in counted.most_common(COMMON_WORDS))]
    # Short words that no question has fill the vocabulary: a payload of theirs stays below the size at which GenRL's
    # exchange breaks.
    words += [f" {chr(ord('a') + number // 36)}{number % 36:x}" for number in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=8192,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
