"""CLIP's tokenizer as Hugging Face's files hold it: made from our merges, and checked against them."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

from minisd.bpe import MERGES_FILE, byte_letters, read_merges
from minisd.config import CLIPTextConfig
from minisd.errors import MinisdError

START, END, ZERO = "<|startoftext|>", "<|endoftext|>", "!"
FIRST_LINE = "#version: 0.2"
BYTES = 256


def files(cfg: CLIPTextConfig) -> dict[str, str]:
    """The tokenizer's files by name, for a text model that may know only the first of the merges."""
    merges = merges_of(cfg)
    pad = END if cfg.pad == "end" else ZERO
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    return {
        "vocab.json": json.dumps({token: n for n, token in enumerate(tokens_of(merges))}, ensure_ascii=False),
        "merges.txt": "\n".join([FIRST_LINE, *merges, ""]),
        "special_tokens_map.json": json.dumps(special, indent=1),
        "tokenizer_config.json": json.dumps(special | {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": cfg.window, "do_lower_case": True,
            "add_prefix_space": False, "errors": "replace"}, indent=1),
    }


def merges_of(cfg: CLIPTextConfig) -> list[str]:
    data = (resources.files("minisd") / "assets" / MERGES_FILE).read_bytes()
    return [line.strip() for line in read_merges(data, cfg.vocab_size - 2 * BYTES - 2)]


def tokens_of(merges: list[str]) -> list[str]:
    """Every token in the order of its id."""
    letters = list(byte_letters().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return [*words, START, END]


def check(folder: Path, cfg: CLIPTextConfig) -> CLIPTextConfig:
    """A folder's tokenizer must be CLIP's to the letter; the config with the padding that it asks for."""
    merges = merges_of(cfg)
    wanted = {"vocab.json": tokens_of(merges), "merges.txt": [FIRST_LINE, *merges]}
    for name, found in read(folder).items():
        if found != wanted[name]:
            raise MinisdError("the tokenizer is not CLIP's", str(folder / name), difference(wanted[name], found),
                              "take these files from the model's own repository")
    return replace(cfg, pad="zero" if pad_token(folder) == ZERO else "end")


def read(folder: Path) -> dict[str, list[str]]:
    """Tokens and merges, from their own files, or from the one file that newer versions write."""
    try:
        if (folder / "merges.txt").is_file():
            vocab = json.loads((folder / "vocab.json").read_bytes())
            merges = (folder / "merges.txt").read_bytes().decode().removesuffix("\n").split("\n")
        else:
            model = json.loads((folder / "tokenizer.json").read_bytes())["model"]
            vocab = model["vocab"]
            merges = [FIRST_LINE, *(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])]
        tokens = {number: token for token, number in vocab.items()}
        return {"vocab.json": [tokens.get(number, "nothing") for number in range(len(vocab))], "merges.txt": merges}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MinisdError("the tokenizer's files cannot be read", str(folder), str(error)[:200],
                          "copy the whole folder of the model") from error


def difference(wanted: list[str], found: list[str]) -> str:
    """In a few words."""
    if len(found) != len(wanted):
        return f"{len(found)} entries instead of {len(wanted)}"
    return next(f"{found[n]!r:.40} stands at {n}, where {wanted[n]!r:.40} should"
                for n in range(len(wanted)) if found[n] != wanted[n])


def pad_token(folder: Path) -> str:
    """What fills a window; of SD1's tokenizer the end token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # of SD2.1's, the first is right
        if (folder / name).is_file():
            token = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token") or END
            return token if isinstance(token, str) else token.get("content", END)
    return END
