"""Train the demo LLM through the curriculum, or continue from the last checkpoint.

    python export/demo_llm/train.py                    every stage, then write model/
    python export/demo_llm/train.py --stage full --minutes 30 --rate 1e-3

Loss: the answer's tokens, a little of the prompt's, and in training alone a linear head that must
say, from a middle layer, which sentence ends end the answer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from corpus import WORK, read_jsonl
from examples import CHAT_TEMPLATE, CONTEXT, CURRICULUM, END, PAD, Example, Sampler, Stage, encode
from questions import Asker
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from wordvectors import Embedder

MODEL = Path(__file__).parent / "model"
ROPE_THETA = 500_000.0
"""With the usual 10,000 only 8 of a head's 32 dimensions stay comparable over a full prompt."""
MIDDLE_LAYER = 3
"""The head that finds sentences reads the output of this layer; the layers above copy."""
PROMPT_SHARE, PROMPT_WEIGHT = 0.03, 0.1
FINDING_WEIGHT, CHOOSING_WEIGHT = 1.0, 0.5
BATCH_TOKENS = 6144
DRAWN_BATCHES = 6
WARMUP_STEPS = 60
COOLDOWN_SHARE = 0.3
SAVE_SECONDS = 120
EARLIER_SHARE = 0.5


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=MODEL, help="folder of the written model")
    parser.add_argument(
        "--minutes", type=float, default=60, help="of training; 0 writes the last checkpoint"
    )
    parser.add_argument("--stage", choices=[stage.name for stage in CURRICULUM],
                        default=CURRICULUM[0].name, help="stage to begin with")  # fmt: skip
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart", action="store_true", help="ignore the last checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(arguments.work, arguments.seed, arguments.rate, arguments.restart)
    names = [stage.name for stage in CURRICULUM]
    if arguments.minutes:
        trainer.run(CURRICULUM[names.index(arguments.stage) :], 60 * arguments.minutes)
    trainer.write(arguments.out)


def llama(vocabulary: int, pad: int, end: int) -> LlamaForCausalLM:
    """Return the model, untrained."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


@torch.no_grad()
def start_from_words(model: LlamaForCausalLM, tokens: list[str]) -> None:
    """Give every token the vector of the word it spells, so that related words start out close.

    The embedder's static and contextual vectors, joined and reduced to the model's width.
    """
    embedder = Embedder()
    spelled = [token.strip().lower() or "." for token in tokens]
    joined = torch.cat([embedder.static(spelled), embedder.encode(spelled)], dim=-1)
    centred = joined - joined.mean(0)
    _, _, directions = torch.pca_lowrank(centred, q=model.config.hidden_size, niter=4)
    reduced = centred @ directions
    model.get_input_embeddings().weight.copy_(functional.normalize(reduced, dim=-1))
    model.get_input_embeddings().weight.add_(torch.randn_like(reduced) * 0.02)


@torch.no_grad()
def start_by_looking_alike(model: LlamaForCausalLM) -> None:
    """Let every head start by attending to tokens like its own, and pass on what it finds, after
    Trockman and Kolter (2023), *Mimetic initialization of self-attention layers*."""
    width = model.config.hidden_size
    for layer in model.model.layers:
        attention = layer.self_attn
        heads = model.config.num_attention_heads
        queries, keys = (m.weight.chunk(heads) for m in (attention.q_proj, attention.k_proj))
        for query, key in zip(queries, keys, strict=True):
            shared = torch.randn_like(query) / width**0.5
            query.copy_(0.7 * shared + 0.7 * torch.randn_like(query) / width**0.5)
            key.copy_(0.7 * shared + 0.7 * torch.randn_like(key) / width**0.5)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for matrices (Jordan et al. 2024), in the matrices' own
    precision, scaled to the size of Adam's updates (Liu et al. 2025, *Muon is scalable*)."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, decay: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every matrix."""
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                buffer = state.setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonal(param.grad.lerp(buffer, group["momentum"]))
                param.mul_(1 - group["lr"] * group["decay"])
                param.add_(update, alpha=-group["lr"] * 0.2 * max(param.shape) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest orthogonal matrix, by Newton-Schulz iteration."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Trainer:
    """Model, optimisers and place in the data; saved after every stage and every few minutes."""

    def __init__(self, work: Path, seed: int, rate: float, restart: bool) -> None:
        torch.manual_seed(seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.work, self.seed, self.rate = work, seed, rate
        self.tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        self.pad = self.tokenizer.convert_tokens_to_ids(PAD)
        end = self.tokenizer.convert_tokens_to_ids(END)
        self.model = llama(len(self.tokenizer), self.pad, end)
        self.finder = nn.Linear(self.model.config.hidden_size, 2)
        self.step, self.seen, self.seconds = 0, 0, 0.0
        self.checkpoint = work / "checkpoint.pt"
        resumed = self.checkpoint.exists() and not restart
        if not resumed:
            ids = range(len(self.tokenizer))
            start_from_words(self.model, [self.tokenizer.decode([n]) for n in ids])
            start_by_looking_alike(self.model)
        self.model.to(self.device)
        self.finder.to(self.device)
        self.optimizers = self._optimizers()
        if resumed:
            self._resume()
        self._drawn: list[list[Example]] = []

    @cached_property
    def sampler(self) -> Sampler:
        """The prepared data."""
        return sampler(self.work)

    def run(self, stages: Sequence[Stage], seconds: float) -> None:
        """Train through ``stages`` for a time. A stage ends once the answer's first token is
        chosen well enough; the learning rate falls to 0 over the last part of the time."""
        begun = saved = time.monotonic()
        remaining = list(stages)
        stage, chosen, first = remaining.pop(0), 0.0, self.step
        while (spent := time.monotonic() - begun) < seconds:
            warm = min(1.0, (self.step - first + 1) / WARMUP_STEPS)
            cool = min(1.0, (1 - spent / seconds) / COOLDOWN_SHARE)
            self._set_rate(self.rate * min(warm, cool))
            started = time.monotonic()
            figures = self._train_step(stage)
            took = time.monotonic() - started
            self.seconds += took
            self._log(stage, spent / seconds, figures, took)
            chosen += 0.05 * (figures["chosen"] - chosen)
            if chosen > stage.enough and remaining:
                stage, chosen = remaining.pop(0), 0.0
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        self._save()
        print()

    def write(self, folder: Path) -> None:
        """Write the model in Hugging Face format, weights in bf16, by swapping folders."""
        fresh = folder.with_name(folder.name + ".new")
        model = llama(len(self.tokenizer), self.pad, self.model.config.eos_token_id)
        model.load_state_dict(self.model.state_dict())
        model.config.tritonrag_grounding = "quote"
        model.generation_config.do_sample = False
        model.to(torch.bfloat16).save_pretrained(fresh)
        for file in (self.work / "tokenizer").iterdir():
            shutil.copyfile(file, fresh / file.name)
        (fresh / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for file in fresh.iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)
        fresh.rmdir()
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters -> {folder}")

    def _train_step(self, stage: Stage) -> dict[str, float]:
        batch = self._batch(stage)
        with torch.autocast(self.device, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            loss, figures = self._loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seen += sum(len(example.ids) for example in batch)
        return figures

    def _batch(self, stage: Stage) -> list[Example]:
        """Return the next batch: several are drawn at once, each of examples of like length."""
        if not self._drawn:
            self._drawn = self._draw(stage)
        return self._drawn.pop()

    def _draw(self, stage: Stage) -> list[list[Example]]:
        random = Random(f"{self.seed}-{self.step}")
        earlier = CURRICULUM[max(0, CURRICULUM.index(stage) - 1)]
        examples: list[Example] = []
        while sum(len(example.ids) for example in examples) < DRAWN_BATCHES * BATCH_TOKENS:
            of = earlier if random.random() < EARLIER_SHARE else stage
            example = encode(self.sampler.draw(of, random), self.tokenizer.backend_tokenizer)
            if len(example.ids) <= of.length:
                examples.append(example)
        examples.sort(key=lambda example: len(example.ids))
        batches: list[list[Example]] = [[]]
        for example in examples:
            if (len(batches[-1]) + 1) * len(example.ids) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(example)
        random.shuffle(batches)
        return batches

    def _loss(self, batch: list[Example]) -> tuple[Tensor, dict[str, float]]:
        longest = max(len(example.ids) for example in batch)
        ids = torch.full((len(batch), longest), self.pad)
        weights = torch.zeros(len(batch), longest)
        for row, example in enumerate(batch):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            weights[row, example.prompt_length : len(example.ids)] = torch.tensor(example.weights)
            noticed = torch.rand(example.prompt_length) < PROMPT_SHARE
            weights[row, : example.prompt_length] = PROMPT_WEIGHT * noticed
        ids, weights = ids.to(self.device), weights[:, 1:].to(self.device)
        output = self.model.model(ids, use_cache=False, output_hidden_states=True)
        where = weights > 0
        logits = self.model.lm_head(output.last_hidden_state[:, :-1][where]).float()
        losses = functional.cross_entropy(logits, ids[:, 1:][where], reduction="none")
        answer = (losses * weights[where]).sum() / weights.sum()
        finding, found = self._finding(batch, output.hidden_states[MIDDLE_LAYER])
        right = (logits.argmax(-1) == ids[:, 1:][where])[weights[where] == 1.0].float().mean()
        choosing, chosen = self._choosing(batch, output.last_hidden_state)
        figures = {"loss": answer.item(), "accuracy": right.item(),
                   "found": found, "chosen": chosen}  # fmt: skip
        return answer + FINDING_WEIGHT * finding + CHOOSING_WEIGHT * choosing, figures

    def _choosing(self, batch: list[Example], hidden: Tensor) -> tuple[Tensor, float]:
        """Return the loss and accuracy of the first token among those that the grammar allows."""
        last = [example.prompt_length - 1 for example in batch]
        logits = self.model.lm_head(hidden[range(len(batch)), last]).float()
        losses, right = [], 0
        for row, example in enumerate(batch):
            wanted = example.starts.index(example.ids[example.prompt_length])
            allowed = logits[row, example.starts]
            losses.append(allowed.logsumexp(0) - allowed[wanted])
            right += int(allowed.argmax()) == wanted
        return torch.stack(losses).mean(), right / len(batch)

    def _finding(self, batch: list[Example], hidden: Tensor) -> tuple[Tensor, float]:
        """Return the loss and accuracy of picking a target's end, or none, from a middle layer."""
        losses, right = [], 0
        for row, example in enumerate(batch):
            asked = self.finder(hidden[row, [*example.ends, example.prompt_length - 1]]).float()
            scores = torch.cat([asked[:-1, 0], asked[-1:, 1]])
            wanted = torch.tensor([*example.answers, not any(example.answers)], device=self.device)
            losses.append(scores.logsumexp(0) - scores[wanted].logsumexp(0))
            right += int(wanted[scores.argmax()])
        return torch.stack(losses).mean(), right / len(batch)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in self.model.model.layers.named_parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        return [
            Muon(matrices, lr=self.rate),
            torch.optim.AdamW(
                [*others, *self.finder.parameters()], lr=self.rate, betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        ]  # fmt: skip

    def _set_rate(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _log(self, stage: Stage, share: float, figures: dict[str, float], took: float) -> None:
        entry = {"step": self.step, "stage": stage.name, "tokens": self.seen,
                 "seconds": round(self.seconds, 1), **figures}  # fmt: skip
        with (self.work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        bar = "█" * int(20 * share)
        shown = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"\r{stage.name:7} {bar:20} {self.seen:,} tokens {took:.1f} s {shown}", end="")

    def _save(self) -> None:
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(
            {
                "model": self.model.state_dict(),
                "finder": self.finder.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "place": (self.step, self.seen, self.seconds),
            },
            fresh,
        )
        fresh.replace(self.checkpoint)

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.finder.load_state_dict(saved["finder"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seen, self.seconds = saved["place"]


def sampler(work: Path) -> Sampler:
    """Return the sampler of prepared data."""
    rarity = json.loads((work / "rarity.json").read_text(encoding="utf-8"))
    neighbours = json.loads((work / "neighbours.json").read_text(encoding="utf-8"))
    asker = Asker(rarity, neighbours)
    return Sampler(read_jsonl(work / "pool.jsonl"), read_jsonl(work / "rows.jsonl"), asker)


def fast_bfloat16(device: str) -> bool:
    """Return whether bf16 helps: on a GPU, or on a CPU with instructions for it. Elsewhere it is
    emulated, thirty times slower than fp32."""
    if device == "cuda":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported())


if __name__ == "__main__":
    main()
