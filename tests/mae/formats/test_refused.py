"""Files that are something else, or do not fit: each with one sentence."""

import argparse
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from common.errors import InputError
from mae.formats import FAMILIES, identify, load
from mae.formats.opening import open_weights
from tests.foreign import refused


def test_damaged_files_and_other_kinds(tmp_path, cropmae):
    torch.save({"model": cropmae[0]}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "a.pth"
    for size in (3, 500, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "cut off" in refused(path)
    path.write_bytes(b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>")
    assert "is a web page" in refused(path)
    with open(path, "wb") as file:
        file.truncate(5 * 2**30)  # a sparse file: no disk is used
    assert "is not a checkpoint: its 5,368,709,120 bytes begin with" in refused(path)
    path.write_bytes(pickle.dumps({"model": 1}))
    assert "a pickle that torch.save did not write" in refused(path)
    np.savez(tmp_path / "rvm.npz", **{"encoder/patch_embed/kernel": np.zeros(3)})
    assert "NumPy arrays" in refused(tmp_path / "rvm.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "no weights")
    assert "an archive without a checkpoint" in refused(path)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "holds an optimizer's state and no weights"),
        ({"model": {}}, "holds no weights"),
        ({"model": {"a.weight": 1}}, "holds no weights"),
        ({"model.embed_tokens.weight": torch.zeros(9, 4)}, "holds a language model"),
        ({"transformer.wte.weight": torch.zeros(9, 4)}, "holds a language model"),
        ({"conv1.weight": torch.zeros(4, 3, 7, 7)}, "holds a convolutional network"),
        ({"stages.0.blocks.0.conv_dw.weight": torch.zeros(4, 1, 7, 7)}, "holds a convolutional network"),
        ({"layers.0.blocks.0.attn.proj.weight": torch.zeros(9, 2)}, "hierarchical.*such as Swin"),
        ({"blocks.0.attn.qkv.weight": torch.zeros(3, 1), "blocks.2.proj.weight": torch.zeros(3, 1)}, "hierarchical"),
        ({"blocks.0.attn.relative_position_bias_table": torch.zeros(9, 2), "a.weight": torch.zeros(1)}, "holds BEiT"),
        ({"visual.class_embedding": torch.zeros(9), "a.weight": torch.zeros(1)}, "holds CLIP"),
        ({"dist_token": torch.zeros(9), "a.weight": torch.zeros(1)}, "holds DeiT, distilled"),
        ({"blocks.0.temporal_attn.qkv.weight": torch.zeros(9), "time_embed": torch.zeros(1)}, "holds TimeSformer"),
        ({"a.weight": torch.zeros(4), "b.weight": torch.zeros(1)}, "of no family known here.*found a.weight, b.weight"),
        ({"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2, 2), "blocks.0.attn.qkv.bias": torch.zeros(12)}, "V-JEPA"),
        ({"rope_embed.periods": torch.zeros(4), "a.weight": torch.zeros(1)}, "looks like DINOv3, but does not fit"),
    ],
)
def test_what_is_in_the_file_is_named(tmp_path, state, words):
    torch.save(state, tmp_path / "a.pth")
    assert re.search(words, refused(tmp_path / "a.pth"))


def test_the_kind_and_the_first_names_that_do_not_fit(tmp_path, golden):
    path = tmp_path / "a.pth"

    def changed(name, change):
        recorded = golden(name)
        torch.save({"model": change(dict(recorded.state)), "args": argparse.Namespace()}, path)
        return refused(path, num_heads=recorded.num_heads)

    said = changed("cropmae", lambda state: {k: v for k, v in state.items() if k.startswith("decoder")})
    assert "looks like CropMAE, but its encoder is not in it" in said and "found decoder_blocks.0.linear1.bias" in said
    said = changed("rsp", lambda state: {k: v for k, v in state.items() if "blocks.1.attn.proj" not in k})
    assert "looks like RSP, but does not fit (2 missing: blocks.1.attn.proj.weight, blocks.1.attn.proj.bias" in said
    said = changed("tobo", lambda state: {**state, "adapter.weight": torch.zeros(3)})
    assert "looks like ToBo, but does not fit (1 unexpected: adapter.weight)" in said
    said = changed("catmae", lambda state: {**state, "norm.weight": torch.zeros(5)})
    assert "looks like CatMAE, but does not fit (1 of another shape: norm.weight [5] for [36])" in said
    said = changed("videomae", lambda state: {k: v for k, v in state.items() if not k.endswith("v_bias")})
    assert "looks like VideoMAE, but does not fit" in said and "blocks.0.attn" in said
    said = changed("cropmae", lambda state: {**state, "pos_embed": torch.zeros(1, 60, 48)})
    assert "60 positions are no square" in said
    said = changed("cropmae", lambda state: {k: v[:1].squeeze() for k, v in state.items()})
    assert "looks like CropMAE, but does not fit" in said


def test_unknown_kinds_and_options(tmp_path, golden):
    path = golden("cropmae").write(tmp_path)
    with pytest.raises(InputError, match="kind 'crop' is unknown; there are .*cropmae"):
        load(path, kind="crop")
    with pytest.raises(InputError, match="'heads=4' is no option of a file"):
        load(f"{path},heads=4")
    odd = path.rename(tmp_path / "a,num_heads=9.pth")
    assert load(odd, num_heads=4).encoder.num_heads == 4  # a name is taken as it is


@pytest.mark.parametrize("kind", [name for name, family in FAMILIES.items() if not family.refused])
def test_a_file_forced_into_another_kind_is_one_sentence(tmp_path, golden, kind):
    for name in ("videomae", "replicate_siammae", "timm_vit"):
        folder = tmp_path / name
        folder.mkdir()
        path = golden(name).write(folder)
        if identify(open_weights(path)) is FAMILIES[kind]:
            continue
        try:
            loaded = load(path, kind=kind, num_heads=4)
        except InputError:
            continue
        assert loaded.encoder.embed_dim == golden(name).config.get("embed_dim", 48)  # a plain one under the same names
