"""Words learnt later: what they are read as, whose rows they are, and the files that other programs make of them."""

import pytest
import torch
from safetensors.torch import save_file

from minisd import store, words
from minisd.config import CLIPTextConfig, Word
from minisd.errors import MinisdError
from minisd.text import tokenizer_of
from minisd.tokenizer import SMALLEST_VOCAB, Tokenizer
from tests import tiny_model
from weights_convert import embedding as words_of_files
from weights_convert.lora.names import FAMILIES

TAUGHT = Tokenizer(vocab_size=SMALLEST_VOCAB, window=40, words=(Word("<cat>"), Word("sks", 2), Word("<cat> toy")))
CAT, SKS, TOY = [SMALLEST_VOCAB], [SMALLEST_VOCAB + 1, SMALLEST_VOCAB + 2], [SMALLEST_VOCAB + 3]
PLAIN = Tokenizer(vocab_size=SMALLEST_VOCAB, window=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.folder(tmp_path_factory.mktemp("words"))


@pytest.fixture
def sd(folder):
    return store.load(folder, "cpu", "float32")


def rows(sd, count=1, seed=0):
    return torch.randn(count, sd.text[0].cfg.width, generator=torch.Generator().manual_seed(seed))


# --- what is read ---


@pytest.mark.parametrize("text, parts", [
    ("a <cat> on it", ["a", CAT, "on it"]), ("<CAT>, Sks", [CAT, ",", SKS]), ("a <cat>  toy", ["a", TOY]),
    ("skss or asks", ["skss or asks"]), ("sks2", ["sks2"]), ("<cat>s", [CAT, "s"]), ("", []), ("sks sks", [SKS, SKS]),
])
def test_learnt_words_are_their_tokens_and_what_is_around_them_is_read_as_ever(text, parts):
    expected = [token for part in parts for token in (part if isinstance(part, list) else PLAIN.tokenize(part))]
    assert TAUGHT.tokenize(text) == expected


def test_tokens_of_learnt_words_spell_them():
    assert TAUGHT.decode(TAUGHT.tokenize("a <cat> with sks")) == "a <cat> with sks"
    with pytest.raises(MinisdError, match=f"0 to {SMALLEST_VOCAB + 3}"):
        TAUGHT.decode([SMALLEST_VOCAB + 4])


@pytest.mark.parametrize("text", ["", "Cat", "a  b", " a", "(a)", "a:b", "a|b", "back\\slash"])
def test_what_a_prompt_could_not_say_is_no_word(text):
    with pytest.raises(ValueError, match="the word"):
        Word(text)


def test_words_are_told_apart():
    with pytest.raises(ValueError, match="each at most once"):
        CLIPTextConfig(words=(Word("a"), Word("a", 2)))
    with pytest.raises(ValueError, match="of 0 vectors"):
        Word("a", 0)


# --- whose rows they are ---


def test_a_word_is_read_by_its_own_rows_and_leaves_the_others_alone(sd):
    text = sd.text[0]
    ids = torch.tensor([[text.cfg.vocab_size - 2, 3, 4, text.cfg.vocab_size - 1]])
    before, table = text(ids).hidden, text.token.weight.clone()
    words.learn(text, Word("sks", 2), rows(sd, 2))
    words.learn(text, Word("<cat>"), rows(sd, 1, seed=1))
    assert torch.equal(text(ids).hidden, before) and torch.equal(text.token.weight, table)
    torch.testing.assert_close(text.token(torch.tensor([[*tokenizer_of(text.cfg).tokenize("sks <cat>")]]))[0],
                               torch.cat([rows(sd, 2), rows(sd, 1, seed=1)]), rtol=0, atol=0)


def test_gradients_reach_the_new_rows_alone(sd):
    text = sd.text[0]
    words.learn(text, Word("sks", 2), rows(sd, 2))
    text.token.extra.requires_grad_(True)
    ids = tokenizer_of(text.cfg).encode("a red sks disc")
    text(torch.tensor([ids])).hidden.square().mean().backward()
    assert (text.token.extra.grad.abs().sum(dim=1) > 0).all()
    assert [name for name, p in text.named_parameters() if p.grad is not None] == ["token.extra"]


def test_a_model_with_words_is_saved_and_read_whole(sd, tmp_path):
    words.learn(sd.text[0], Word("sks", 2), rows(sd, 2).half().float())
    cfg = sd.cfg.__class__(**{**vars(sd.cfg), "text": (sd.text[0].cfg,)})
    store.save(tmp_path / "model", cfg, {"unet": sd.unet, "vae": sd.vae, "text": sd.text[0]}, torch.float32)
    again = store.load(tmp_path / "model", "cpu", "float32")
    assert again.text[0].cfg.words == (Word("sks", 2),)
    assert torch.equal(again.text[0].token.extra, sd.text[0].token.extra)
    assert torch.equal(again.encode(["a sks"]).context, sd.encode(["a sks"]).context)


def test_what_is_forgotten_leaves_the_others_their_rows(sd):
    text = sd.text[0]
    for n, word in enumerate((Word("sks", 2), Word("<cat>"), Word("<dog>", 3))):
        words.learn(text, word, rows(sd, word.vectors, seed=n))
    words.forget(text, {"<cat>", "<unknown>"})
    assert text.cfg.words == (Word("sks", 2), Word("<dog>", 3))
    assert torch.equal(text.token.extra, torch.cat([rows(sd, 2, 0), rows(sd, 3, 2)]))
    words.forget(text, {"sks", "<dog>"})
    assert text.cfg.words == () and text.token.extra is None


# --- files ---


def save_pt(tensors, path):
    torch.save(tensors, path)
    return path


def a1111(vectors):
    """As A1111's trainer writes it; its parameter is one that learns."""
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(vectors)}, "name": "other",
            "step": 500, "sd_checkpoint": "1a2b", "sd_checkpoint_name": "model"}


def test_files_of_other_programs(sd, tmp_path):
    """A1111's .pt, diffusers' .bin, and both programs' safetensors: the file's name, and what the file says."""
    one, two = rows(sd), rows(sd, 2)
    files = {
        save_pt(a1111(two), tmp_path / "My-Style v1.5.pt"): (("my-style v1.5",), two),
        save_pt({"<cat>": one[0]}, tmp_path / "learned_embeds.bin"): (("<cat>", "learned_embeds"), one),
        save_pt({"<cat>": one[0].half()}, tmp_path / "x.bin"): (("<cat>",), one.half()),       # x is a word already
        tmp_path / "bad-hands-5.safetensors": (("bad-hands-5",), two),
        tmp_path / "sks.safetensors": (("<dog>", "sks"), two)}
    save_file({"emb_params": two}, tmp_path / "bad-hands-5.safetensors")
    words_of_files.write_embedding(tmp_path / "sks.safetensors", "<dog>", two, {"note": "mine"})
    for path, (told, vectors) in files.items():
        lesson = words.lesson_of(path, sd.cfg)
        assert lesson.words == told
        assert torch.equal(lesson.vectors["text"], vectors)


def test_the_original_programs_files(sd, tmp_path):
    """Gal et al.'s own code saves a ParameterDict."""
    two = rows(sd, 2)
    save_pt({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": two})},
            tmp_path / "toys.pt")
    lesson = words.lesson_of(tmp_path / "toys.pt", sd.cfg)
    assert lesson.words == ("toys",) and torch.equal(lesson.vectors["text"], two)


def test_taught_by_a_file(sd, tmp_path):
    words_of_files.write_embedding(tmp_path / "Named.safetensors", "emb_params", rows(sd, 2))
    words_of_files.write_embedding(tmp_path / "x.safetensors", "<dog>", rows(sd, 2))
    assert words.add_embedding(sd, tmp_path / "Named.safetensors") == "named"
    assert words.add_embedding(sd, tmp_path / "x.safetensors", "Sks") == "sks"
    assert words.add_embedding(sd, tmp_path / "x.safetensors") == "<dog>"
    assert [(word.text, word.vectors) for word in sd.text[0].cfg.words] == [("named", 2), ("sks", 2), ("<dog>", 2)]


def test_a_word_of_two_text_encoders(tmp_path):
    """SDXL's files: a tensor for each."""
    cfg = FAMILIES["SDXL"]
    widths = [text.width for text in cfg.text]
    tensors = {key: torch.randn(3, width) for key, width in zip(("clip_l", "clip_g"), widths, strict=True)}
    save_file(tensors, tmp_path / "negative-xl.safetensors")
    lesson = words.lesson_of(tmp_path / "negative-xl.safetensors", cfg)
    assert lesson.words == ("negative-xl",)
    assert torch.equal(lesson.vectors["text"], tensors["clip_l"])
    assert torch.equal(lesson.vectors["text_2"], tensors["clip_g"])
    save_file({"emb_params": tensors["clip_l"]}, tmp_path / "sd1-negative.safetensors")
    with pytest.raises(MinisdError, match="another model"):
        words.lesson_of(tmp_path / "sd1-negative.safetensors", cfg)


def test_a_word_changes_pictures_that_say_it_and_no_others(sd, tmp_path):
    def draw(prompt):
        return sd.txt2img(prompt, steps=2, size=(64, 64))[0].tobytes()

    without, unknown = draw("a disc"), draw("a <cat>")
    words_of_files.write_embedding(tmp_path / "x.safetensors", "<cat>", 3 * rows(sd, 2))
    words.add_embedding(sd, tmp_path / "x.safetensors")
    assert draw("a disc") == without and draw("a <cat>") != unknown


@pytest.mark.parametrize("tensors, code, said", [
    ({"a": torch.ones(3, 4), "b": torch.ones(3, 4)}, 3, "holds 2 tensors"),
    ({"a": torch.ones(2, 3, 4)}, 3, r"\[2, 3, 4\]"), ({"a": torch.ones(0, 32)}, 3, r"\[0, 32\]"),
    ({"a": torch.ones(2, 4, dtype=torch.int64)}, 3, "int64"), ({"a": torch.full((1, 4), torch.nan)}, 5, "NaN"),
    ({"<a>": torch.ones(1, 1024)}, 3, r"1024 numbers \(SD2\); this model's have 32"),
    ({"<a>": torch.ones(1, 768)}, 3, r"768 numbers \(SD1\)"), ({"a:b": torch.ones(1, 32)}, 3, "rename the file"),
    ({"*": torch.ones(1, 32)}, 3, "the model knows the word 'x' already"),
])
def test_what_is_no_embedding_of_this_model(sd, tmp_path, tensors, code, said):
    with pytest.raises(MinisdError, match=said) as error:
        words.add_embedding(sd, save_pt(tensors, tmp_path / "x.pt"))
    assert error.value.code == code


def test_the_same_word_twice_and_words_with_spaces(sd, tmp_path):
    for name in ("x", "y"):
        words_of_files.write_embedding(tmp_path / f"{name}.safetensors", "sks", rows(sd))
    lessons = [words.lesson_of(tmp_path / f"{name}.safetensors", sd.cfg) for name in ("x", "y")]
    with pytest.raises(MinisdError, match="'sks' is taught twice"):
        words.teach(sd, lessons)
    assert sd.text[0].cfg.words == ()
    words.teach(sd, lessons[:1])
    with pytest.raises(MinisdError, match="'sks' is taught twice"):
        words.teach(sd, lessons[1:])
    with pytest.raises(MinisdError, match="no word with spaces"):
        words_of_files.write_embedding(tmp_path / "z.safetensors", "a b", rows(sd))
