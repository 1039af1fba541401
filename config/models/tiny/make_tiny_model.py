#!/usr/bin/env python3
"""Write a llama of two layers as a GGUF file of about half a megabyte.

The model is for demonstrations and tests: it loads in milliseconds, runs on
any CPU, and the same seed gives the same bytes on every machine. It knows
nothing, but it is a real llama with a real tokenizer, so everything in front
of it (prompt template, streaming, usage, log-probabilities, sampling) is
exercised as with a large one.

Its weights are not trained but made. The embedding of a character is a
one-hot vector, and the output matrix holds how often one character follows
another in SENTENCES, so that answers look like words. Attention and feed
forward are seeded noise on top, so that an answer depends on the whole
prompt and not on its last character alone.
"""

import argparse
import math
import random

import gguf
import numpy

WIDTH = 64
LAYERS = 2
HEADS = 4
FEED_FORWARD = 128
CONTEXT_TOKENS = 4096
NORM_EPSILON = 1e-5

UNKNOWN, BEGIN, END = 0, 1, 2
FIRST_BYTE = 3
# SentencePiece writes a space as this character; as a token of its own it
# costs one token instead of the three bytes of its UTF-8 form.
SPACE_MARK = "\u2581"
SPACE = FIRST_BYTE + 256
VOCABULARY = SPACE + 1

# Dimension 0 of the embedding is the same for every token and the noise never
# writes to it: what the output matrix holds there is a bias for each token.
BIAS_DIMENSION = 0
LETTERS = " .abcdefghijklmnopqrstuvwxyz"
# How much the noise of one layer may move the logits. Large enough that the
# prompt matters, small enough that the answer stays readable.
NOISE = 0.1

SENTENCES = (
    "a node offers its gpus and the hub gives them work that fits. "
    "the placement says where a replica runs and on which terms. "
    "every no has a reason that a person can act on. "
    "nothing is deleted because something could not be reached. "
    "what a node says of itself is a claim and what others measured is evidence. "
    "the same input gives the same answer. "
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def token_of(character):
    """Return the token that stands for one ASCII character."""
    return SPACE if character == " " else FIRST_BYTE + ord(character)


def vocabulary():
    """Return the tokens, their scores and their types."""
    kind = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>"]
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL]
    for byte in range(256):
        tokens.append(f"<0x{byte:02X}>".encode())
        kinds.append(kind.BYTE)
    tokens.append(SPACE_MARK.encode())
    kinds.append(kind.NORMAL)
    return tokens, [0.0] * VOCABULARY, kinds


def noise(source, rows, columns, scale):
    """Return a matrix of uniform noise that leaves the bias dimension alone.

    `random.random` is the one generator whose sequence Python promises to
    keep between versions.
    """
    values = [[(source.random() * 2 - 1) * scale for _ in range(columns)] for _ in range(rows)]
    return numpy.array(values, dtype=numpy.float32)


def embedding():
    """Return one row a token: the bias, and one-hot for letters."""
    matrix = numpy.zeros((VOCABULARY, WIDTH), dtype=numpy.float32)
    matrix[:, BIAS_DIMENSION] = 1.0
    for token in range(VOCABULARY):
        # All bytes that are no letter share the dimensions above the letters.
        spare = WIDTH - 1 - len(LETTERS)
        matrix[token, 1 + len(LETTERS) + token % spare] = 1.0
    for index, letter in enumerate(LETTERS):
        matrix[token_of(letter), 1:] = 0.0
        matrix[token_of(letter), 1 + index] = 1.0
    return matrix


def output():
    """Return the logits of the next token for each dimension of the state."""
    # RMS normalisation turns the two ones of an embedding into this.
    unit = math.sqrt(WIDTH / 2)
    matrix = numpy.zeros((VOCABULARY, WIDTH), dtype=numpy.float32)
    matrix[:, BIAS_DIMENSION] = -30.0 / unit
    for letter in LETTERS:
        matrix[token_of(letter), BIAS_DIMENSION] = 0.0
    matrix[END, BIAS_DIMENSION] = -16.0 / unit
    matrix[END, 1 + LETTERS.index(".")] = 16.0 / unit
    for index, first in enumerate(LETTERS):
        follows = [
            SENTENCES[place + 1]
            for place in range(len(SENTENCES) - 1)
            if SENTENCES[place] == first
        ]
        for letter in LETTERS:
            share = (follows.count(letter) + 0.02) / (len(follows) + 0.02 * len(LETTERS))
            matrix[token_of(letter), 1 + index] = math.log(share) / unit
    return matrix


def add_layer(writer, source, layer):
    """Add the tensors of one transformer block."""
    name = f"blk.{layer}"
    ones = numpy.ones(WIDTH, dtype=numpy.float32)
    spread = 1.0 / math.sqrt(WIDTH)
    writer.add_tensor(f"{name}.attn_norm.weight", ones)
    writer.add_tensor(f"{name}.ffn_norm.weight", ones)
    for part in ("attn_q", "attn_k", "attn_v"):
        writer.add_tensor(f"{name}.{part}.weight", noise(source, WIDTH, WIDTH, 2 * spread))
    for part in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"{name}.{part}.weight", noise(source, FEED_FORWARD, WIDTH, 2 * spread))
    for part, columns in (("attn_output", WIDTH), ("ffn_down", FEED_FORWARD)):
        matrix = noise(source, WIDTH, columns, NOISE * spread)
        matrix[BIAS_DIMENSION, :] = 0.0
        writer.add_tensor(f"{name}.{part}.weight", matrix)


def write(path, seed):
    """Write the model file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("creo-tiny")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    tokens, scores, kinds = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    source = random.Random(seed)
    writer.add_tensor("token_embd.weight", embedding())
    for layer in range(LAYERS):
        add_layer(writer, source, layer)
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    writer.add_tensor("output.weight", output())

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="the GGUF file to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise (default: 1)")
    arguments = parser.parse_args()
    write(arguments.path, arguments.seed)


if __name__ == "__main__":
    main()
