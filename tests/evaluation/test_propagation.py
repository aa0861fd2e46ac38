"""Propagation against recorded outputs of the public scripts, against nested loops, and against what must follow."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import InputError
from evaluation import propagation
from evaluation.labels import winners
from evaluation.propagation import Context, propagate, propagate_step, tiles, top
from evaluation.protocols import NAMED as PROTOCOLS
from evaluation.protocols import protocol

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "label_propagation.npz"
BUDGETS = (2**30, 3000, 1)  # bytes: one tile, several, one patch each


@pytest.fixture
def within(monkeypatch):
    """Sets the bytes for similarities, which never change a result."""
    return lambda budget: [monkeypatch.setitem(propagation.BUDGETS, device, budget) for device in ("cpu", "cuda")]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def random_video(frames, h=6, w=5, D=8, M=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(frames, h, w, D, generator=generator)
    return features, torch.rand(h, w, M, generator=generator).softmax(-1)


@pytest.mark.parametrize("budget", BUDGETS)
def test_equals_the_public_dino_script(golden, budget, within):
    within(budget)
    rules = protocol("dino", radius=2, top_k=5)
    context = Context(F.normalize(golden["dino_features"], dim=-1), golden["dino_labels"], near=1, far=0)
    close(propagate_step(F.normalize(golden["dino_target"], dim=-1), context, rules), golden["dino_out"])
    rules = rules.with_(context=3)
    labels = propagate(golden["dino_seq_frames"], golden["dino_seq_first"], rules)
    close(torch.stack(list(labels)), golden["dino_seq_out"])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("radius", "expected"), [(2.5, "videowalk_out"), (2, "videowalk_radius2_out")])
def test_equals_the_public_videowalk_script(golden, radius, expected, budget, within):
    within(budget)
    rules = protocol("paper", context=3, radius=radius)
    labels = torch.stack(list(propagate(golden["videowalk_frames"], golden["videowalk_first"], rules)))
    close(labels, golden[expected][1:])
    # what the recorded case is there to tell apart
    for other in ({"radius": radius + 0.01}, {"filled": False}, {"first_unlimited": False}):
        changed = propagate(golden["videowalk_frames"], golden["videowalk_first"], rules.with_(**other))
        differs = (torch.stack(list(changed)) - golden[expected][1:]).abs().max() > 1e-3
        assert differs or (radius == 2.5 and "radius" in other)


def plain(features, first, rules):
    """The protocols as they are told, in nested loops over patches; the context is a list of frames."""
    h, w, M = first.shape
    features = F.normalize(features.double(), dim=-1)
    results, queue = [], [(features[0], first.double())] * (rules.context if rules.filled else 0)
    for target in features[1:]:
        result = torch.zeros(h, w, M, dtype=torch.float64)
        for y in range(h):
            for x in range(w):
                candidates = []
                for number, (frame, labels) in enumerate([(features[0], first.double()), *queue]):
                    for v in range(h):
                        for u in range(w):
                            dy, dx, r = abs(v - y), abs(u - x), rules.radius
                            away = max(dy, dx) if rules.shape == "square" else math.hypot(dy, dx)
                            near = away < r if rules.shape == "disk" else away <= r
                            if r == 0 or near or (number == 0 and rules.first_unlimited):
                                candidates.append(((frame[v, u] @ target[y, x]).item(), labels[v, u]))
                candidates.sort(key=lambda candidate: -candidate[0])
                best = candidates[: rules.top_k]
                if rules.weights == "cut":
                    best = [candidate for candidate in candidates if candidate[0] >= best[-1][0]]
                weights = [math.exp(value / rules.temperature) for value, _ in best]
                result[y, x] = sum(a * b for a, (_, b) in zip(weights, best, strict=True)) / sum(weights)
        results.append(result)
        queue.append((target, result))
        queue = queue[max(0, len(queue) - rules.context) :]
    return torch.stack(results).float()


SMALL = {
    "paper": {"radius": 2.3, "context": 2},
    "rsp": {"radius": 2, "context": 3},
    "dino": {"radius": 1, "context": 2},
    "dinov3": {"radius": 2, "context": 2},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_nested_loops_agree(name, within):
    features, first = random_video(5)
    rules = protocol(name, **SMALL[name])
    expected = plain(features, first, rules)
    for budget in BUDGETS:
        within(budget)
        labels = torch.stack(list(propagate(features, first, rules)))
        close(labels, expected)
        close(labels.sum(-1), torch.ones(4, 6, 5))  # the labels of each source sum to 1, and so do the weights


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("change", [{"radius": 0, "top_k": 1000}, {"context": 0}, {"filled": True, "weights": "cut"}])
def test_nested_loops_agree_at_the_margins(name, change):
    features, first = random_video(3, seed=1)
    rules = protocol(name, **{**SMALL[name], **change})
    close(torch.stack(list(propagate(features, first, rules))), plain(features, first, rules))


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("first_unlimited", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_a_radius_that_leaves_fewer_than_k_candidates(name, first_unlimited, filled, within):
    """What lies outside of it is never taken to make up the number."""
    features, first = random_video(4, seed=2)
    small = {"disk": 1.0, "circle": 0.5, "square": 0.5}[protocol(name).shape]  # nothing but the patch's own place
    rules = protocol(name, radius=small, context=2, top_k=7, first_unlimited=first_unlimited, filled=filled)
    expected = plain(features, first, rules)
    assert expected.isfinite().all()
    for budget in BUDGETS:
        within(budget)
        close(torch.stack(list(propagate(features, first, rules))), expected)
    if not first_unlimited:
        close(expected[0], first)  # its only candidate in the only frame


def test_whatever_side_is_the_longer_one():
    """The grid is turned inside, so that both ways round must give the same, and the turned video its turned labels."""
    features, first = random_video(5, h=4, w=9)
    for name in PROTOCOLS:
        rules = protocol(name, **SMALL[name])
        labels = torch.stack(list(propagate(features, first, rules)))
        turned = torch.stack(list(propagate(features.transpose(1, 2), first.transpose(0, 1), rules)))
        close(turned.transpose(1, 2), labels)
        close(labels, plain(features, first, rules))
        assert all(found.is_contiguous() for found in propagate(features, first, rules))


@pytest.mark.parametrize("change", [{}, {"radius": 0}, {"filled": True, "first_unlimited": True}])
def test_ties_for_the_last_place_are_all_kept(change, within):
    """Features of a few exact directions: similarities are exact, so a tie is a tie whatever the order of sums."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(4)
    features = directions[torch.randint(0, 4, (4, 6, 5), generator=generator)]
    _, first = random_video(1)
    rules = protocol("dino", radius=2, top_k=3, context=3).with_(**change)
    kept = plain(features, first, rules)
    for budget in BUDGETS:
        within(budget)
        close(torch.stack(list(propagate(features, first, rules))), kept)
    if not change:
        assert (kept - plain(features, first, rules.with_(weights="softmax"))).abs().max() > 0.01  # ties do occur


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_still_video_keeps_its_labels(name):
    features, first = random_video(1, h=7, w=9)
    rules = protocol(name, top_k=1)
    for labels in propagate(features.expand(6, -1, -1, -1), first, rules):
        close(labels, first)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_shift_by_one_cell_is_followed(name):
    features, first = random_video(1, h=7, w=12)
    frames = [features[0].roll(-t, dims=1) for t in range(4)]
    for t, labels in enumerate(propagate(frames, first, protocol(name, top_k=1, radius=3)), start=1):
        close(labels[:, : 12 - t], first[:, t:])  # what left on the left comes back on the right, out of reach


def test_soft_labels_are_handed_on():
    features, first = random_video(3)
    rules = protocol("paper", context=1, radius=0, top_k=4, temperature=1)
    one, two = propagate(features, first, rules)
    hardened = F.one_hot(one.argmax(-1), 3).float()
    normal = F.normalize(features, dim=-1)

    def step(labels):
        return propagate_step(normal[2], Context(normal[:2], torch.stack([first, labels]), near=0, far=1), rules)

    close(two, step(one))
    assert (two - step(hardened)).abs().max() > 0.01


def test_features_of_a_frame_are_asked_for_once_and_only_when_needed():
    features, first = random_video(4)
    asked = []

    def stream():
        for t, frame in enumerate(features):
            asked.append(t)
            yield frame

    labels = propagate(stream(), first, protocol("dino"))
    next(labels)
    assert asked == [0, 1]
    assert len(list(labels)) == 2 and asked == [0, 1, 2, 3]
    assert list(propagate(features[:1], first, protocol("dino"))) == []  # one frame: nothing to follow


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("budget", [1, 600, 20_000, 10**9])
def test_tiles_cover_the_grid_once_and_keep_the_budget(name, budget, monkeypatch, within):
    within(budget)
    h, w, frames = 11, 7, 4
    rules = protocol(name, **SMALL[name])
    covered = torch.zeros(h, w)
    for tile in tiles(h, w, frames, rules, budget, whole_first=rules.first_unlimited):
        covered[tile] += 1
    assert (covered == 1).all()

    sizes = []
    candidates = propagation._candidates

    def weighed(*arguments):
        blocks = candidates(*arguments)
        sizes.append(sum(block.similarity.untyped_storage().nbytes() for block in blocks))
        return blocks

    monkeypatch.setattr(propagation, "_candidates", weighed)
    features, first = random_video(frames, h, w)
    list(propagate(features, first, rules))
    assert max(sizes) <= budget or budget == 1  # less than one patch needs: patch by patch
    if budget == 1:
        assert len(sizes) == (frames - 1) * h * w


def test_tiles_grow_with_what_it_costs_to_begin_one():
    rules = protocol("dino")
    counts = [
        len(list(tiles(30, 52, 8, rules, 10**9, whole_first=False, start=start))) for start in (1, 10, 100, 10_000)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[1] > counts[2] >= counts[3] == 1


@pytest.mark.parametrize(("C", "k"), [(5, 5), (40, 3), (101, 7), (1560, 6), (997, 1)])
def test_top_is_topk(C, k):
    values = torch.randn(13, C, generator=torch.Generator().manual_seed(C))
    values[:3, : C // 2] = -math.inf
    values[5] = values[5].round()  # ties
    best, places = top(values, k)
    assert torch.equal(best, values.topk(k).values)
    assert torch.equal(values.gather(1, places), best)
    assert all(len(set(row)) == k for row in places.tolist())


def test_half_precision_is_near():
    features, first = random_video(5, h=9, w=13, D=64)
    for name in PROTOCOLS:
        rules = protocol(name, **SMALL[name])
        full, half = (torch.stack(list(propagate(f, first, rules))) for f in (features, features.half()))
        assert half.dtype == torch.float32
        assert (full - half).abs().max() < 0.1 and (full - half).abs().mean() < 2e-3


def test_grids_that_differ_are_named():
    features, first = random_video(3)
    with pytest.raises(InputError, match=r"6×5 .* 7×5"):
        next(propagate(torch.randn(2, 7, 5, 8), first, protocol()))
    with pytest.raises(InputError, match=r"frame 2 has 5×5 patches, the first one 6×5"):
        list(propagate([features[0], features[1], features[2, 1:]], first, protocol()))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["(60, 144)", "(144, 60)"])  # 480×1152 in patches of 8, and as `propagate` turns it
def test_a_wide_video_with_30_context_frames_and_10_objects_fits_into_3_gb(shape):
    code = (
        "import resource, torch; from evaluation.propagation import *; from evaluation.protocols import protocol;"
        "torch.set_num_threads(1); labels = torch.rand(SHAPE[0], SHAPE[1], 11).softmax(-1);"
        "f = torch.nn.functional.normalize(torch.randn(31, *SHAPE, 384), dim=-1);"
        "c = Context(f, labels.expand(31, -1, -1, -1), 1, 0);"
        "propagate_step(f[3], c, protocol('rsp'));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code.replace("SHAPE", shape)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 3  # a dense affinity alone would take 9.2


@pytest.mark.parametrize("shape", ["square", "circle", "disk"])
def test_the_barrier_is_that_of_the_distances_whatever_the_rectangles(shape):
    limit = {"square": lambda y, x, r: max(y, x) <= r, "circle": lambda y, x, r: y * y + x * x <= r * r}
    limit["disk"] = lambda y, x, r: y * y + x * x < r * r
    for radius in (0, 1, 2, 2.5, 5, 5**0.5):
        for rows, sources in (((1, 3), (0, 5)), ((4, 6), (2, 6)), ((2, 3), (2, 3))):
            tile, near = (slice(*rows), slice(3, 4)), (slice(*sources), slice(1, 6))
            places = [[(y, x) for y in range(a.start, a.stop) for x in range(b.start, b.stop)] for a, b in (tile, near)]
            inside = [[radius == 0 or limit[shape](abs(y - v), abs(x - u), radius) for v, u in places[1]]
                      for y, x in places[0]]  # fmt: skip
            found = propagation._barrier(*propagation._axes(tile, near), radius, shape, torch.device("cpu"))
            assert found is None if np.all(inside) else torch.equal(found == 0, torch.tensor(inside))
            assert found is None or (found[~torch.tensor(inside)] == -math.inf).all()


@pytest.mark.parametrize("distinct", [2, 1000])
@pytest.mark.parametrize(("near", "far"), [(1, 0), (3, 0), (2, 1), (0, 1)])
def test_to_look_for_ties_everywhere_changes_nothing(distinct, near, far, monkeypatch):
    """What a GPU does; with two kinds of features nearly all is a tie."""
    generator = torch.Generator().manual_seed(0)
    kinds = F.normalize(torch.randn(distinct, 8, generator=generator), dim=-1)
    features = kinds[torch.randint(distinct, (5, 6, 5), generator=generator)]
    context = Context(features[:4], torch.rand(4, 6, 5, 3, generator=generator), near, far)
    rules = protocol("dino", radius=2, top_k=4)
    expected = propagate_step(features[4], context, rules)
    monkeypatch.setitem(propagation.LOOK_AT_ALL, "cpu", True)
    close(propagate_step(features[4], context, rules), expected, atol=1e-6)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a fake GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        kinds = {x.device.type for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)}
        if "cuda" in kinds and name in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}:
            self.found.append(name)
        if name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found.append(f"{name} by bool")
        if name == "_to_copy" and {"cpu"} == kinds and "cuda" in str(kwargs.get("device")):
            self.found.append("a copy")
        return function(*args, **kwargs)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_step_waits_for_nothing_on_a_gpu(name):
    rules = protocol(name, context=3, radius=2)
    propagation._barrier.cache_clear()
    try:
        with FakeTensorMode():
            for dtype in (torch.float32, torch.float16):
                frames = torch.empty(6, 9, 7, 16, device="cuda", dtype=dtype)
                with Waits() as waits:
                    *_, soft = propagate(frames, torch.empty(9, 7, 3, device="cuda"), rules)
                    winner = winners(soft, (144, 112), rules)
                assert winner.device.type == "cuda" and winner.dtype == torch.uint8 and waits.found == []
    finally:
        propagation._barrier.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_gpu_gives_the_same(name, within):
    features, first = random_video(6, h=30, w=55, D=64)
    rules = protocol(name, context=3)
    cpu = torch.stack(list(propagate(features, first, rules)))
    for budget in (2**29, 2**20):
        within(budget)
        close(torch.stack(list(propagate(features.cuda(), first.cuda(), rules))).cpu(), cpu, atol=1e-4)
    half = torch.stack(list(propagate(features.cuda().half(), first.cuda(), rules))).cpu()
    assert (half.argmax(-1) == cpu.argmax(-1)).float().mean() > 0.99
