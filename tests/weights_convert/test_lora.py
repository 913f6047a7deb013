"""LoRA files: every key of real ones finds its module, nothing is lost between dialects, and sums are sums."""

import gzip
import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minisd.config import CLIP_L, SD15_MIDLESS, TINY_MODEL, ModelConfig
from minisd.errors import BAD_FILE, NUMERICAL, USAGE, MinisdError
from weights_convert.lora import algebra
from weights_convert.lora.adapter import Adapter, Entry, Place
from weights_convert.lora.algebra import Truncation
from weights_convert.lora.names import FAMILIES, modules, numbered
from weights_convert.lora.read import read_adapter
from weights_convert.lora.write import WRITERS, write_adapter

KEYS = Path(__file__).parent.parent / "goldens" / "keys"
UNLIKE = {"diffusers-old", "cloneofsimo"}         # attentions only, and all that cloneofsimo's trainer touched
SMALL = replace(TINY_MODEL, text=(replace(CLIP_L, width=16, depth=2, heads=2),))


def keys(name: str) -> dict[str, list[int]]:
    return json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attentions(cfg: ModelConfig = SMALL, alpha: float | None = 2.0, rank: int = 4) -> Adapter:
    """What cloneofsimo's trainer touched, which every dialect but the processors can say."""
    entries = {}
    for n, place in enumerate(numbered(cfg).values()):
        down = random(rank, 8 if place.path.startswith("up.") else 16, seed=n)
        if place.path.endswith(("cross_attn.k", "cross_attn.v")):
            down = random(rank, cfg.unet.context_dim, seed=n)
        entries[place] = Entry("lora", {"down": down, "up": random(8, rank, seed=n + 999)}, alpha)
    return Adapter(entries, cfg)


def without(adapter: Adapter, leaf: str) -> Adapter:
    return replace(adapter, entries={p: e for p, e in adapter.entries.items() if not p.path.endswith(leaf)})


def same(a: Adapter, b: Adapter) -> bool:
    return a.entries.keys() == b.entries.keys() and all(
        one.kind == b.entries[place].kind and one.scale == b.entries[place].scale
        and one.tensors.keys() == b.entries[place].tensors.keys()
        and all(torch.equal(tensor, b.entries[place].tensors[role]) for role, tensor in one.tensors.items())
        for place, one in a.entries.items())


def refused(source: Path, **told) -> MinisdError:
    with pytest.raises(MinisdError) as error:
        read_adapter(source, **told)
    return error.value


# --- names ---


@pytest.mark.parametrize(("name", "count", "parts", "dialect"), [
    ("lora-kohya", 264, ["unet", "text"], "kohya"), ("lora-kohya-without-alpha", 264, ["unet", "text"], "kohya"),
    ("lora-cloneofsimo", 192, ["unet", "text"], "cloneofsimo"),
    ("lora-cloneofsimo-rank4", 192, ["unet", "text"], "cloneofsimo"),
    ("lora-diffusers", 128, ["unet"], "diffusers"), ("lora-peft", 128, ["unet"], "diffusers"),
])
def test_every_key_of_real_files_finds_its_module(tmp_path, name, count, parts, dialect):
    """Read from their key lists, and written again in the same dialect under the same keys."""
    shapes = {key: [2 if n == -1 else n for n in shape] for key, shape in keys(name).items()}
    save_file({key: torch.ones(shape, dtype=torch.float16) for key, shape in shapes.items()},
              tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert (len(adapter.entries), list(adapter.parts()), adapter.dialect) == (count, parts, dialect)
    assert adapter.cfg == FAMILIES["SD1.x"]
    assert adapter.embeddings.keys() == {key for key in shapes if key.startswith("<")}
    if dialect != "diffusers":
        write_adapter(adapter, tmp_path / "b.safetensors", dialect)
        written = {key: list(tensor.shape) for key, tensor in load_file(tmp_path / "b.safetensors").items()}
        assert {k: v for k, v in written.items() if "<" not in k} == {k: v for k, v in shapes.items() if "<" not in k}


def test_names_of_the_processors_time(tmp_path):
    stem = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"
    text = "text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora"
    linear = "text_encoder.text_model.encoder.layers.1.self_attn.k_proj.lora_linear_layer"
    tensors = {f"{one}.{role}.weight": torch.ones(shape) for one, width in ((stem, 320), (text, 768), (linear, 768))
               for role, shape in (("down", (4, width)), ("up", (width, 4)))}
    save_file(tensors, tmp_path / "old.safetensors")
    assert read_adapter(tmp_path / "old.safetensors").entries.keys() == {
        Place("unet", "down.0.attn.0.layers.0.self_attn.out"), Place("text", "layers.1.attn.q"),
        Place("text", "layers.1.attn.k")}


@pytest.mark.parametrize("prefix", ["lora_unet_input_blocks_4_1", "lora_unet_down_blocks_1_attentions_0"])
def test_sdxls_names_are_ldms_or_diffusers(tmp_path, prefix):
    stem = f"{prefix}_transformer_blocks_1_attn2_to_k"
    te = "lora_te2_text_model_encoder_layers_31_mlp_fc1"
    save_file({f"{stem}.lora_down.weight": torch.ones(4, 2048), f"{stem}.lora_up.weight": torch.ones(640, 4),
               f"{te}.lora_down.weight": torch.ones(4, 1280), f"{te}.lora_up.weight": torch.ones(5120, 4)},
              tmp_path / "xl.safetensors")
    adapter = read_adapter(tmp_path / "xl.safetensors")
    assert adapter.cfg == FAMILIES["SDXL"] and list(adapter.parts()) == ["unet", "text_2"]


def test_no_two_modules_share_a_spelling():
    for cfg in FAMILIES.values():
        kohya = [hf.replace(".", "_") for place, hf, _ in modules(cfg) if place.part == "unet"]
        assert len(set(kohya)) == len(kohya)


# --- round trips ---


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize(("first", "second"), [pair for pair in permutations(WRITERS, 2) if set(pair) != UNLIKE])
def test_there_and_back_nothing_is_lost(tmp_path, first, second, alpha):
    adapter = attentions(alpha=alpha)
    if "diffusers-old" in (first, second):        # has no words for the feed-forward's LoRA
        adapter = without(adapter, "ff.in_proj")
    if "peft" in (first, second):
        adapter = replace(adapter, entries={p: e for p, e in adapter.entries.items() if p.part == "unet"})
    expected = adapter
    for n, dialect in enumerate((first, second, first)):
        write_adapter(adapter, tmp_path / str(n), dialect)
        adapter = read_adapter(tmp_path / str(n))
        assert adapter.cfg == SMALL and adapter.dialect == dialect
    for place, entry in expected.entries.items():
        assert torch.equal(entry.delta(), adapter.entries[place].delta())
    if not {"cloneofsimo", "diffusers-old"} & {first, second}:                # these have no word for alpha
        assert same(adapter, expected)
        assert {entry.alpha for entry in adapter.entries.values()} == {
            4.0 if alpha is None and "peft" in (first, second) else alpha}


def kin() -> Adapter:
    """A LoCon with and without its middle, a LoHa, and LoKrs of one and two factors."""
    conv, linear = Place("unet", "down.0.res.0.conv1"), Place("unet", "mid.attn.0.layers.0.self_attn.q")
    lokr, full = Place("unet", "mid.attn.0.layers.0.self_attn.k"), Place("unet", "mid.attn.0.layers.0.self_attn.v")
    return Adapter({
        conv: Entry("lora", {"down": random(4, 8, 3, 3), "up": random(8, 4, 1, 1)}, 1.0),
        Place("unet", "down.0.res.0.conv2"): Entry("lora", {
            "down": random(4, 8, 1, 1), "up": random(8, 4, 1, 1), "mid": random(4, 4, 3, 3)}, 2.0),
        linear: Entry("loha", {"w1_a": random(8, 2), "w1_b": random(2, 8), "w2_a": random(8, 2, seed=1),
                               "w2_b": random(2, 8, seed=1)}, 1.0),
        lokr: Entry("lokr", {"w1": random(2, 2), "w2_a": random(4, 2), "w2_b": random(2, 4)}, 1.0),
        full: Entry("lokr", {"w1": random(2, 2), "w2": random(4, 4)}, 1.0),
    }, SMALL)


def test_convolutions_and_kin_go_through_kohyas_names(tmp_path):
    write_adapter(kin(), tmp_path / "kin.safetensors")
    assert same(read_adapter(tmp_path / "kin.safetensors"), kin())
    for dialect in WRITERS.keys() - {"kohya"}:
        with pytest.raises(MinisdError, match="cannot be said"):
            write_adapter(kin(), tmp_path / "other", dialect)
        assert not (tmp_path / "other").exists()


def test_what_files_say_of_themselves(tmp_path):
    adapter = replace(attentions(), metadata={"ss_base_model": "x", "modelspec.title": "mine", "private": "y"})
    write_adapter(adapter, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        told = file.metadata()
    assert told["ss_base_model"] == "x" and told["modelspec.title"] == "mine" and "private" not in told
    assert (told["ss_network_dim"], told["ss_network_alpha"], told["modelspec.architecture"]) == (
        "4", "2", "stable-diffusion-v1/lora")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(MinisdError, match="there already"):
        write_adapter(attentions(), tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# --- faults (faults.md, B1 to B3) ---


STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
GOOD = {f"{STEM}.lora_down.weight": torch.ones(4, 1280), f"{STEM}.lora_up.weight": torch.ones(1280, 4)}


@pytest.mark.parametrize(("tensors", "told"), [
    ({f"{STEM}.lora_up.weight": torch.ones(8, 4)}, "is not whole"),
    ({f"{STEM}.alpha": torch.ones(())}, "is not whole"),
    (GOOD | {f"{STEM}.lora_up.weight": torch.ones(1280, 3)}, "do not fit together"),
    (GOOD | {f"{STEM}.dora_scale": torch.ones(8)}, "DoRA"),
    ({"lora_unet_elsewhere.lora_down.weight": torch.ones(4, 8)}, "another model"),
    ({"te.weight": torch.ones(4), "more": torch.ones(4)}, "not a LoRA that is known"),
    ({"<word>": torch.ones(768)}, "an embedding, not a LoRA"),
    ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, "an embedding, not a LoRA"),
    ({key.replace("attn1", "attn2").replace("to_q", "to_k"): torch.ones(4, 999) if "down" in key else one
      for key, one in GOOD.items()}, "another model"),
])
def test_damaged_or_foreign_files(tmp_path, tensors, told):
    save_file(tensors, tmp_path / "a.safetensors")
    error = refused(tmp_path / "a.safetensors")
    assert error.code == BAD_FILE and told in str(error)


@pytest.mark.parametrize("role", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_numbers_that_are_none(tmp_path, role):
    tensors = GOOD | {f"{STEM}.alpha": torch.tensor(1.0)}
    bad = tensors[f"{STEM}.{role}"].clone()
    bad.view(-1)[0] = float("nan")
    save_file(tensors | {f"{STEM}.{role}": bad}, tmp_path / "a.safetensors")
    assert refused(tmp_path / "a.safetensors").code == NUMERICAL


def test_a_lora_of_what_the_model_does_not_have(tmp_path):
    save_file(GOOD, tmp_path / "a.safetensors")
    read_adapter(tmp_path / "a.safetensors", FAMILIES["SD1.x"])
    error = refused(tmp_path / "a.safetensors", cfg=replace(FAMILIES["SD1.x"], unet=SD15_MIDLESS))
    assert STEM in error.why and "1 of its 1" in error.why


def test_pefts_description_is_read_strictly(tmp_path):
    write_adapter(replace(attentions(), entries={p: e for p, e in attentions().entries.items() if p.part == "unet"}),
                  tmp_path / "a", "peft")
    (tmp_path / "a" / "adapter_config.json").write_text("[]")
    assert "not a JSON object" in str(refused(tmp_path / "a"))
    (tmp_path / "a" / "adapter_config.json").unlink()
    assert "no LoRA in this folder" in str(refused(tmp_path / "a"))


# --- algebra ---


def test_merging_is_adding_the_matrices():
    adapter = kin()
    weights = {f"{place.path}.weight": random(*shape, seed=5) for place, shape in zip(
        adapter.entries, [(8, 8, 3, 3), (8, 8, 3, 3), (8, 8), (8, 8), (8, 8)], strict=True)}
    found = algebra.merged(weights | {"other": torch.ones(3)}, adapter.of("unet"), 0.5)
    for place, entry in adapter.entries.items():
        weight = weights[f"{place.path}.weight"]
        assert torch.allclose(found[f"{place.path}.weight"], weight + 0.5 * entry.delta().reshape(weight.shape))
    assert torch.equal(found["other"], torch.ones(3))
    with pytest.raises(MinisdError, match="does not fit"):
        algebra.merged({key: weight[:-1] for key, weight in weights.items()}, adapter.of("unet"))


def test_what_was_merged_is_extracted_again():
    adapter = attentions(rank=3)
    entries = {p: replace(e, tensors={"down": random(3, 16, seed=n), "up": random(8, 3, seed=n + 1)})
               for n, (p, e) in enumerate(adapter.entries.items()) if p.part == "unet"}
    before = {f"{place.path}.weight": random(8, 16, seed=7) for place in entries}
    before["mid.res.0.conv1.weight"] = torch.ones(2, 2, 3, 3)
    after = algebra.merged(before, {place.path: entry for place, entry in entries.items()})
    found, kept = algebra.extracted(before, after, "unet", SMALL, Truncation(rank=3))
    assert found.keys() == entries.keys()         # the convolution is alike in both
    for place, entry in entries.items():
        assert torch.allclose(found[place].delta(), entry.delta(), atol=1e-4)
        assert kept[place].energy == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("how", "rank"), [(Truncation(2), 2), (Truncation(energy=1.0), 3), (Truncation(energy=0.5), 1),
                                           (Truncation(9, 0.999), 3), (Truncation(9), 3)])
def test_truncation_keeps_what_is_asked_for(how, rank):
    values = torch.tensor([3.0, 2.0, 1.0])        # squares 9, 4, 1
    u, v = (torch.linalg.qr(random(n, 3, seed=n))[0] for n in (6, 5))
    down, up, kept = algebra.factors((u * values) @ v.T, how)
    expected = min(rank, 5)
    if how.rank == 9 and how.energy is None:
        assert kept.rank == 5                     # all there are
        return
    assert kept.rank == expected == len(down) == up.shape[1]
    assert kept.energy == pytest.approx(values[:rank].square().sum().item() / 14, abs=1e-5)
    error = torch.linalg.matrix_norm(up @ down - (u * values) @ v.T)
    assert error.item() == pytest.approx(values[rank:].square().sum().sqrt().item(), abs=1e-4)    # Eckart and Young


@pytest.mark.parametrize("told", [{}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.1}, {"energy": float("nan")}])
def test_truncations_that_cannot_be(told):
    with pytest.raises(MinisdError) as error:
        Truncation(**told)
    assert error.value.code == USAGE


def test_kin_resized_are_plain_loras():
    found, _ = algebra.resized(kin(), Truncation(energy=1.0))
    for place, entry in kin().entries.items():
        assert found.entries[place].kind == "lora" and found.entries[place].scale == 1
        assert torch.allclose(found.entries[place].delta(), entry.delta(), atol=1e-4)
    assert found.entries[Place("unet", "down.0.res.0.conv2")].tensors["down"].shape[2:] == (3, 3)


def test_sums_differences_and_averages():
    a, b = attentions(), replace(attentions(rank=2), entries={
        p: replace(e, alpha=3.0) for p, e in list(attentions(rank=2).entries.items())[3:]})
    found = algebra.combined([a, b], [1.0, -0.5])
    for place, entry in a.entries.items():
        other = -0.5 * b.entries[place].delta() if place in b.entries else 0
        assert torch.allclose(found.entries[place].delta(), entry.delta() + other, atol=1e-5)
    with pytest.raises(MinisdError, match="resize it first"):
        algebra.combined([kin(), kin()], [1, 1])
    with pytest.raises(MinisdError, match="different models"):
        algebra.combined([a, replace(a, cfg=FAMILIES["SD1.x"])], [1, 1])
