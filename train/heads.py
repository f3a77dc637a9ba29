"""The Q-Former of BLIP-2's first stage: two branches that share self-attention, and the heads of three objectives."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from captions import SPECIAL, words
from model import BRIDGE_WIDTH, CROSS_ATTENTION_FREQUENCY, LAYERS, QUERIES, Standardize

FEATURES, POSITIONS = 256, 32
PAD, UNKNOWN, CLS, SEP = (SPECIAL.index(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))


class Tokens:
    """Texts to ids, one for each word: what BERT's WordPiece makes of them with this vocabulary."""

    def __init__(self, vocabulary: list[str]):
        self.ids = {word: n for n, word in enumerate(vocabulary)}
        self.begin = len(vocabulary)
        """[DEC]"""

    def __call__(self, texts: list[str], first: int = CLS) -> Tensor:
        """[texts, longest], `first` before each text, [SEP] behind it, then padding."""
        rows = [[first, *(self.ids.get(word, UNKNOWN) for word in words(text)), SEP] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def split(attention: nn.Module, rows: Tensor) -> Tensor:
    """[batch, rows, width] to [batch, heads, rows, head width]."""
    return rows.unflatten(2, (attention.num_attention_heads, -1)).transpose(1, 2)


def attend(attention: nn.Module, rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """What `rows` find, [batch, rows, width], before the output's matrix."""
    found = F.scaled_dot_product_attention(split(attention, attention.query(rows)), keys, values, attn_mask=mask)
    return found.transpose(1, 2).flatten(2)


def together(ids: Tensor, causal: bool) -> Tensor:
    """[texts, 1, rows, rows]: which rows of queries and text see which."""
    batch, length = ids.shape
    rows = QUERIES + length
    seen = torch.ones(batch, rows, dtype=torch.bool, device=ids.device)
    seen[:, QUERIES:] = ids != PAD
    mask = seen[:, None, None].expand(-1, 1, rows, -1)
    if causal:
        order = torch.ones(rows, rows, dtype=torch.bool, device=ids.device).tril()
        order[:QUERIES, :QUERIES] = True
        mask = mask & order
    return mask


class Heads(nn.Module):
    """Query tokens, Q-Former and heads under the names of Blip2ForImageTextRetrieval, and LAVIS's `cls`."""

    def __init__(self, n_words: int, layers: int = LAYERS):
        super().__init__()
        config = Blip2QFormerConfig(
            vocab_size=n_words,
            max_position_embeddings=POSITIONS,
            hidden_size=BRIDGE_WIDTH,
            intermediate_size=4 * BRIDGE_WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=6,
            cross_attention_frequency=CROSS_ATTENTION_FREQUENCY,
            encoder_hidden_size=384,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            use_qformer_text_input=True,
        )
        self.vision_model = nn.Module()
        self.vision_model.post_layernorm = Standardize(config.encoder_hidden_size)
        self.query_tokens = nn.Parameter(torch.randn(1, QUERIES, BRIDGE_WIDTH))
        self.embeddings = Blip2TextEmbeddings(config)
        # A LayerNorm follows, so their size is free; it is the size of the caption head's scores, which they are tied to.
        nn.init.normal_(self.embeddings.word_embeddings.weight, std=BRIDGE_WIDTH**-0.5)
        nn.init.normal_(self.embeddings.position_embeddings.weight, std=0.3 * BRIDGE_WIDTH**-0.5)
        self.qformer = Blip2QFormerModel(config)
        self.vision_projection = nn.Linear(BRIDGE_WIDTH, FEATURES)
        self.text_projection = nn.Linear(BRIDGE_WIDTH, FEATURES)
        self.itm_head = nn.Linear(BRIDGE_WIDTH, 2)
        self.cls = nn.Module()
        self.cls.predictions = nn.Module()
        self.cls.predictions.transform = nn.Module()
        self.cls.predictions.transform.dense = nn.Linear(BRIDGE_WIDTH, BRIDGE_WIDTH)
        self.cls.predictions.transform.LayerNorm = nn.LayerNorm(BRIDGE_WIDTH, eps=config.layer_norm_eps)
        self.cls.predictions.decoder = nn.Module()
        self.cls.predictions.decoder.bias = nn.Parameter(torch.zeros(n_words))
        for layer in (*self.qformer.modules(), self.vision_projection, self.text_projection, self.cls.predictions.transform.dense):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.inverse_temperature = nn.Parameter(torch.tensor(1 / 0.07).log())

    def start_from_bridge(self, path: Path) -> None:
        """Take the query branch from a trained bridge; the text's feed-forward layers begin as the queries'."""
        tensors = {name: tensor.float() for name, tensor in load_file(path).items() if not name.startswith("language_projection.")}
        for name in list(tensors):
            if "_query." in name:
                tensors[name.replace("_query.", ".")] = tensors[name].clone()
        missing, unknown = self.load_state_dict(tensors, strict=False)
        wrong = [name for name in missing if name.startswith(("qformer.", "query_tokens", "vision_model."))]
        if unknown or wrong:
            raise ValueError(f"{path} is no bridge of this shape: {unknown + wrong}")

    def looked_at(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [pictures, heads, patches, head width] of each layer's cross-attention."""
        features = self.vision_model.post_layernorm(features)
        crosses = [layer.crossattention.attention for layer in self.qformer.encoder.layer]
        return [(split(cross, cross.key(features)), split(cross, cross.value(features))) for cross in crosses]

    def joint(self, looked: list[tuple[Tensor, Tensor]], ids: Tensor, causal: bool) -> list[Tensor]:
        """Rows of queries and text together, [texts, QUERIES + tokens, width], behind each layer; `looked` may be of
        fewer pictures than there are texts, which then go round them.

        `causal`: text sees queries and the text before it, queries do not see text (ITG, and queries as ITC has
        them); else everything sees everything but padding (ITM)."""
        embedded = self.embeddings(input_ids=ids, query_embeds=self.query_tokens.expand(len(ids), -1, -1))
        rows = self.qformer.layernorm(embedded)
        return self._behind_layers(rows, together(ids, causal), QUERIES, self._repeated(looked, len(ids)))

    def looks_across(self, behind: list[Tensor], ids: Tensor) -> Tensor:
        """[layers]: by how much queries and text look at each other where everything sees everything: minus the logarithm of
        what a row's attention leaves to its own side, on average. `behind` is what `joint` gives, of as many layers as are asked for.

        Its slope does not vanish where all attention goes to the other side, as that of the rows themselves does."""
        embedded = self.embeddings(input_ids=ids, query_embeds=self.query_tokens.expand(len(ids), -1, -1))
        before = [self.qformer.layernorm(embedded), *behind[:-1]]
        is_there = torch.cat([ids.new_ones(len(ids), QUERIES), ids], 1) != PAD
        is_text = torch.arange(is_there.shape[1], device=ids.device) >= QUERIES
        found = []
        for rows, layer in zip(before, self.qformer.encoder.layer):
            shared = layer.attention.attention
            asked, keys = split(shared, shared.query(rows)), split(shared, shared.key(rows))
            scores = (asked @ keys.transpose(2, 3)).float() / asked.shape[-1] ** 0.5
            scores = scores.masked_fill(~is_there[:, None, None], -torch.inf)
            own = scores.masked_fill(is_text != is_text[:, None], -torch.inf)
            across = (scores.logsumexp(3) - own.logsumexp(3)).mean(1)
            found.append((across[:, :QUERIES].mean() + across[:, QUERIES:][ids != PAD].mean()) / 2)
        return torch.stack(found)

    @staticmethod
    def _repeated(looked: list[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, ...]]:
        return [tuple(x.repeat(count // len(x), 1, 1, 1) for x in pair) for pair in looked]

    def text_branch(self, ids: Tensor, seen: list[Tensor] | None = None) -> list[Tensor]:
        """Rows of text behind each layer, [texts, tokens, width], by the text's branch alone: each sees all the text, or, with
        `seen`, the queries' rows [texts, QUERIES, width] before each layer and the text up to itself."""
        length = ids.shape[1]
        mask = (ids != PAD)[:, None, None].expand(-1, 1, length, -1)
        if seen is not None:
            mask = torch.cat([mask.new_ones(len(ids), 1, length, QUERIES), mask & mask.new_ones(length, length).tril()], 3)
        return self._behind_layers(self.qformer.layernorm(self.embeddings(input_ids=ids)), mask, 0, seen=seen)

    def query_rows(self, looked: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The queries' rows [pictures, QUERIES, width] behind each layer, no text being there."""
        rows = self.qformer.layernorm(self.query_tokens).expand(len(looked[0][0]), -1, -1)
        return self._behind_layers(rows, None, QUERIES, looked)

    def _behind_layers(self, rows: Tensor, mask: Tensor | None, queries: int, looked: list | None = None, seen: list[Tensor] | None = None) -> list[Tensor]:
        """Both branches as Blip2QFormerModel has them: the first `queries` rows look at the picture."""
        found = []
        for number, layer in enumerate(self.qformer.encoder.layer):
            keys = rows if seen is None else torch.cat([seen[number].to(rows.dtype), rows], 1)
            shared = layer.attention.attention
            attended = attend(shared, rows, split(shared, shared.key(keys)), split(shared, shared.value(keys)), mask)
            rows = layer.attention.output(attended, rows)
            parts = []
            if queries:
                asking = rows[:, :queries]
                cross = layer.crossattention
                asking = cross.output(attend(cross.attention, asking, *looked[number]), asking)
                parts.append(layer.feed_forward_chunk_query(asking))
            if rows.shape[1] > queries:
                parts.append(layer.feed_forward_chunk(rows[:, queries:]))
            rows = torch.cat(parts, 1)
            found.append(rows)
        return found

    def text_features(self, ids: Tensor) -> Tensor:
        """[texts, FEATURES], of length 1: texts read alone, at [CLS]."""
        return self.text_features_of(self.text_branch(ids)[-1])

    def text_features_of(self, rows: Tensor) -> Tensor:
        """The same, of the text branch's last rows."""
        return F.normalize(self.text_projection(rows[:, 0]).float(), dim=-1)

    def picture_features(self, queries: Tensor) -> Tensor:
        """[pictures, QUERIES, FEATURES], each of length 1, of the queries' rows."""
        return F.normalize(self.vision_projection(queries).float(), dim=-1)

    def match_logits(self, rows: Tensor) -> Tensor:
        """[pairs, 2], no match and match, of the last rows of a pass that is not causal."""
        return self.itm_head(rows[:, :QUERIES]).float().mean(1)

    def caption_logits(self, text: Tensor) -> Tensor:
        """Rows of text to scores of the next word, [..., words]."""
        predictions = self.cls.predictions
        hidden = predictions.transform.LayerNorm(F.gelu(predictions.transform.dense(text)))
        return (hidden @ self.embeddings.word_embeddings.weight.T.to(hidden.dtype)).float() + predictions.decoder.bias

    def save(self, path: Path) -> None:
        """Write float16 safetensors, as demo/make_checkpoint.py reads them."""
        tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in self.state_dict().items()}
        del tensors["inverse_temperature"]
        save_file(tensors, path, metadata={"format": "pt"})

    def deepened(self) -> "Heads":
        """The same with a layer more, which begins by adding nearly nothing.

        Its rows look for each other as ITC compares them: what asks is the picture's feature, what answers the text's."""
        deeper = Heads(len(self.embeddings.word_embeddings.weight), len(self.qformer.encoder.layer) + 1)
        deeper.load_state_dict(self.state_dict(), strict=False)
        layer = deeper.qformer.encoder.layer[-1]
        for name, module in layer.named_modules():
            if name.endswith("output.dense") or name.endswith("output_query.dense"):
                nn.init.normal_(module.weight, std=1e-2 * module.in_features**-0.5)
        shared = layer.attention.attention
        for inside, outside in ((shared.query, self.vision_projection), (shared.key, self.text_projection)):
            inside.weight.data[:FEATURES] = outside.weight.data
            inside.bias.data[:FEATURES] = outside.bias.data
        return deeper

    def load(self, path: Path) -> None:
        """Read what `save` wrote; the temperature, which is for training only, begins anew."""
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        self.load_state_dict({**tensors, "inverse_temperature": self.inverse_temperature.data})
