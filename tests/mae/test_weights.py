"""Checkpoint files of every kind, good and bad, and what becomes of their weights."""

import argparse
import fractions
import pathlib
import pickle
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from common.errors import InputError
from mae.models_mae import ARCHITECTURES, MaskedAutoencoderViT
from mae.reading import read_checkpoint
from mae.weights import PUBLIC_WEIGHTS, load_pretrained, load_strictly
from tests.foreign import Payload

GOLDEN = Path(__file__).parents[1] / "golden" / "mae_tiny.safetensors"
TINY = dict(img_size=48, patch_size=8, embed_dim=48, depth=3, num_heads=4, mlp_ratio=4.0)
TINY |= dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
BASE = "mae_vit_base_patch16"
SAVE = {"zip": torch.save, "legacy": partial(torch.save, _use_new_zipfile_serialization=False)}


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch):
    """A base architecture that is tiny, so that files under the public names stay small."""
    monkeypatch.setitem(ARCHITECTURES, BASE, lambda **overrides: MaskedAutoencoderViT(**{**TINY, **overrides}))


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in ARCHITECTURES[BASE]().state_dict().items()}


def encoder_of(state):
    return {name: value for name, value in state.items() if "decoder" not in name and name != "mask_token"}


def assert_holds(model, state):
    own = model.state_dict()
    for name, value in state.items():
        assert torch.equal(own[name], value), name


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"model_state": state},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3, device="cuda", sizes=[1, 2])},
    ],
    ids=["bare", "model", "model_state", "module.", "args"],
)
def test_every_wrapping_of_a_state_is_loaded(tmp_path, state, wrap, save):
    save(wrap(state), tmp_path / "weights.pth")
    model = load_pretrained(tmp_path / "weights.pth", BASE)
    assert_holds(model, state)
    assert model.decoder_is_pretrained


def test_safetensors_are_recognised_by_their_content(tmp_path, state):
    save_file(state, tmp_path / "weights.bin")
    assert_holds(load_pretrained(tmp_path / "weights.bin", BASE), state)


@torch.no_grad()
def test_recorded_weights_give_the_recorded_loss(tmp_path):
    golden = load_file(GOLDEN)
    save_file({k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}, tmp_path / "a.pth")
    model = load_pretrained(tmp_path / "a.pth", BASE, norm_pix_loss=True)
    latent, mask, ids_restore = model.forward_encoder(golden["imgs"], 0.75, noise=golden["noise"])
    loss = model.forward_loss(golden["imgs"], model.forward_decoder(latent, ids_restore), mask)
    torch.testing.assert_close(loss, golden["loss_75_norm_pix"].squeeze(), rtol=0, atol=1e-5)


def test_namespace_is_tolerated_for_the_one_reading_only(tmp_path, state):
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["args"] == argparse.Namespace(lr=1e-3)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_mapped_file_gives_the_same_tensors(tmp_path, state):
    torch.save(state, tmp_path / "a.pth")
    for mmap in (False, True):
        read = read_checkpoint(tmp_path / "a.pth", mmap=mmap)
        assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)


# Files that are not checkpoints


def refused(path):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(InputError) as caught:
            read_checkpoint(path)
    assert str(path) in str(caught.value) and not warned
    return str(caught.value)


def test_missing_file_and_folder(tmp_path):
    assert "does not exist" in refused(tmp_path / "no.pth")
    assert "is a folder" in refused(tmp_path)
    assert f"fetch {PUBLIC_WEIGHTS['mae_pretrain_vit_huge.pth']}" in refused(tmp_path / "mae_pretrain_vit_huge.pth")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read")
def test_unreadable_file():
    assert "cannot be read" in refused(Path("/proc/self/mem"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n <!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"\xef\xbb\xbf<HTML>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (bytes(range(1, 200)), r"is not a checkpoint: its 199 bytes begin with b'\x01\x02\x03"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begin with b'version http"),
        (pickle.dumps({"a": 1}), "is a pickle that torch.save did not write"),
        (pickle.dumps(argparse.Namespace(), protocol=2), "is a pickle that torch.save did not write"),
    ],
)
def test_other_bytes(tmp_path, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    assert words in refused(tmp_path / "a.pth")


def test_zeros_that_pack_well_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**28 + 1))
    assert "the pickle in it unpacks to 268,435,457 bytes" in refused(tmp_path / "a.pth")


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("folder/readme.txt", "no weights")
    assert "is an archive without a checkpoint" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("save", [*SAVE.values(), save_file], ids=[*SAVE, "safetensors"])
def test_a_file_cut_off_anywhere_is_called_cut_off(tmp_path, save):
    whole, cut = tmp_path / "whole", tmp_path / "cut.safetensors"
    save({"weight": torch.randn(30), "bias": torch.randn(3)}, whole)
    content = whole.read_bytes()
    for size in {*range(1, 80), *range(80, len(content), 17), len(content) - 1}:
        cut.write_bytes(content[:size])
        assert "cut off" in refused(cut), size


def test_a_dict_is_expected(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    assert "holds a Tensor, not a dict" in refused(tmp_path / "a.pth")


# Files that would run code


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE)
def test_whole_models_are_refused_with_the_way_to_convert_them(tmp_path, save):
    save(nn.Sequential(nn.Linear(2, 3)), tmp_path / "a.pth")
    message = refused(tmp_path / "a.pth")
    assert "is a whole pickled model" in message and "model.state_dict()" in message
    assert ("before torch 1.6" in message) == (save is SAVE["legacy"])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), tmp_path / "a.pth")
    assert "is a TorchScript model" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE)
def test_a_namespace_with_foreign_things_is_refused_by_their_name(tmp_path, state, save):
    save({"model": state, "args": argparse.Namespace(share=fractions.Fraction(1, 2))}, tmp_path / "a.pth")
    assert "holds fractions.Fraction besides" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("save", SAVE.values(), ids=SAVE)
def test_what_training_arguments_hold_is_restored(tmp_path, state, save):
    args = dict(device=torch.device("cuda", 1), out=pathlib.PosixPath("runs"), lr=np.float64(1e-3), n=np.int64(3))
    save({"model": state, "args": argparse.Namespace(**args, ok=np.bool_(True))}, tmp_path / "a.pth")
    read = vars(read_checkpoint(tmp_path / "a.pth")["args"])
    assert read == {**args, "ok": True, "out": pathlib.PurePosixPath("runs")} and type(read["lr"]) is np.float64


def torch_load(path):
    return torch.load(path, weights_only=False)


def pickle_load(path):
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize(
    ("save", "load"),
    [
        (SAVE["zip"], torch_load),
        (SAVE["legacy"], torch_load),
        (partial(torch.save, pickle_protocol=4), torch_load),
        (lambda thing, path: path.write_bytes(pickle.dumps(thing)), pickle_load),
        (lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2)), pickle_load),
    ],
    ids=["zip", "legacy", "protocol 4", "plain pickle", "plain pickle 2"],
)
@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: argparse.Namespace(lr=payload)])
def test_code_in_a_checkpoint_does_not_run(tmp_path, wrap, save, load):
    path, folder = tmp_path / "a.pth", tmp_path / "made by the payload"
    save({"model": {"weight": torch.zeros(3)}, "args": wrap(Payload(folder))}, path)
    assert "might run code" in refused(path) or "safely" in refused(path)
    assert not folder.exists()
    load(path)  # the payload is a live one
    assert folder.exists()


# States


def test_strictness():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3, bias=False)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    fails = partial(pytest.raises, InputError)

    without = {name: value for name, value in state.items() if name != "a.bias"}
    with fails(match=r"file.pth does not fit the model \(1 missing: a.bias\)"):
        load_strictly(model, without, source="file.pth")
    with fails(match=r"1 missing: a.bias"):  # a name is no prefix of others
        load_strictly(model, without, allowed_missing=["a", "b.", "a.bia"], source="file.pth")
    with fails(match=r"1 unexpected: c.weight"):
        load_strictly(model, state | {"c.weight": torch.zeros(1)}, allowed_unexpected=["c"], source="file.pth")
    with fails(match=r"1 of another shape: a.bias \[4\] for \[3\]"):
        load_strictly(model, state | {"a.bias": torch.zeros(4)}, allowed_missing=["a."], source="file.pth")
    assert_holds(model, before)  # nothing was loaded by halves

    assert load_strictly(model, without, allowed_missing=["a."], source="file.pth") == ["a.bias"]
    assert_holds(model, without | {"a.bias": before["a.bias"]})
    assert load_strictly(model, state | {"c.x": torch.zeros(1)}, allowed_unexpected=["c."], source="file.pth") == []
    assert_holds(model, state)


def test_a_file_for_another_architecture_is_named(tmp_path):
    torch.save({"model": ARCHITECTURES["mae_vit_tiny_patch16"]().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(InputError) as caught:
        load_pretrained(tmp_path / "a.pth", "mae_vit_small_patch16")
    message = str(caught.value)
    assert "cls_token [1, 1, 192] for [1, 1, 384]" in message and "…" in message
    assert "for mae_vit_tiny_patch16 of width 192, depth 12, patch 16×16" in message
    assert "the model has width 384, depth 12, patch 16×16" in message


# The public files


def test_the_table_of_public_files():
    assert len(PUBLIC_WEIGHTS) == 11
    root = "https://dl.fbaipublicfiles.com/mae"
    assert PUBLIC_WEIGHTS["mae_visualize_vit_base.pth"] == f"{root}/visualize/mae_visualize_vit_base.pth"
    assert PUBLIC_WEIGHTS["mae_visualize_vit_huge_ganloss.pth"].startswith(f"{root}/visualize/")
    assert PUBLIC_WEIGHTS["mae_pretrain_vit_large.pth"] == f"{root}/pretrain/mae_pretrain_vit_large.pth"


def test_a_file_without_decoder_says_so_and_leaves_the_decoder_fresh(tmp_path, state, capsys):
    torch.save({"model": encoder_of(state)}, tmp_path / "mae_pretrain_vit_base.pth")
    torch.manual_seed(1)
    fresh = ARCHITECTURES[BASE]().state_dict()
    torch.manual_seed(1)
    model = load_pretrained(tmp_path, BASE)
    assert_holds(model, encoder_of(state) | {name: fresh[name] for name in fresh if name not in encoder_of(state)})
    assert not model.decoder_is_pretrained
    assert "mae_pretrain_vit_base.pth: plain vision transformer" in capsys.readouterr().out


def test_half_a_decoder_is_refused(tmp_path, state):
    torch.save({name: value for name, value in state.items() if name != "mask_token"}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="1 missing: mask_token"):
        load_pretrained(tmp_path / "a.pth", BASE)


def test_fixed_positions_may_be_left_out(tmp_path, state):
    fixed = ("pos_embed", "decoder_pos_embed")
    torch.save({name: value for name, value in state.items() if name not in fixed}, tmp_path / "a.pth")
    fresh = ARCHITECTURES[BASE]()
    assert_holds(load_pretrained(tmp_path / "a.pth", BASE), state | {n: fresh.state_dict()[n] for n in fixed})


@pytest.mark.parametrize(
    ("name", "decoder", "args", "overrides", "expected"),
    [
        ("mae_visualize_vit_base.pth", True, None, {}, False),
        ("mine.pth", True, None, {}, False),
        ("mae_pretrain_vit_base_full.pth", True, None, {}, True),
        ("mae_pretrain_vit_base.pth", False, None, {}, True),
        ("mae_visualize_vit_base.pth", False, None, {}, True),
        ("mine.pth", True, {"norm_pix_loss": True}, {}, True),
        ("mae_pretrain_vit_base.pth", True, {"norm_pix_loss": False}, {}, False),
        ("mine.pth", True, {"lr": 1.0}, {}, False),
        ("mae_visualize_vit_base.pth", True, None, {"norm_pix_loss": True}, True),
        ("mine.pth", True, {"norm_pix_loss": True}, {"norm_pix_loss": False}, False),
        ("mae_pretrain_vit_base.pth", False, None, {"norm_pix_loss": False}, False),
    ],
)
def test_which_pixels_a_file_predicts(tmp_path, state, name, decoder, args, overrides, expected):
    checkpoint = {"model": state if decoder else encoder_of(state)}
    torch.save(checkpoint | ({"args": argparse.Namespace(**args)} if args else {}), tmp_path / name)
    model = load_pretrained(tmp_path / name, BASE, **overrides)
    assert model.norm_pix_loss is expected and model.config["norm_pix_loss"] is expected


def test_a_folder_gives_its_preferred_public_file(tmp_path, state, capsys):
    (tmp_path / "mae_visualize_vit_large.pth").write_bytes(b"for another architecture")
    with pytest.raises(InputError) as caught:
        load_pretrained(tmp_path, BASE)
    wanted = ["mae_visualize_vit_base.pth", "mae_pretrain_vit_base_full.pth", "mae_pretrain_vit_base.pth"]
    assert f"holds none of {', '.join(wanted)}: fetch {PUBLIC_WEIGHTS[wanted[0]]} and put" in str(caught.value)

    torch.save({"model": encoder_of(state)}, tmp_path / "mae_pretrain_vit_base.pth")
    load_pretrained(tmp_path, BASE)
    assert "using" not in capsys.readouterr().out
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"model": other}, tmp_path / "mae_visualize_vit_base.pth")
    assert_holds(load_pretrained(tmp_path, BASE), other)
    assert "using mae_visualize_vit_base.pth" in capsys.readouterr().out


def test_sizes_without_public_weights_and_unknown_names(tmp_path):
    with pytest.raises(InputError, match="no public weights for mae_vit_small_patch8"):
        load_pretrained(tmp_path, "mae_vit_small_patch8")
    with pytest.raises(InputError, match="unknown architecture 'mae_base'; there are .*mae_vit_large_patch16"):
        load_pretrained(tmp_path, "mae_base")
