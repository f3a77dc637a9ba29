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
        self.qformer.set_attn_implementation("eager")
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

    def joint(self, features: Tensor, ids: Tensor, causal: bool) -> Tensor:
        """Queries and text together, [batch, QUERIES + tokens, width].

        `causal`: text sees queries and the text before it, queries do not see text (ITG, and queries as ITC has
        them); else everything sees everything but padding (ITM)."""
        batch, length = ids.shape
        rows = QUERIES + length
        seen = torch.ones(batch, rows, dtype=torch.bool, device=ids.device)
        seen[:, QUERIES:] = ids != PAD
        mask = seen[:, None, :].expand(-1, rows, -1)
        if causal:
            order = torch.ones(rows, rows, dtype=torch.bool, device=ids.device).tril()
            order[:QUERIES, :QUERIES] = True
            mask = mask & order
        queries = self.query_tokens.expand(batch, -1, -1)
        embedded = self.embeddings(input_ids=ids, query_embeds=queries)
        additive = torch.zeros(batch, 1, rows, rows, device=ids.device).masked_fill_(~mask[:, None], torch.finfo(torch.float32).min)
        return self.qformer(
            query_embeds=embedded,
            query_length=QUERIES,
            attention_mask=additive,
            encoder_hidden_states=self.vision_model.post_layernorm(features),
        ).last_hidden_state

    def text_branch(self, ids: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """Rows of text, [batch, tokens, width], by the text's branch alone: each sees all the text, or, with `seen`, the
        queries' rows [batch, QUERIES, width] before each layer and the text up to itself."""
        rows = self.qformer.layernorm(self.embeddings(input_ids=ids))
        length = ids.shape[1]
        mask = (ids != PAD)[:, None, None].expand(-1, 1, length, -1)
        if seen is not None:
            mask = torch.cat([mask.new_ones(len(ids), 1, length, QUERIES), mask & mask.new_ones(length, length).tril()], 3)
        for number, layer in enumerate(self.qformer.encoder.layer):
            keys = rows if seen is None else torch.cat([seen[number].to(rows.dtype), rows], 1)
            shared = layer.attention.attention
            split = [x.unflatten(2, (shared.num_attention_heads, -1)).transpose(1, 2) for x in (shared.query(rows), shared.key(keys), shared.value(keys))]
            attended = F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)
            rows = layer.feed_forward_chunk(layer.attention.output(attended, rows))
        return rows

    def query_rows(self, features: Tensor) -> list[Tensor]:
        """The queries' rows [batch, QUERIES, width] before the first layer and behind each, no text being there."""
        rows = [self.qformer.layernorm(self.query_tokens).expand(len(features), -1, -1)]
        hooks = [layer.register_forward_hook(lambda _, __, output: rows.append(output)) for layer in self.qformer.encoder.layer]
        self.qformer(query_embeds=self.query_tokens.expand(len(features), -1, -1), encoder_hidden_states=self.vision_model.post_layernorm(features))
        for hook in hooks:
            hook.remove()
        return rows

    def text_features(self, ids: Tensor) -> Tensor:
        """[texts, FEATURES], of length 1: texts read alone, at [CLS]."""
        return F.normalize(self.text_projection(self.text_branch(ids)[:, 0]).float(), dim=-1)

    def picture_features(self, queries: Tensor) -> Tensor:
        """[pictures, QUERIES, FEATURES], each of length 1, of the queries' rows."""
        return F.normalize(self.vision_projection(queries).float(), dim=-1)

    def match_logits(self, features: Tensor, ids: Tensor) -> Tensor:
        """[pairs, 2]: no match, match."""
        return self.itm_head(self.joint(features, ids, causal=False)[:, :QUERIES]).float().mean(1)

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
