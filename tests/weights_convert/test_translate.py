"""Tensors through the tables: there and back to the bit, between every two dialects, and nothing strays unseen."""

from itertools import permutations

import pytest
import torch
from tiny import TINY_UNETS

from minisd.clip import CLIPText, CLIPVision
from minisd.config import TINY_TEXT, TINY_VAE, CLIPTextConfig, CLIPVisionConfig
from minisd.errors import MinisdError
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert.tables import clip, unet, vae
from weights_convert.translate import from_ours, to_ours, translate

PROJECTED = CLIPTextConfig(vocab_size=64, width=32, depth=2, heads=4, projection_dim=24)
VISION = CLIPVisionConfig(image_size=28, patch=14, width=32, depth=2, heads=4, projection_dim=24)
PARTS = {
    **{f"unet {name}": (UNet, cfg, unet.rows, unet.DIALECTS) for name, cfg in TINY_UNETS.items()},
    "vae": (VAE, TINY_VAE, vae.rows, vae.DIALECTS),
    "text": (CLIPText, TINY_TEXT, clip.text_rows, clip.DIALECTS),
    "text with projection": (CLIPText, PROJECTED, clip.text_rows, clip.DIALECTS),
    "vision": (CLIPVision, VISION, clip.vision_rows, clip.DIALECTS),
}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("part", PARTS)
def test_there_and_back_is_the_identity_between_every_two_dialects(part):
    model, cfg, rows, dialects = PARTS[part]
    ours = model(cfg).state_dict()
    for one, other in permutations(dialects, 2):
        first = from_ours(ours, rows(cfg, one))
        second = translate(first, rows(cfg, one), rows(cfg, other))
        assert same(translate(second, rows(cfg, other), rows(cfg, one)), first), f"{one} to {other}"
        assert same(to_ours(second, rows(cfg, other)), ours), f"{one} by way of {other}"


def test_a_dialect_has_its_own_layouts():
    ldm = from_ours(VAE(TINY_VAE).state_dict(), vae.rows(TINY_VAE, "ldm"))
    assert ldm["encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    model = CLIPText(PROJECTED)
    openclip = from_ours(model.state_dict(), clip.text_rows(PROJECTED, "openclip"))
    attn = model.layers[1].attn
    fused = torch.cat([attn.q.bias, attn.k.bias, attn.v.bias])
    assert torch.equal(openclip["transformer.resblocks.1.attn.in_proj_bias"], fused)
    assert torch.equal(openclip["text_projection"], model.projection.weight.T)


def test_attention_stored_as_linears_under_ldm_names_is_read_too():
    ldm = from_ours(VAE(TINY_VAE).state_dict(), vae.rows(TINY_VAE, "ldm"))
    squeezed = {name: t[:, :, 0, 0] if "attn_1" in name and t.dim() == 4 else t for name, t in ldm.items()}
    assert same(to_ours(squeezed, vae.rows(TINY_VAE, "ldm")), to_ours(ldm, vae.rows(TINY_VAE, "ldm")))


def test_tensors_are_shared_where_the_layouts_allow():
    ours = CLIPText(TINY_TEXT).state_dict()
    theirs = from_ours(ours, clip.text_rows(TINY_TEXT, "hf"))
    assert {t.data_ptr() for t in theirs.values()} == {t.data_ptr() for t in ours.values()}


def test_what_is_known_and_of_no_use_is_left_behind():
    rows = clip.text_rows(TINY_TEXT, "hf")
    theirs = from_ours(CLIPText(TINY_TEXT).state_dict(), rows)
    with_ids = theirs | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert same(to_ours(with_ids, rows), to_ours(theirs, rows))


def test_a_missing_key_is_named():
    theirs = from_ours(VAE(TINY_VAE).state_dict(), vae.rows(TINY_VAE, "ldm"))
    del theirs["quant_conv.bias"]
    with pytest.raises(MinisdError, match=r"1 keys missing and 0 too many[\s\S]*missing quant_conv\.bias"):
        to_ours(theirs, vae.rows(TINY_VAE, "ldm"))


def test_a_stray_key_is_named():
    theirs = from_ours(VAE(TINY_VAE).state_dict(), vae.rows(TINY_VAE, "ldm")) | {"loss.logvar": torch.zeros(1)}
    with pytest.raises(MinisdError, match=r"0 keys missing and 1 too many[\s\S]*not known loss\.logvar"):
        to_ours(theirs, vae.rows(TINY_VAE, "ldm"))


def test_of_many_keys_ten_are_listed_and_all_counted():
    with pytest.raises(MinisdError) as caught:
        to_ours({}, vae.rows(TINY_VAE, "ldm"))
    needed = len(vae.rows(TINY_VAE, "ldm"))
    assert caught.value.what.startswith(f"{needed} keys missing")
    assert caught.value.why.count(",") == 9 and caught.value.why.endswith(f"and {needed - 10} more")


def test_our_own_keys_are_checked_on_the_way_out():
    ours = VAE(TINY_VAE).state_dict() | {"extra": torch.zeros(1)}
    with pytest.raises(MinisdError, match="not known extra"):
        from_ours(ours, vae.rows(TINY_VAE, "diffusers"))


@pytest.mark.parametrize(("part", "key", "wrong"), [
    ("vae", "encoder.mid.attn_1.q.weight", torch.zeros(32, 32, 3, 3)),
    ("text", "transformer.resblocks.0.attn.in_proj_weight", torch.zeros(2, 32)),
])
def test_a_tensor_that_no_rule_fits_is_named_with_its_shape(part, key, wrong):
    model, cfg, rows, dialects = PARTS[part]
    dialect = list(dialects)[1]
    theirs = from_ours(model(cfg).state_dict(), rows(cfg, dialect)) | {key: wrong}
    with pytest.raises(MinisdError) as caught:
        to_ours(theirs, rows(cfg, dialect))
    assert f"{key} {list(wrong.shape)}" in caught.value.what
