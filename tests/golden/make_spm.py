"""Makes tests/golden/llm/spm.gguf: a random one-layer Llama, 32 wide, with a
SentencePiece vocabulary (byte fallback, a space before the text), for what only such
vocabularies do.

    python3 tests/golden/make_spm.py

needs numpy and gguf.
"""

from pathlib import Path

import gguf
import numpy as np

WIDTH = 32
PIECES = ["▁", "a", "e", "i", "n", "o", "r", "s", "t", "P", "▁P", "ar", "is", "▁i", "▁is", "▁Par", "▁Paris", "in", "▁in"]


def main():
    rng = np.random.default_rng(0)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + PIECES
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2
    types += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(PIECES)
    writer = gguf.GGUFWriter(Path(__file__).parent / "llm" / "spm.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Longer pieces are likelier, so that merging goes on to the whole word.
    writer.add_token_scores([0.0] * 259 + [float(len(piece)) for piece in PIECES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def add(name, *shape):
        writer.add_tensor(name, rng.standard_normal(shape, dtype=np.float32) / WIDTH**0.5)

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for name in ["attn_norm", "ffn_norm"]:
        add(f"blk.0.{name}.weight", WIDTH)
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        add(f"blk.0.{name}.weight", WIDTH, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
