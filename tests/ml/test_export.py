"""Exports are opened by the programs that they are for, give the same features, and come back with the same weights."""

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from cli.main import main
from common.errors import InputError
from mae.formats import load, load_encoder
from mae.models_mae import MAEEncoder, MaskedAutoencoderViT
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE
from mae.patches import normalize
from mae.weights import load_pretrained, load_pretrained_st
from ml.export import WRITERS, write_folder
from ml.foreign import open_model
from ml.SiamMAE import SiamMAE

ROOT = Path(__file__).parents[2]
SIZES = dict(img_size=48, patch_size=8, embed_dim=48, depth=2, num_heads=4, mlp_ratio=4.0)
close = dict(rtol=0, atol=1e-5)


def shaken(model):
    """The model with no weight as it was initialised."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict().values():
            value += 0.1 * torch.randn_like(value)
    return model.eval()


@pytest.fixture
def pairs():
    return shaken(SiamMAE(MAEEncoder(**SIZES), 0.9, decoder_size=(32, 2, 4)))


@pytest.fixture
def mae():
    return shaken(MaskedAutoencoderViT(**SIZES, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4))


@pytest.fixture
def clips():
    sizes = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4, num_frames=4, pred_t_dim=2)
    return shaken(SpatiotemporalMAE(**{**SIZES, **sizes}))


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)


def assert_same(own, others):
    assert own.keys() == others.keys()
    assert all(torch.equal(own[name], others[name]) for name in own)


@pytest.mark.parametrize("to", ["timm", "hf", "public", "jax"])
@torch.no_grad()
def test_every_format_comes_back_bit_for_bit(to, pairs, images, tmp_path):
    write_folder(pairs, tmp_path / to, to, {"run": "mine"})
    files = [p for p in (tmp_path / to).iterdir() if p.suffix in (".pth", ".safetensors")]
    again = load_pretrained(files[0], None)
    own = pairs.encoder.state_dict()
    assert_same(own, {name: value for name, value in again.state_dict().items() if name in own})
    encoder = load_encoder(tmp_path / to)  # heads, size and statistics are in the folder
    torch.testing.assert_close(encoder.encode(images), pairs.encode(images), **close)


@torch.no_grad()
def test_the_public_names_bring_the_decoder_along(pairs, tmp_path):
    write_folder(pairs, tmp_path / "out", "public", {})
    state = torch.load(tmp_path / "out" / "model.pth", weights_only=True)["model"]
    names = {"decoder_embed_mae.weight", "decoder_blocks.1.norm_kv1.bias", "decoder_blocks.0.cattn.kv.weight"}
    assert names <= state.keys()
    again, _ = open_model(str(tmp_path / "out" / "model.pth"))
    assert_same(pairs.state_dict(), again.state_dict())
    assert again.config == pairs.config


@pytest.mark.parametrize("kind", ["cross", "joint", "rotary"])
def test_a_decoder_that_no_public_code_has_stays_at_home(kind, tmp_path):
    model = shaken(SiamMAE(MAEEncoder(**SIZES), 0.9, decoder_size=(32, 1, 4), decoder_kind=kind))
    write_folder(model, tmp_path / "out", "public", {})
    state = torch.load(tmp_path / "out" / "model.pth", weights_only=True)["model"]
    assert_same(model.encoder.state_dict(), state)


def test_mae_and_mae_st_under_their_public_names(mae, clips, tmp_path):
    write_folder(mae, tmp_path / "mae", "public", {})
    assert_same(mae.state_dict(), load_pretrained(tmp_path / "mae" / "model.pth", None).state_dict())
    write_folder(clips, tmp_path / "st", "public", {})
    state = torch.load(tmp_path / "st" / "model.pth", weights_only=True)["model"]
    assert "blocks.0.attn.q.weight" in state and "decoder_pos_embed_temporal" in state
    loaded = load(tmp_path / "st" / "model.pth")
    assert loaded.family.name == "MAE-ST" and loaded.encoder.num_heads == 4
    own = clips.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.encoder.state_dict().items())


def test_a_mae_st_as_a_folder_of_the_hub(clips, tmp_path, monkeypatch):
    """Transformers has no such model: our configuration, the public names, a card."""
    write_folder(clips, tmp_path / "out", "hf", {"run": "mine"}, licence="cc-by-4.0")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mae_st"
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: cc-by-4.0\n")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert_same(clips.public_state_dict(), state)
    loaded, images = load(tmp_path / "out"), torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(loaded.encoder.encode(images), clips.encode(images), **close)
    arch = "mae_st_vit_small_patch16"
    monkeypatch.setitem(ARCHITECTURES_ST, arch, lambda **kw: SpatiotemporalMAE(**{**clips.architecture, **kw}))
    assert_same(clips.state_dict(), load_pretrained_st(tmp_path / "out", arch).state_dict())


@torch.no_grad()
def test_timm_opens_the_folder_with_our_pixel_statistics(pairs, images, tmp_path):
    write_folder(pairs, tmp_path / "out", "timm", {}, licence="cc-by-nc-4.0")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert theirs.pretrained_cfg["mean"] == [0.485, 0.456, 0.406] and theirs.pretrained_cfg["license"] == "cc-by-nc-4.0"
    assert theirs.pretrained_cfg["input_size"] == [3, 48, 48] and not theirs.pretrained_cfg["fixed_input_size"]
    features = theirs.forward_features(normalize(images))[:, 1:].unflatten(1, (6, 6))
    torch.testing.assert_close(features, pairs.encode(images), **close)
    assert theirs.forward_features(torch.zeros(1, 3, 40, 64)).shape == (1, 41, 48)  # dynamic_img_size


@torch.no_grad()
def test_transformers_opens_the_encoder(pairs, images, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_folder(pairs, tmp_path / "out", "hf", {})
    theirs, report = transformers.ViTModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} <= {"pooler"} and not report["unexpected_keys"]
    features = theirs.eval()(normalize(images)).last_hidden_state[:, 1:].unflatten(1, (6, 6))
    torch.testing.assert_close(features, pairs.encode(images), **close)
    wide = torch.randint(0, 256, (1, 3, 40, 64), dtype=torch.uint8)
    features = theirs(normalize(wide), interpolate_pos_encoding=True).last_hidden_state[:, 1:].unflatten(1, (5, 8))
    torch.testing.assert_close(features, pairs.encode(wide), **close)
    size = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert size["image_std"] == [0.229, 0.224, 0.225] and size["size"] == {"height": 48, "width": 48}


@torch.no_grad()
def test_transformers_opens_a_mae_with_its_decoder(mae, images, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_folder(mae, tmp_path / "out", "hf", {})
    theirs, report = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    noise = torch.rand(2, 36)
    loss, prediction, _ = mae(images, 0.75, noise=noise)
    out = theirs.eval()(normalize(images), noise=noise)
    torch.testing.assert_close(out.logits, prediction, **close)
    torch.testing.assert_close(out.loss, loss, **close)
    assert_same(mae.state_dict(), load_pretrained(tmp_path / "out", None).state_dict())


@pytest.mark.slow
@torch.no_grad()
def test_onnx_gives_the_same_features_at_any_size(pairs, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    write_folder(pairs, tmp_path / "out", "onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for batch, height, width in ((3, 48, 48), (1, 40, 64), (1, 240, 440)):
        images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        (features,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(features, pairs.encode(images).numpy(), rtol=0, atol=2e-5)


@torch.no_grad()
def test_what_is_handed_to_onnx_is_the_encoder(pairs, images, tmp_path, monkeypatch):
    """The translation itself takes long: the test before."""
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

    def export(module, given, **_):
        assert given[0].dtype == torch.uint8
        return SimpleNamespace(save=lambda path: torch.save(module(images), path))

    monkeypatch.setattr(torch.onnx, "export", export)
    write_folder(pairs, tmp_path / "out", "onnx", {})
    assert torch.equal(torch.load(tmp_path / "out" / "model.onnx"), pairs.encode(images))


@pytest.mark.slow
@torch.no_grad()
def test_jax_gives_the_same_features(pairs, tmp_path):
    jax_encoder = pytest.importorskip("ml.jax_encoder", reason="needs the extra jax", exc_type=ImportError)
    write_folder(pairs, tmp_path / "out", "jax", {})
    params = jax_encoder.load(tmp_path / "out" / "encoder.safetensors")
    for height, width in ((48, 48), (40, 72)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        expected = pairs.encode(images).numpy()
        np.testing.assert_allclose(jax_encoder.encode(params, images.numpy()), expected, rtol=0, atol=1e-5)
        floats = images.float() / 255
        np.testing.assert_allclose(jax_encoder.encode(params, floats.numpy()), expected, rtol=0, atol=1e-5)
    encode, patch_size = jax_encoder.torch_encode(tmp_path / "out" / "encoder.safetensors")
    assert patch_size == 8 and torch.is_tensor(encode(images))
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"a.safetensors is no encoder that `siammae export RUN --to jax` wrote"):
        jax_encoder.load(tmp_path / "a.safetensors")


def test_formats_without_clips_say_so(clips, tmp_path):
    for to in ("timm", "jax"):
        with pytest.raises(InputError, match="a model of clips.*--to public, hf and onnx"):
            write_folder(clips, tmp_path / "out", to, {})
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_the_card_tells_what_the_run_recorded(pairs, tmp_path):
    record = {
        "run": "mine_2026", "epoch": 400, "step": 20_043, "run_config": {"mask_ratio": 0.9, "min_gap": 4},
        "settings": {"batch_size": 8, "data": {"videos": 311, "digest": "ab12"}},
    }  # fmt: skip
    scores = ["DAVIS 2017 val: J&F-Mean 51.4 (protocol dino, short240)"]
    write_folder(pairs, tmp_path / "out", "timm", record, scores=scores, licence="cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: timm\n")
    for words in (
        "# mine_2026", "| steps | 20043 |", "| mask ratio | 0.9 |", "| least gap (1/30 s) | 4 |",
        "| data | videos 311, digest ab12 |", scores[0], 'create_model("local-dir:out"', "| embed_dim | 48 |",
    ):  # fmt: skip
        assert words in card, words
    code = card.split("```python\n")[1].split("```")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = code.replace("local-dir:out", f"local-dir:{tmp_path / 'out'}")
        exec(compile(code, "card", "exec"), {"pixels": torch.zeros(1, 3, 48, 48)})


def test_the_command(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    results = dict(row={"J&F-Mean": 0.514}, in_words="DAVIS 2017 val", source="micro", protocol={"top_k": 5, "n": 7})
    (tmp_path / "results" / "results.json").write_text(json.dumps(results))
    words = ["export", "siammae_micro_64", "--to", "timm", "--out", str(tmp_path / "out"), "--root", str(ROOT)]
    assert main([*words, "--results", str(tmp_path / "results")]) == 0
    assert "README.md, config.json, model.safetensors" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "DAVIS 2017 val: J&F-Mean 51.4 (source micro; protocol top_k 5, n 7)" in card and "| steps | 20043 |" in card
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    assert main([*words[:-4], "--out", str(tmp_path / "b"), "--results", str(tmp_path)]) == 2
    assert "holds no results of siammae eval" in capsys.readouterr().err
    assert set(load_file(tmp_path / "out" / "model.safetensors")) >= {"cls_token", "blocks.5.attn.qkv.weight"}


def test_torch_hub_without_the_reading_and_drawing_packages(pairs, tmp_path, monkeypatch):
    """That what it imports needs none of them either, `test_layout` says."""
    for name in ("av", "tyro", "matplotlib", "requests", "cv2", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)
    torch.save({"model": pairs.state_dict(), "config": pairs.config, "epoch": 1}, tmp_path / "a.pt")
    model, encoder = (
        torch.hub.load(str(ROOT), name, weights=str(tmp_path / "a.pt"), source="local")
        for name in ("siammae", "encoder")
    )
    images = torch.zeros(1, 3, 48, 48)
    assert torch.equal(model.encode(images), encoder.encode(images)) and model.mask_ratio == 0.9


def test_every_writer_has_a_test():
    assert set(WRITERS) == {"timm", "hf", "public", "onnx", "jax"}
