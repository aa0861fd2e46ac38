"""One model in every wrapping that files have."""

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from datetime import datetime
from fractions import Fraction
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common.errors import InputError
from mae.formats import load, load_encoder
from mae.models_mae import MAEEncoder, MaskedAutoencoderViT
from tests.foreign import Payload, refused

legacy = partial(torch.save, _use_new_zipfile_serialization=False)


def read(path, num_heads=4, **options):
    return load_encoder(path, num_heads=num_heads, say=lambda line: None, **options)


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("save", [torch.save, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "base_encoder.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "net.encoder.",
        "encoder.",
    ],
)
@torch.no_grad()
def test_prefixes(tmp_path, cropmae, prefix, save):
    state, images, features = cropmae
    save({"model": {prefix + name: value for name, value in state.items()}}, tmp_path / "a.pth")
    torch.testing.assert_close(read(tmp_path / "a.pth").encode(images), features, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, other: {"state_dict": state, "epoch": 3},
        lambda state, other: {"module": state},
        lambda state, other: {"model": {"state_dict": state}},
        lambda state, other: {"model": other, "model_ema": state, "optimizer": {"state": {}}},
        lambda state, other: {"state_dict": other, "state_dict_ema": state},
        lambda state, other: {"student": other, "teacher": state},
        lambda state, other: {"net": other, "ema_model": {"module": state}},
        lambda state, other: {"ema_state_dict": state, "optimizer": {"a.weight": torch.zeros(1)}},
        lambda state, other: below("student.", other) | below("teacher.", state),
        lambda state, other: {"model": state, "args": argparse.Namespace(lr=np.float64(1), device=torch.device("cpu"))},
    ],
    ids=["state_dict", "module", "nested", "model_ema", "state_dict_ema", "teacher", "ema_model", "ema_state_dict",
         "flat teacher", "args"],
)  # fmt: skip
@torch.no_grad()
def test_of_several_models_the_averaged_one_is_used_and_that_is_said(tmp_path, cropmae, wrap, request):
    state, images, features = cropmae
    other = {name: value * 2 for name, value in state.items()}
    torch.save(wrap(state, other), tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth", num_heads=4)
    torch.testing.assert_close(loaded.encoder.encode(images), features, rtol=0, atol=5e-5)
    averaged = any(word in request.node.callspec.id for word in ("ema", "teacher"))
    assert ("averaged weights" in loaded.about or "the teacher" in loaded.about) == averaged


class Node:
    """As OmegaConf's: values below `_val`, mappings below `_content`."""

    def __init__(self, value):
        self.__dict__["_content" if isinstance(value, dict) else "_val"] = (
            {name: Node(inner) for name, inner in value.items()} if isinstance(value, dict) else value
        )


class Attributes(dict):
    """As Lightning's AttributeDict."""


@pytest.mark.parametrize(
    "settings",
    [
        {"num_heads": 4}, {"model": {"num_heads": 4}}, {"encoder": {"num_attention_heads": 4}}, Node({"num_heads": 4}),
        Node({"lr": 0.1, "model": {"num_heads": 4}}), Attributes(num_heads=4), SimpleNamespace(num_heads=4),
        argparse.Namespace(num_heads=4, when=datetime(2026, 1, 1), seen=defaultdict(list), rng=np.zeros(3)),
    ],
    ids=lambda settings: type(settings).__name__,
)  # fmt: skip
@pytest.mark.parametrize("save", [torch.save, legacy], ids=["zip", "legacy"])
def test_settings_of_every_kind_tell_the_heads(tmp_path, cropmae, settings, save):
    save({"state_dict": below("model.", cropmae[0]), "hyper_parameters": settings}, tmp_path / "a.ckpt")
    assert load(tmp_path / "a.ckpt").encoder.num_heads == 4


@pytest.mark.parametrize("about", [{"num_heads": "4"}, {"format": "pt", "config": '{"num_heads": 4, "cls": true}'}])
def test_the_metadata_of_safetensors_are_settings(tmp_path, golden, about):
    recorded = golden("dino")
    state = recorded.below("state.teacher.backbone.")
    save_file(state, tmp_path / "a.safetensors", {**about, "num_heads": "5"})
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.family.name == "DINO, backbone" and loaded.encoder.num_heads == 5


def test_a_name_may_mislead(tmp_path, cropmae):
    for name in ("a.safetensors", "b.pth.tar", "c.bin", "d"):
        torch.save({"model": cropmae[0]}, tmp_path / name)
        assert load(tmp_path / name, num_heads=4).family.name == "CropMAE"


@torch.no_grad()
def test_shards(tmp_path, golden):
    recorded = golden("hf_vitmae")
    recorded.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = list(recorded.state)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: recorded.state[name] for name in inside}, tmp_path / file, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, inside in parts.items() for name in inside}}))
    for place in (tmp_path, index):
        features = load(place).encoder.encode(recorded.video("images_40x64"))
        torch.testing.assert_close(features, recorded["features_40x64"], rtol=0, atol=5e-5)
    (tmp_path / "two.safetensors").unlink()
    assert "names 2 files, of which two.safetensors are missing" in refused(index)
    save_file({"a": torch.zeros(1)}, tmp_path / "two.safetensors")
    assert f"its files hold no {names[1]}" in refused(index)
    index.write_text("{}")
    assert "names no files" in refused(index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_16_bit_weights_become_32(tmp_path, cropmae, dtype):
    state, images, _ = cropmae
    halves = {name: value.to(dtype) for name, value in state.items()}
    save_file(halves, tmp_path / "a.safetensors")
    torch.save({"model": {name: value.float() for name, value in halves.items()}}, tmp_path / "b.pth")
    loaded = load(tmp_path / "a.safetensors", num_heads=4)
    assert "from 16-bit weights" in loaded.about
    assert torch.equal(loaded.encoder.encode(images), read(tmp_path / "b.pth").encode(images))


def test_dinos_backbone_alone_is_read_as_dino_reads_it(tmp_path, golden):
    recorded = golden("dino")
    torch.save(recorded.below("state.teacher.backbone."), tmp_path / "dino_deitsmall8_pretrain.pth")
    loaded = load(tmp_path / "dino_deitsmall8_pretrain.pth", num_heads=5)
    assert loaded.family.name == "DINO, backbone" and loaded.encoder.std == (0.228, 0.224, 0.225)
    with torch.no_grad():
        features = loaded.encoder.encode(recorded.video("images_48x80"))
    torch.testing.assert_close(features, recorded["features_48x80"], rtol=0, atol=5e-5)
    forced = read(tmp_path / "dino_deitsmall8_pretrain.pth", 5, kind="mae_encoder")
    assert forced.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("wrap", "name", "heads"),
    [
        (lambda bare: {"state_dict": below("module.base_encoder.", bare) | below("module.momentum_encoder.", bare)},
         "plain vision transformer, ViT-S/16", 12),  # MoCo v3's
        (lambda bare: {"state_dict": bare, "epoch": 1}, "plain vision transformer, ViT-S/16", 6),  # iBOT's
        (lambda bare: {name: below("module.", {k: v for k, v in bare.items() if k != "cls_token"})
                       for name in ("encoder", "target_encoder")}, "plain vision transformer, ViT-S/16", 6),  # I-JEPA's
        (lambda bare: {"student": bare, "teacher": bare | {"masked_embed": torch.zeros(1)}}, "DINO, ViT-S/16", 6),
    ],
    ids=["MoCo v3", "iBOT", "I-JEPA", "iBOT in training"],
)  # fmt: skip
def test_encoders_without_marks(tmp_path, wrap, name, heads):
    bare = MAEEncoder(img_size=32, embed_dim=384, depth=12, num_heads=6).state_dict()
    bare["pos_embed"] = torch.randn(1, 5, 384)
    state = wrap(bare)
    if "target_encoder" in state:
        for part in state.values():
            part["module.pos_embed"] = part["module.pos_embed"][:, 1:]
    torch.save(state, tmp_path / "a.pth.tar")
    loaded = load(tmp_path / "a.pth.tar")
    assert loaded.about.startswith(name) and loaded.encoder.num_heads == heads and loaded.encoder.grid == (2, 2)


@torch.no_grad()
def test_blocks_in_chunks(tmp_path, golden):
    recorded = golden("tcore")
    chunked = {re.sub(r"blocks\.(\d+)\.", r"blocks.\1.\1.", name): value for name, value in recorded.state.items()}
    torch.save({"teacher": chunked}, tmp_path / "a.pth")
    features = read(tmp_path / "a.pth").encode(recorded.video("images_48x80"))
    torch.testing.assert_close(features, recorded["features_48x80"], rtol=0, atol=5e-5)


@torch.no_grad()
def test_the_spellings_of_transformers(tmp_path, golden):
    """As 4 and 5 write ViTMAE, as 5 has it in memory, and the encoder alone without `vit.`."""
    recorded = golden("hf_vitmae")
    images, features = recorded.video("images_40x64"), recorded["features_40x64"]
    spellings = {
        "decoder_encoder": lambda n: n.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."),
        "five": lambda n: (
            re.sub(r"attention\.attention\.(.)\w+", r"attention.\1_proj", n)
            .replace("vit.encoder.layer.", "vit.layers.")
            .replace("attention.output.dense", "attention.o_proj")
            .replace("intermediate.dense", "mlp.fc1")
            .replace("output.dense", "mlp.fc2")
        ),
        "alone": lambda n: n.removeprefix("vit.") if n.startswith("vit.") else None,
        "inside": lambda n: f"model.{n}",
    }
    for name, spell in spellings.items():
        folder = tmp_path / name
        folder.mkdir()
        recorded.write(folder)
        state = {spell(key): value for key, value in recorded.state.items() if spell(key)}
        assert state.keys() != recorded.state.keys()
        save_file(state, folder / "model.safetensors")
        loaded = load(folder)
        torch.testing.assert_close(loaded.encoder.encode(images), features, rtol=0, atol=5e-5)
        assert ("MAE's decoder" in loaded.about) == (name != "alone")
        if name != "alone":
            decoder = loaded.decoder()
            assert decoder.size == (36, 2, 3) and "decoder_blocks.1.attn.qkv.weight" in decoder.state


@torch.no_grad()
def test_a_fine_tuned_videomae_has_its_norm_after_pooling(tmp_path, golden):
    recorded = golden("videomae")
    state = {k.removeprefix("encoder."): v for k, v in recorded.state.items() if k.startswith("encoder.")}
    state = {re.sub("^norm", "fc_norm", k): v for k, v in state.items()} | {"head.weight": torch.zeros(7, 48)}
    torch.save({"module": state}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth", num_heads=4)
    assert loaded.family.name == "VideoMAE"
    features = loaded.encoder.encode_clip(recorded.video("clip"))
    torch.testing.assert_close(features, recorded["features"], rtol=0, atol=5e-5)


def test_another_gelu_is_refused(tmp_path, golden):
    folder = golden("timm_vit").write(tmp_path, architecture="vit_base_patch16_clip_quickgelu_224")
    with pytest.raises(InputError, match="does not fit timm's vit_base_patch16_clip_quickgelu_224"):
        load(folder, num_heads=4)


def test_a_folder_with_several_weights_asks_for_one(tmp_path, cropmae):
    for name in ("a.pth", "b.pth"):
        torch.save({"model": cropmae[0]}, tmp_path / name)
    with pytest.raises(InputError, match=r"it holds 2: a.pth, b.pth\); name one file"):
        load(tmp_path)
    (tmp_path / "b.pth").unlink()
    assert load(tmp_path, num_heads=4).family.name == "CropMAE"
    (tmp_path / "a.pth").unlink()
    with pytest.raises(InputError, match="it holds none"):
        load(tmp_path)


# Whole pickled modules


class Whole(nn.Module):
    """Like eleander/SiamMAE's: the module itself is what is saved."""

    def __init__(self, state, heads):
        super().__init__()
        self.mask_ratio = 0.75
        self.mae = nn.Module()
        for name, value in state.items():
            *path, last = name.removeprefix("mae.").split(".")
            place = self if name.startswith("cross_decoder") else self.mae
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.register_parameter(last, nn.Parameter(value))
        self.mae.norm_pix_loss = False
        self.mae.blocks._modules["0"].attn.num_heads = heads


@pytest.mark.parametrize(
    "wrap", [lambda module: module, lambda module: {"model": module, "epoch": 4}], ids=["bare", "dict"]
)
@torch.no_grad()
def test_a_whole_module_is_read_without_its_code(tmp_path, golden, monkeypatch, wrap):
    recorded = golden("eleander_siammae")
    elsewhere = ModuleType("nowhere_to_be_found")
    monkeypatch.setitem(sys.modules, elsewhere.__name__, elsewhere)
    kind = type("SiamMAE", (Whole,), {"__module__": elsewhere.__name__})
    elsewhere.SiamMAE = kind
    torch.save(wrap(kind(recorded.state, 4)), tmp_path / "100.pt")
    monkeypatch.undo()
    loaded = load(tmp_path / "100.pt")  # the heads are among the module's attributes
    assert loaded.family.name == "SiamMAE of eleander" and loaded.encoder.num_heads == 4
    assert loaded.weights.settings["mask_ratio"] == 0.75 and loaded.weights.settings["norm_pix_loss"] is False
    features = loaded.encoder.encode(recorded.video("images_32x32"))
    torch.testing.assert_close(features, recorded["features_32x32"], rtol=0, atol=5e-5)
    published = recorded["features_as_published"]  # raw pixels sent into the blocks
    assert not torch.allclose(features, published, atol=1e-2)


@torch.no_grad()
def test_a_whole_module_of_real_parts(tmp_path):
    """timm's blocks with all that they carry: enumerations, functions, partial ones."""
    sizes = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    mae = MaskedAutoencoderViT(img_size=48, patch_size=8, embed_dim=48, depth=2, num_heads=4, **sizes).eval()
    mae.drop, mae.table, mae.odd = partial(nn.Dropout, p=0.1), {"a": {1, 2}}, Fraction(1, 3)
    torch.save(mae, tmp_path / "whole.pt")
    loaded = load(tmp_path / "whole.pt")
    assert loaded.about == "MAE, ViT-48×2/8, 2 blocks, 4 heads; with MAE's decoder"
    assert loaded.decoder().size == (32, 1, 4) and loaded.decoder().norm_pix_loss
    images = torch.randint(0, 256, (1, 3, 40, 64), dtype=torch.uint8)
    torch.testing.assert_close(loaded.encoder.encode(images), mae.encode(images), rtol=0, atol=1e-5)


class Command(Payload):
    def __reduce__(self):
        return subprocess.run, (["mkdir", str(self.folder)],)


@pytest.mark.parametrize("payload", [Payload, Command])
@pytest.mark.parametrize("save", [torch.save, legacy], ids=["zip", "legacy"])
def test_code_in_a_whole_module_does_not_run(tmp_path, golden, save, payload):
    module = Whole(golden("eleander_siammae").state, 4)
    module.payload = payload(tmp_path / "made")
    save(module, tmp_path / "a.pt")
    with pytest.raises(InputError, match="might run code"):
        load(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "made").exists()  # it was a live one
