"""diffusers folders as they are found: precisions side by side, shards, .bin, and the names of older versions."""

import json
import shutil

import pytest
import torch
from families import saved, tensors

import minisd
from minisd.errors import MinisdError
from weights_convert.__main__ import main
from weights_convert.looks import differences
from weights_convert.read import read_file
from weights_convert.sources import open_model
from weights_convert.write import save_file, write

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved("bk-tiny", tmp_path_factory.mktemp("diffusers") / "bk-tiny", "diffusers")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def weights(folder, part):
    path = folder / part / f"{STEMS[part]}.safetensors"
    return path, dict(read_file(path, copy=True).tensors)


def rewritten(path, tensors):
    path.unlink()
    save_file(path, tensors, {})


def test_half_precision_beside_full(folder, tmp_path, capsys):
    """A text encoder that is there as its fp16 variant only, beside a UNet in full."""
    path, found = weights(folder, "text_encoder")
    save_file(path.with_name("model.fp16.safetensors"), found, {}, torch.float16)
    path.unlink()
    parts = open_model(folder).parts
    assert {part: {tensor.dtype for tensor in parts[part].tensors.values()} for part in parts} == {
        "unet": {torch.float32}, "vae": {torch.float32}, "text": {torch.float16}}
    for to, target in (("ldm", tmp_path / "x.safetensors"), ("native", tmp_path / "native")):
        write(open_model(folder), target, to)
        assert not list(differences(open_model(folder), open_model(target)))
    sd = minisd.load(folder, "cpu", "float32")
    wanted = found["text_model.embeddings.token_embedding.weight"].half().float()
    assert torch.equal(sd.text[0].token.weight, wanted) and sd.unet.conv_in.weight.dtype == torch.float32
    assert main(["inspect", str(folder)]) == 0
    assert capsys.readouterr().out.count("float16") == 1


def test_full_precision_is_taken_before_half(folder):
    path, found = weights(folder, "unet")
    save_file(path.with_name("diffusion_pytorch_model.fp16.safetensors"), found, {}, torch.float16)
    assert {tensor.dtype for tensor in open_model(folder).parts["unet"].tensors.values()} == {torch.float32}


@pytest.mark.parametrize("variant", ["", "fp16."])
def test_folders_of_bin_files_are_read_by_our_own_reader(variant, whole, folder):
    for part in STEMS:
        path, found = weights(folder, part)
        path.unlink()
        stem = "pytorch_model" if part == "text_encoder" else STEMS[part]
        torch.save(found, path.with_name(f"{stem}.{variant}bin"))
    assert not list(differences(open_model(whole), open_model(folder)))
    sd = minisd.load(folder, "cpu", "float32")
    assert torch.equal(sd.unet.conv_in.weight, weights(whole, "unet")[1]["conv_in.weight"])


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_put_together(ending, whole, folder):
    path, found = weights(folder, "unet")
    path.unlink()
    names = sorted(found)
    shards = {f"part-{n}.{ending}": names[n::3] for n in range(3)}
    for shard, keys in shards.items():
        held = {key: found[key] for key in keys}
        if ending == "bin":
            torch.save(held, path.with_name(shard))
        else:
            save_file(path.with_name(shard), held, {})
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    path.with_name(f"diffusion_pytorch_model.{ending}.index.json").write_text(json.dumps(index))
    assert not list(differences(open_model(whole), open_model(folder)))
    path.with_name(f"part-1.{ending}").unlink()
    with pytest.raises(MinisdError, match=r"shard part-1.* is missing"):
        open_model(folder)


def test_a_vae_of_2022_and_a_bare_text_encoder(whole, folder):
    """As diffusers named the VAE's attention at first, and as transformers 5 names a lone tower."""
    path, found = weights(folder, "vae")
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for key in list(found):
        for ours, theirs in new.items():
            if f".attentions.0.{ours}." in key:
                found[key.replace(ours, theirs)] = found.pop(key)
    rewritten(path, found)
    path, found = weights(folder, "text_encoder")
    rewritten(path, {key.removeprefix("text_model."): tensor for key, tensor in found.items()})
    found = open_model(folder)
    assert [found.parts[part].dialect for part in ("vae", "text")] == ["diffusers-2022", "hf-bare"]
    assert not list(differences(open_model(whole), found))


def test_position_ids_come_back_where_they_were(folder, tmp_path):
    path, found = weights(folder, "text_encoder")
    rewritten(path, found | {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    write(open_model(folder), tmp_path / "x.safetensors", "ldm")
    assert "cond_stage_model.transformer.text_model.embeddings.position_ids" in tensors(tmp_path / "x.safetensors")
    write(open_model(tmp_path / "x.safetensors"), tmp_path / "back", "diffusers")
    before, after = tensors(folder), tensors(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
