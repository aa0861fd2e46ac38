"""The explorer's page computes what Python computes: affinities, and masks that travel by the rule of `propagate`."""

import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.errors import InputError
from evaluation.explore import encode, pack, write_explorer
from evaluation.features import Source
from evaluation.labels import mask_to_patches, patches_to_mask
from evaluation.propagation import propagate
from evaluation.protocols import protocol
from evaluation.track import track

P = 8
SIZE = (5 * P, 7 * P)  # 5 × 7 patches: not square


def moving_frames(count=6, size=SIZE):
    """Noise that slides to the right under a coloured box; no two patches are equal, so that no rule meets a tie."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 90, (size[0], size[1] + 4 * count, 3), dtype=np.uint8)
    frames = []
    for t in range(count):
        frame = ground[:, 4 * (count - t) :][:, : size[1]].copy()
        frame[10:26, 6 + 4 * t : 24 + 4 * t] = (200, 60 + 20 * (t % 3), 20)
        frames.append(frame + rng.integers(0, 12, frame.shape, dtype=np.uint8))
    return frames


def mean_colours(images):
    """Features [B, h, w, 3·4]: the mean colours of each patch's quarters, about their mean."""
    small = F.avg_pool2d(images.float(), P // 2).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))  # [B, 3, h, 2, w, 2]
    return small.permute(0, 2, 4, 1, 3, 5).flatten(3) / 128 - 1


SOURCE = Source("colours", mean_colours, P)


def rules_of(name, **changes):
    return protocol(name, size=f"{SIZE[0]}x{SIZE[1]}", **changes)


def first_mask():
    mask = np.zeros(SIZE, np.uint8)
    mask[10:26, 6:24] = 2
    mask[30:38, 30:50] = 1
    return mask


@pytest.fixture(scope="module")
def video():
    frames, features, size = encode(moving_frames(), SOURCE, rules_of("dino"), batch=4)
    assert size == SIZE and features.shape == (6, 5, 7, 12)
    return frames, features, pack(features)


def test_packed_features_are_unit_vectors_with_nearly_the_same_cosines(video):
    _, features, packed = video
    small, full = packed.features().flatten(0, 2), F.normalize(features, dim=-1).flatten(0, 2)
    torch.testing.assert_close(small.norm(dim=1), torch.ones(len(small)), atol=1e-6, rtol=0)
    assert (small @ small.T - full @ full.T).abs().max() < 0.01
    assert packed.values.dtype == np.int8 and packed.values.shape[1] % 8 == 0 and packed.values.any(1).all()
    assert packed.variance == pytest.approx(1, abs=1e-5)


def test_the_share_of_variance_and_the_agreement_are_counted():
    torch.manual_seed(0)
    features = torch.randn(3, 4, 6, 40) * torch.linspace(3, 0.1, 40) + 2
    packed = pack(features, budget=3 * 24 * 8)  # 8 components fit
    assert packed.values.shape == (72, 8)
    full = F.normalize(features, dim=-1).flatten(0, 2).double()
    mean = F.normalize(full.mean(0), dim=0)
    rest = full - (full @ mean)[:, None] * mean
    singular = torch.linalg.svdvals(rest).square()
    assert packed.variance == pytest.approx((singular[:8].sum() / singular.sum()).item(), abs=1e-4)
    small, same, lost, pairs = packed.features().flatten(0, 2).double(), 0, 0.0, 0
    for a in range(72):
        for t in range(3):
            if a // 24 != t:
                frame = slice(24 * t, 24 * t + 24)
                right, found = (full[a] @ full[frame].T).argmax(), (small[a] @ small[frame].T).argmax()
                same += int(right == found)
                pairs += 1
                lost = max(lost, ((full[a] @ full[frame].T)[right] - (full[a] @ full[frame].T)[found]).item())
    assert packed.agreement == pytest.approx(same / pairs) and packed.agreement < 0.99
    assert packed.lost == pytest.approx(lost, abs=1e-6)
    assert "less than 99%" in str(packed)


def test_components_are_added_until_the_best_matches_agree():
    torch.manual_seed(0)
    places = torch.randn(1, 4, 6, 10) + 0.05 * torch.randn(3, 4, 6, 10)  # a patch is like its own place elsewhere
    packed = pack(places @ torch.randn(10, 300) + torch.randn(300))
    assert packed.values.shape[1] == 16 and packed.agreement == 1  # of 300; ten dimensions are all there is


def test_too_much_for_a_page_and_too_few_frames_are_said():
    with pytest.raises(InputError, match="72 patches are too many for a page"):
        pack(torch.randn(3, 4, 6, 8), budget=500)
    with pytest.raises(InputError, match="is 1 frame; expected at least 2"):
        encode(moving_frames(1), SOURCE, rules_of("dino"))
    with pytest.raises(InputError, match="48×56 follows one of .*: all must be alike"):
        encode([*moving_frames(2), moving_frames(1, (48, 56))[0]], SOURCE, rules_of("dino"))


def page_of(video, folder, rules, **more):
    frames, _, packed = video
    out = folder / "explore.html"
    names = [f"{t / 10:.2f} s" for t in range(len(frames))]
    written = write_explorer(out, frames, names, packed, SIZE, rules, title="a video", source="colours", **more)
    assert written == out.stat().st_size
    return out


FOLLOW = """
const [mask, start] = arguments, found = Array(FRAMES).fill(null);
const tell = (frame, result, soft) => { found[frame] = [[...result], [...soft]]; };
return travel(Uint8Array.from(mask), start, rules(), tell).then(() => found);
"""
RULES = {
    "dino": rules_of("dino", context=2, radius=2),
    "paper": rules_of("paper", context=3, radius=2.5, top_k=4, temperature=0.2),
    "dinov3": rules_of("dinov3", context=2, radius=2),
    "rsp": rules_of("rsp", context=7, radius=0),
    "no context": rules_of("dino", context=0, radius=3, shape="disk"),
    "filled, all within the radius": rules_of("paper", context=2, radius=3, first_unlimited=False, weights="cut"),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_masks_travel_as_in_python(rules, video, browser, tmp_path):
    """Soft labels to 1e-5 and every pixel, forwards from frame 0, and both ways from the middle."""
    packed, mask = video[2], first_mask()
    browser.open(page_of(video, tmp_path, rules))
    for start in (0, 3):
        found = browser.run(FOLLOW, mask.flatten().tolist(), start)
        soft, values = mask_to_patches(mask, packed.grid, SIZE, rules)
        features = packed.features()
        ways = [features[start:]] + ([features[: start + 1].flip(0)] if start else [])
        for direction, way in zip((1, -1), ways, strict=False):
            for t, labels in enumerate(propagate(way, soft, rules), 1):
                result, own = found[start + direction * t]
                np.testing.assert_allclose(np.reshape(own, labels.shape), labels.numpy(), atol=2e-5)
                expected = patches_to_mask(labels, values, SIZE, SIZE, rules)
                assert (np.reshape(result, SIZE) == expected).mean() > 0.999
        assert browser.run("return compiled !== null")
        browser.run("globalThis.kept = compiled; compiled = null")  # as in a browser without SIMD
        assert browser.run(FOLLOW, mask.flatten().tolist(), start) == found
        browser.run("compiled = kept")
    assert browser.console() == []


@pytest.mark.parametrize("name", ["dino", "paper"])
def test_a_painted_mask_travels_as_track_takes_it(name, video, browser, tmp_path):
    """With the full features of Python, not the page's 8 bits: nearly every pixel is the same."""
    rules = RULES[name]
    followed = [mask for _, mask in track(moving_frames(), first_mask(), SOURCE, rules)]
    browser.open(page_of(video, tmp_path, rules))
    found = browser.run(FOLLOW, first_mask().flatten().tolist(), 0)
    for t in range(1, 6):
        page = np.reshape(found[t][0], SIZE)
        assert followed[t].any() and (page == followed[t]).mean() > 0.98


def test_look_paint_sliders_keys_and_the_saved_mask(video, browser, tmp_path):
    packed = video[2]
    browser.open(page_of(video, tmp_path, RULES["dino"]))
    assert browser.run("return document.querySelector('#predict').hidden")  # these features predict nothing
    browser.click("#canvas", 0.5, 0.3)  # row 1, column 3
    browser.until("current && state.query === 10")
    small = packed.features().flatten(1, 2)
    cosines = small[0, 10] @ small[4].T
    assert browser.run("return current[4].value") == pytest.approx(cosines.max().item(), abs=1e-5)
    assert browser.run("return current[4].best") == cosines.argmax().item()
    strengths = browser.run("return [...current[4].strength]")
    most = max((small[0, 10] @ small[t].T).max().item() for t in range(1, 6))
    np.testing.assert_allclose(strengths, ((cosines - most) / 0.05).exp().clamp(max=1).numpy(), atol=1e-4)
    browser.slide("#topk", 3)
    browser.until("current[4].strength.filter((v) => v > 0).length === 3")
    browser.slide("#topk", 51)
    browser.slide("#radius", 1)
    browser.until("current[4].strength.every((v, k) => v === 0 || Math.abs((k / w | 0) - 1) <= 1)")
    browser.slide("#temperature", -2)
    assert browser.run("return state.look.temperature") == 0.01
    browser.click("#film figure:nth-child(3) canvas", 0.9, 0.9)
    browser.until("state.frame === 2 && state.queryFrame === 2 && state.query === 34")
    browser.keys("#canvas", "\ue012")  # the left arrow
    browser.until("state.query === 33")
    browser.keys("#canvas", ".")
    browser.until("state.frame === 3")

    browser.run("show(0)")
    browser.click("#paint")
    browser.slide("#brush", 8)
    browser.drag("#canvas", [(0.2, 0.4), (0.3, 0.45), (0.35, 0.5)])
    browser.until("document.querySelector('#progress').textContent === 'followed through all frames'")
    shares = browser.run("return state.masks.map((mask) => mask.filter(Boolean).length / mask.length)")
    assert len(shares) == 6 and all(0.02 < share < 0.6 for share in shares), shares
    painted = browser.run("return [...state.painted.mask]")
    png = bytes(browser.run("return savedMask().then((file) => [...file])"))
    (tmp_path / "mask.png").write_bytes(png)
    from evaluation.videos import read_mask

    assert (read_mask(tmp_path / "mask.png").flatten() == painted).all() and max(painted) == 1
    browser.click("#clear")
    assert browser.run("return state.masks.every((mask) => mask === null)")
    browser.keys("#canvas", "\ue007")  # Enter paints where the cursor is
    browser.until("state.masks.every(Boolean)")
    assert browser.console() == []


@pytest.mark.slow
def test_a_phone_looks_and_paints_with_a_finger(video, chromium, tmp_path):
    with chromium(390, 800, touch=True) as browser:
        browser.open(page_of(video, tmp_path, RULES["dino"]))
        browser.run("document.querySelector('#title').textContent = 'a_long_name_without_any_space_of_a_video.mp4'")
        assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
        browser.click("#canvas", 0.1, 0.1)
        browser.until("state.query === 0")
        browser.click("#paint")
        browser.until("state.mode === 'paint'")
        browser.drag("#canvas", [(0.2, 0.4), (0.3, 0.5)])
        browser.until("state.masks.every(Boolean)")
        assert browser.console() == []


def test_the_page_holds_frames_and_protocol(video, tmp_path):
    text = page_of(video, tmp_path, RULES["paper"]).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["grid"] == [5, 7] and data["rules"]["top_k"] == 4 and len(data["frames"]) == 6
    assert str(video[2]) == data["about"] and "100.0% of the variance" in data["about"]
    assert set(re.findall(r"\w+://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
