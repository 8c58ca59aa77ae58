"""Train the demo LLM through the curriculum, or continue from the last checkpoint.

    python export/demo_llm/train.py                    every stage, then write model/
    python export/demo_llm/train.py --stage full --minutes 30 --rate 1e-3

Loss: each choice of a sentence, of the refusal or of the end, among what the grammar allows there;
where the last layer looks then; a little of other tokens; and in training alone two heads on a
middle layer, one that must give the embedder's vector of each sentence and question, one that must
match questions to the sentences that answer them.
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
from examples import (
    CHAT_TEMPLATE,
    CONTEXT,
    CURRICULUM,
    END,
    PAD,
    POINTERS,
    Example,
    Sampler,
    Stage,
    encode,
)
from questions import Asker
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from wordvectors import Embedder, fast_bfloat16

from tritonrag.quoting import pointer

MODEL = Path(__file__).parent / "model"
ROPE_THETA = 500_000.0
"""With the usual 10,000 a quarter of a head's dimensions stay comparable over a full prompt."""
LAYERS, HEADS = 5, 4
MIDDLE_LAYER = 3
"""Whose output the heads read; the layers above are left to turn what is found into a choice."""
MATCHING_WIDTH = 128
PROMPT_SHARE = 0.02
WRITING_WEIGHT, FINDING_WEIGHT, MEANING_WEIGHT, LOOKING_WEIGHT = 0.1, 0.5, 1.0, 0.3
LOOKING_HEADS = 2
LATER_WEIGHT = 2.0
WRITTEN_SHARE = 0.5
SHIFTED_SHARE = 0.5
LIKENESS, COPYING = 1.2, 0.6
BATCH_TOKENS = 4096
DRAWN_BATCHES = 10
WARMUP_STEPS = 60
COOLDOWN_SHARE = 0.5
SAVE_SECONDS = 120
EARLIER_SHARE = 0.3


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
            intermediate_size=704,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


@torch.no_grad()
def start_from_words(model: LlamaForCausalLM, tokens: list[str], pointers: range) -> None:
    """Give every token the vector of the word it spells, so that related words start out close.

    The embedder's static and contextual vectors, joined and reduced to the model's width. A
    pointer spells nothing: it gets a direction of its own, and one that all pointers share.
    """
    embedder = Embedder()
    spelled = [token.strip().lower() or "." for token in tokens]
    joined = torch.cat([embedder.static(spelled), embedder.encode(spelled)], dim=-1)
    centred = joined - joined.mean(0)
    _, _, directions = torch.pca_lowrank(centred, q=model.config.hidden_size, niter=4)
    reduced = functional.normalize(centred @ directions, dim=-1)
    own = functional.normalize(torch.randn(len(pointers), reduced.shape[1]), dim=-1)
    shared = functional.normalize(torch.randn(reduced.shape[1]), dim=-1)
    reduced[list(pointers)] = functional.normalize(own + 0.5 * shared, dim=-1)
    model.get_input_embeddings().weight.copy_(reduced + torch.randn_like(reduced) * 0.01)


@torch.no_grad()
def start_by_looking_alike(model: LlamaForCausalLM) -> None:
    """Let every head start by attending to tokens like its own and copying what it finds, after
    Trockman and Kolter (2023), *Mimetic initialization of self-attention layers*.

    Likeness is looked for in the dimensions that the rotary embedding turns slowest, so that it
    does not depend on the distance.
    """
    width, size = model.config.hidden_size, model.config.head_dim
    slow = torch.arange(size) % (size // 2) >= size // 4
    for layer in model.model.layers:
        attention = layer.self_attn
        for query, key in zip(
            attention.q_proj.weight.split(size), attention.k_proj.weight.split(size), strict=True
        ):
            shared = torch.randn_like(query) / width**0.5
            for matrix in (query, key):
                own = torch.randn_like(query) / width**0.5
                matrix.copy_(torch.where(slow[:, None], LIKENESS * shared + 0.3 * own, 0.5 * own))
        copied = nn.init.orthogonal_(torch.empty(width, width))
        attention.v_proj.weight.copy_(COPYING * copied)
        attention.o_proj.weight.copy_(COPYING * copied.T)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    scaling: float, hidden: Tensor, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention by plain products, on a CPU half the time of the fused one. ``hidden`` [batch, 1,
    length, length] is added to its scores: -inf where a token may not look."""
    looked = (scaling * (query @ key.mT) + hidden.to(query.dtype)).softmax(-1).to(value.dtype)
    if module.layer_idx == LAYERS - 1:
        module.looked = looked
    return (looked @ value).transpose(1, 2).contiguous(), None


def hidden_from(parts: Tensor) -> Tensor:
    """Return what is added to scores of attention for the parts [batch, length] of examples: a
    question sees part 0, the passages, and itself."""
    same = parts[:, :, None] == parts[:, None, :]
    seen = (same | (parts[:, None, :] == 0)).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]


AttentionInterface.register("products", attention)


def weighed(losses: Tensor, batch: Sequence[Example]) -> Tensor:
    """Return the mean of the losses of all choices; the later ones of answers, which are few, count
    more."""
    first = torch.tensor([choice.first for example in batch for choice in example.choices])
    weights = torch.where(first, 1.0, LATER_WEIGHT).to(losses.device)
    return (losses * weights).sum() / weights.sum()


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for matrices (Jordan et al. 2024), in the matrices' own
    precision, scaled to the size of Adam's updates (Liu et al. 2025, *Muon is scalable*)."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, decay: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every matrix, those of one shape together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Any]] = {}
            for param in group["params"]:
                shapes.setdefault(param.shape, []).append(param)
            for shape, params in shapes.items():
                wanted = []
                for param in params:
                    buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                    buffer.lerp_(param.grad, 1 - group["momentum"])
                    wanted.append(param.grad.lerp(buffer, group["momentum"]))
                rate = group["lr"]
                for param, update in zip(params, orthogonal(torch.stack(wanted)), strict=True):
                    param.mul_(1 - rate * group["decay"])
                    param.add_(update, alpha=-rate * 0.2 * max(shape) ** 0.5)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest orthogonal matrices, by Newton-Schulz iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if fast_bfloat16() else x
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Trainer:
    """Model, optimisers and place in the data; saved after every stage and every few minutes."""

    def __init__(self, work: Path, seed: int, rate: float, restart: bool) -> None:
        torch.manual_seed(seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.work, self.seed, self.rate = work, seed, rate
        self.tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
        self.pad = self.tokenizer.convert_tokens_to_ids(PAD)
        self.end = self.tokenizer.convert_tokens_to_ids(END)
        self.refusal_id = self.tokenizer.convert_tokens_to_ids(pointer(0))
        self.pointer_ids = range(self.end, self.refusal_id + POINTERS)
        self.model = llama(len(self.tokenizer), self.pad, self.end)
        self.model.set_attn_implementation("products")
        width = self.model.config.hidden_size
        self.heads = nn.ModuleDict({
            "question": nn.Linear(width, MATCHING_WIDTH),
            "sentence": nn.Linear(width, MATCHING_WIDTH),
            "none": nn.Linear(width, 1),
            "meaning": nn.Linear(width, 384),
        })  # fmt: skip
        self.embedder = Embedder()
        self.step, self.seen, self.seconds = 0, 0, 0.0
        self.checkpoint = work / "checkpoint.pt"
        resumed = self.checkpoint.exists() and not restart
        if not resumed:
            ids = range(len(self.tokenizer))
            words = [self.tokenizer.decode([n]) for n in ids]
            start_from_words(self.model, words, self.pointer_ids)
            start_by_looking_alike(self.model)
        self.model.to(self.device)
        self.heads.to(self.device)
        self.optimizers = self._optimizers()
        if resumed:
            self._resume()
        self._drawn: list[list[Example]] = []

    @cached_property
    def sampler(self) -> Sampler:
        """The prepared data."""
        return sampler(self.work)

    def run(self, stages: Sequence[Stage], seconds: float) -> None:
        """Train through ``stages`` for a time. A stage ends once the sentence is chosen well enough
        or its share of the time is over; the learning rate falls to 0 over the last part."""
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
            if remaining and (chosen > stage.enough or spent > stage.until * seconds):
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
        model.config.tritonrag_pointers = POINTERS
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
        with torch.autocast(
            self.device, torch.bfloat16, enabled=self.device == "cuda" or fast_bfloat16()
        ):
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
            shift = random.randrange(POINTERS) if random.random() < SHIFTED_SHARE else 0
            task = self.sampler.draw(of, random)
            example = encode(task, self.tokenizer.backend_tokenizer, shift)
            if example.positions[-1] <= of.length:
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
        positions = torch.zeros(len(batch), longest, dtype=torch.long)
        parts = torch.full((len(batch), longest), -1)
        for row, example in enumerate(batch):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            positions[row, : len(example.ids)] = torch.tensor(example.positions)
            parts[row, : len(example.ids)] = torch.tensor(example.parts)
        ids = ids.to(self.device)
        output = self.model.model(
            ids, position_ids=positions.to(self.device), use_cache=False, output_hidden_states=True,
            hidden=hidden_from(parts).to(self.device),
        )  # fmt: skip
        middle = output.hidden_states[MIDDLE_LAYER]
        middle = functional.rms_norm(middle, middle.shape[-1:])
        choosing, chosen = self._choosing(batch, output.last_hidden_state)
        writing = self._writing(parts, ids, output.last_hidden_state)
        looking = self._looking(batch)
        finding, found = self._finding(batch, middle)
        meaning = self._meaning(batch, middle)
        figures = {"loss": choosing.item(), "chosen": chosen, "found": found,
                   "looking": looking.item(), "meaning": meaning.item(),
                   "writing": writing.item()}  # fmt: skip
        others = LOOKING_WEIGHT * looking + WRITING_WEIGHT * writing
        others += FINDING_WEIGHT * finding + MEANING_WEIGHT * meaning
        return choosing + others, figures

    def _choosing(self, batch: list[Example], hidden: Tensor) -> tuple[Tensor, float]:
        """Return the loss of every choice among what the grammar allows there, and the share of
        first choices that are right."""
        special = self.pointer_ids
        rows, places, wanted, firsts = [], [], [], []
        allowed = torch.zeros(sum(len(e.choices) for e in batch), len(special), dtype=torch.bool)
        for row, example in enumerate(batch):
            present = [example.ids[place] - special.start for place in example.pointers]
            for choice in example.choices:
                other = self.refusal_id if choice.first else self.end
                allowed[len(rows), [*present, other - special.start]] = True
                rows.append(row)
                places.append(choice.place)
                wanted.append(choice.wanted - special.start)
                firsts.append(choice.first)
        table = self.model.lm_head.weight[special.start : special.stop]
        logits = (hidden[rows, places] @ table.T).float()
        logits = logits.masked_fill(~allowed.to(self.device), -torch.inf)
        targets = torch.tensor(wanted, device=self.device)
        right = (logits.argmax(-1) == targets).cpu()[torch.tensor(firsts)]
        losses = functional.cross_entropy(logits, targets, reduction="none")
        return weighed(losses, batch), right.float().mean().item()

    def _looking(self, batch: list[Example]) -> Tensor:
        """Return the loss of looking at a pointer of the sentence that is to be chosen, behind it
        or in the question's list, or at the start where none is: of some heads of the last layer,
        which copy it."""
        rows, places, read, listed = [], [], [], []
        for row, example in enumerate(batch):
            where = {example.ids[place]: place for place in example.pointers}
            for choice in example.choices:
                rows.append(row)
                places.append(choice.place)
                read.append(where.get(choice.wanted, 0))
                begin = example.parts.index(example.parts[choice.place])
                own = example.ids[begin : choice.place]
                named = begin + own.index(choice.wanted) if choice.wanted in own else read[-1]
                listed.append(named)
        looked = self.model.model.layers[-1].self_attn.looked
        heads = torch.arange(LOOKING_HEADS)[:, None]
        both = looked[rows, heads, places, read] + looked[rows, heads, places, listed]
        return weighed(-(both.float() + 1e-6).log().mean(0), batch)

    def _writing(self, parts: Tensor, ids: Tensor, hidden: Tensor) -> Tensor:
        """Return the loss of the words of written answers, and of a few of the passages'."""
        following = (parts[:, 1:] == parts[:, :-1]) & (parts[:, :-1] >= 0)
        kept = following & ((parts[:, :-1] > 0) | (torch.rand(following.shape) < PROMPT_SHARE))
        kept &= torch.rand(kept.shape) < WRITTEN_SHARE
        rows, places = kept.nonzero(as_tuple=True)
        logits = self.model.lm_head(hidden[rows, places]).float()
        return functional.cross_entropy(logits, ids[rows, places + 1])

    def _finding(self, batch: list[Example], middle: Tensor) -> tuple[Tensor, float]:
        """Return the loss and accuracy of matching each question to a target, or to none."""
        losses, right, count = [], 0, 0
        for row, example in enumerate(batch):
            asked = middle[row, [choice.place for choice in example.choices if choice.first]]
            read = self.heads["sentence"](middle[row, example.pointers])
            matched = self.heads["question"](asked) @ read.T / MATCHING_WIDTH**0.5
            scores = torch.cat([matched, self.heads["none"](asked)], -1).float()
            wanted = torch.tensor([[*found, not any(found)] for found in example.answers])
            wanted = wanted.to(self.device)
            best = scores.masked_fill(~wanted, -torch.inf).logsumexp(-1)
            losses.append(scores.logsumexp(-1) - best)
            right += int(wanted.gather(1, scores.argmax(-1, keepdim=True)).sum())
            count += len(asked)
        return torch.cat(losses).mean(), right / count

    def _meaning(self, batch: list[Example], middle: Tensor) -> Tensor:
        """Return how far sentences and questions are from the embedder's vectors, as 1 - cosine."""
        rows, places, texts = [], [], []
        for row, example in enumerate(batch):
            firsts = [choice.place for choice in example.choices if choice.first]
            asked = zip(firsts, example.task.questions, strict=True)
            written = [(place, question.text) for place, question in asked if question.written]
            rows += [row] * (len(example.pointers) + len(written))
            places += [*example.pointers, *(place for place, _ in written)]
            texts += [sentence for sentence, _ in example.task.sentences()[: len(example.pointers)]]
            texts += [text for _, text in written]
        found = functional.normalize(self.heads["meaning"](middle[rows, places]).float(), dim=-1)
        wanted = self.embedder.cached(texts).to(self.device)
        return 1 - (found * wanted).sum(-1).mean()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in self.model.model.layers.named_parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        return [
            Muon(matrices, lr=self.rate),
            torch.optim.AdamW(
                [*others, *self.heads.parameters()], lr=self.rate, betas=(0.9, 0.98),
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
                "heads": self.heads.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "place": (self.step, self.seen, self.seconds),
            },
            fresh,
        )
        fresh.replace(self.checkpoint)

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.heads.load_state_dict(saved["heads"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seen, self.seconds = saved["place"]


def sampler(work: Path) -> Sampler:
    """Return the sampler of prepared data."""
    rarity = json.loads((work / "rarity.json").read_text(encoding="utf-8"))
    neighbours = json.loads((work / "neighbours.json").read_text(encoding="utf-8"))
    asker = Asker(rarity, neighbours)
    return Sampler(read_jsonl(work / "pool.jsonl"), read_jsonl(work / "rows.jsonl"), asker)


if __name__ == "__main__":
    main()
