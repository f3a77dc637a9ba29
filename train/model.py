"""What is trained (the bridge) and what it is trained through (the frozen language model)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2QFormerConfig, Blip2QFormerModel, DynamicCache

QUERIES = 32
BRIDGE_WIDTH = 384
LAYERS, CROSS_ATTENTION_FREQUENCY = 2, 1
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"

BEFORE_PICTURE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
)
AFTER_QUESTION = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
IGNORED = -100


class Standardize(nn.Module):
    """Scale and shift of the vision tower's post_layernorm: features to mean 0 and deviation 1 over the training pictures."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=False)

    def fit(self, features: Tensor) -> None:
        """Measure on features [pictures, tokens, width] as the bare layer norm gives them."""
        rows = features.flatten(0, 1)
        self.weight.copy_(1 / rows.std(0))
        self.bias.copy_(-rows.mean(0) / rows.std(0))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight + self.bias


class Bridge(nn.Module):
    """Query tokens, Q-Former and projection, under the names of Blip2ForConditionalGeneration.

    The affine part of `vision_model.post_layernorm` belongs to it too; it is measured, not trained."""

    def __init__(self, language_width: int, dropout: float = 0.1):
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=BRIDGE_WIDTH,
            intermediate_size=4 * BRIDGE_WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=6,
            cross_attention_frequency=CROSS_ATTENTION_FREQUENCY,
            encoder_hidden_size=384,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=0.0,
        )
        self.vision_model = nn.Module()
        self.vision_model.post_layernorm = Standardize(config.encoder_hidden_size)
        self.query_tokens = nn.Parameter(torch.randn(1, QUERIES, BRIDGE_WIDTH))
        self.qformer = Blip2QFormerModel(config)
        self.qformer.set_attn_implementation("eager")
        self.language_projection = nn.Linear(BRIDGE_WIDTH, language_width)
        # BERT's initial 0.02 is for pretraining at length: at this width it all but hides the
        # picture behind the query tokens for the first thousand steps.
        for layer in self.qformer.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def match_scale(self, embeddings: Tensor) -> None:
        """Start the projection so that soft rows spread like the rows of `embeddings` [vocabulary, width].

        The Q-Former ends in a LayerNorm, so its rows have norm sqrt(BRIDGE_WIDTH)."""
        nn.init.normal_(self.language_projection.weight, std=embeddings.std().item() / BRIDGE_WIDTH**0.5)
        nn.init.zeros_(self.language_projection.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Vision features [batch, tokens, 384], normalized only, to soft prompt rows [batch, QUERIES, language width]."""
        features = self.vision_model.post_layernorm(features)
        queries = self.query_tokens.expand(len(features), -1, -1)
        hidden = self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return self.language_projection(hidden)

    def save(self, path: Path) -> None:
        """Write float16 safetensors, as demo/make_checkpoint.py reads them."""
        tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata={"format": "pt"})

    def load(self, path: Path) -> None:
        self.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})


@dataclass
class Packed:
    """Questions and answers about a batch of pictures, several to a row, behind the soft prompt.

    `tokens` [batch, length], `positions` [batch, QUERIES + length], `segments` [batch, length]
    (the question's number, -1 for padding) and `targets` [batch, length] (the next token where
    that belongs to an answer, IGNORED elsewhere).
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor


class LanguageModel:
    """SmolLM2 with frozen weights as llama.cpp serves them, and the fixed text before the picture as a KV cache."""

    def __init__(self, gguf: Path, device: torch.device, dtype: torch.dtype):
        self.tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # On a CPU torch's fused attention takes longer than plain matrix products at these lengths.
        attention = "eager" if device.type == "cpu" else "sdpa"
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation=attention
        )
        self.model = model.eval().requires_grad_(False).to(device, dtype)
        self.device, self.dtype = device, dtype
        prefix = torch.tensor([self.encode(BEFORE_PICTURE)], device=device)
        with torch.no_grad():
            cache = self.model.model(prefix, use_cache=True).past_key_values
        self.prefix_length = prefix.shape[1]
        self.prefix = [(layer.keys, layer.values) for layer in cache.layers]

    @property
    def embeddings(self) -> Tensor:
        """Token embeddings [vocabulary, width]."""
        return self.model.get_input_embeddings().weight

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are taken as such and none are added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def pack(self, questions: list[list[tuple[str, str]]]) -> Packed:
        """Lay out each picture's (question, answer) pairs one after the other."""
        rows = [[self._segment(question, answer) for question, answer in pairs] for pairs in questions]
        length = max(sum(len(tokens) for tokens, _ in row) for row in rows)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        segments = torch.full_like(tokens, -1)
        targets = torch.full_like(tokens, IGNORED)
        first = self.prefix_length + QUERIES
        positions = torch.zeros(len(rows), QUERIES + length, dtype=torch.long)
        positions[:, :QUERIES] = torch.arange(self.prefix_length, first)
        for n, row in enumerate(rows):
            start = 0
            for number, (ids, answer_start) in enumerate(row):
                end = start + len(ids)
                tokens[n, start:end] = torch.tensor(ids)
                segments[n, start:end] = number
                positions[n, QUERIES + start : QUERIES + end] = torch.arange(first, first + len(ids))
                targets[n, start + answer_start - 1 : end - 1] = torch.tensor(ids[answer_start:])
                start = end
        return Packed(*(t.to(self.device) for t in (tokens, positions, segments, targets)))

    def _segment(self, question: str, answer: str) -> tuple[list[int], int]:
        """Ids of question and answer, and where the answer begins."""
        asked = self.encode(question + AFTER_QUESTION)
        return asked + self.encode(answer + END), len(asked)

    def _mask(self, segments: Tensor) -> Tensor:
        """[batch, 1, QUERIES + length, prefix + QUERIES + length], 0 where attention may go.

        Every row sees the prefix and the soft rows up to itself; a question's row sees that
        question's earlier rows and no other question."""
        batch, length = segments.shape
        rows = QUERIES + length
        tag = torch.cat([segments.new_full((batch, QUERIES), -2), segments], 1)
        same = tag[:, :, None] == tag[:, None, :]
        soft = (tag == -2)[:, None, :].expand(-1, rows, -1)
        causal = torch.ones(rows, rows, dtype=torch.bool, device=segments.device).tril()
        own = (same | soft) & causal
        seen = torch.cat([own.new_ones(batch, rows, self.prefix_length), own], 2)
        return torch.zeros(seen.shape, dtype=self.dtype, device=segments.device).masked_fill_(~seen, torch.finfo(self.dtype).min)[:, None]

    def _cache(self, batch: int) -> DynamicCache:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.prefix):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
        return cache

    def loss(self, soft: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the answers' tokens, and whether each was the likeliest one.

        `soft` [batch, QUERIES, width]; the second result is [answer tokens] of bool, in the order
        of `packed.targets`. A greedy answer is the wanted one where all its tokens are likeliest."""
        embedded = torch.cat([soft.to(self.dtype), F.embedding(packed.tokens, self.embeddings)], 1)
        hidden = self.model.model(
            inputs_embeds=embedded,
            attention_mask=self._mask(packed.segments),
            position_ids=packed.positions,
            past_key_values=self._cache(len(soft)),
            use_cache=True,
        ).last_hidden_state[:, QUERIES:]
        asked = packed.targets != IGNORED
        logits = self.model.lm_head(hidden[asked]).float()
        wanted = packed.targets[asked]
        return F.cross_entropy(logits, wanted), logits.argmax(1) == wanted
