"""A run that is stopped at any moment goes on as if it had not been: bit for bit, in weights and in logs, whether its
model is of pairs or of clips."""

import json
import random
import signal
import zipfile
from functools import cache

import pytest
import torch

from ml.checkpoints import load_run
from ml.logs import read_steps
from tests.slowly import slowly

TIMING = ("pairs_per_second", "waiting", "memory_mib")
SETTINGS = (
    "--visits", "1", "--image-size", "32", "--epochs", "3", "--num-epochs-per-save", "3", "--ema", "0.9", "--clip-grad",
    "1.0", "--repeated-sampling", "4", "--batch-size", "8",
)  # fmt: skip
STEPS = 9  # 6 videos × 4 pairs, or clips, in steps of 8, 3 epochs
MODELS = {
    "pairs": ("--preset", "smoke"),
    "clips": ("--preset", "mae_st_large_smoke", "--pairs-per-device", "4"),  # two batches a step, or two processes
}
pairs_and_slowly_clips = pytest.mark.parametrize("model", ["pairs", *slowly("clips")])


def command(clips, root, *more, model="pairs"):
    return ["train", "--data", clips, "--root", root, "--device", "cpu", *MODELS[model], *SETTINGS, *more]


def outcome(root):
    """All that must not differ: weights, optimiser, averages, and the logs without their times."""
    (folder,) = (path for path in (root / "checkpoints").iterdir() if path.is_dir())
    state = load_run(folder / "last.pt")
    steps = read_steps(root / "losses" / f"{folder.name}.jsonl")
    logs = [{key: value for key, value in step.items() if key not in TIMING} for step in steps]
    text = (root / "losses" / f"{folder.name}.txt").read_text()
    return {key: state[key] for key in ("model", "optimizer", "averaged", "step", "losses")}, logs, text


def assert_same(one, other):
    """Every tensor bit for bit, every logged number to the last digit, no line twice."""
    (state, logs, text), (other_state, other_logs, other_text) = one, other
    flat = [_flat(state), _flat(other_state)]
    assert flat[0].keys() == flat[1].keys()
    differing = [name for name, value in flat[0].items() if not torch.equal(value, flat[1][name])]
    assert differing == []
    assert logs == other_logs and text == other_text
    assert len({(step["step"], "epoch_loss" in step) for step in logs}) == len(logs)


def _flat(tree, name=""):
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{name}/{key}").items()}
    return {name: torch.tensor(tree, dtype=torch.float64)}


@pytest.fixture(scope="module")
def undisturbed(trainer, clips, tmp_path_factory):
    """The outcome of a run that nothing happens to, by model and number of processes."""

    @cache
    def run(model="pairs", processes=1):
        root = tmp_path_factory.mktemp("undisturbed")
        codes, said = trainer.run(*[command(clips, root, model=model)] * processes, root=root)
        assert codes == [0] * processes, said
        return outcome(root)

    return run


@pairs_and_slowly_clips
def test_an_undisturbed_run_is_whole(model, undisturbed):
    state, logs, _ = undisturbed(model)
    assert state["step"] == STEPS and [step["step"] for step in logs if "loss" in step] == list(range(1, STEPS + 1))


@pytest.mark.slow  # `test_ranks` has one of pairs
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_end_as_one(model, undisturbed):
    """The same samples in the same steps, so the same losses but for rounding."""
    one, two = ([step["loss"] for step in undisturbed(model, n)[1] if "loss" in step] for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "number", "after", "code", "more"),
    [
        pytest.param("pairs", signal.SIGTERM, 2, 143, (), marks=pytest.mark.slow),
        ("pairs", signal.SIGINT, 4, 130, ("--workers", "1")),  # with other processes in the second half
        pytest.param("clips", signal.SIGUSR1, 5, 138, ("--workers", "1"), marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_it_and_the_same_command_goes_on(
    model, number, after, code, more, trainer, clips, tmp_path, undisturbed
):
    first = command(clips, tmp_path, model=model)
    codes, said = trainer.run(first, root=tmp_path, signal=int(number), after=after)
    assert codes == [code] and f"{number.name}: stopping after this step" in said
    (log,) = (tmp_path / "losses").glob("*.jsonl")
    stopped = read_steps(log)[-1]["step"]
    assert 0 < stopped < STEPS
    assert f"after step {stopped}; go on with the same command" in said
    codes, said = trainer.run([*first, *more], root=tmp_path)
    assert codes == [0] and f"after step {stopped}" in said
    assert_same(outcome(tmp_path), undisturbed(model))


def kill_until_done(trainer, clips, root, kills, draw, processes=1, model="pairs"):
    """Kill at random moments, start again with the same command, to the end; how many kills met a running process.

    The state is saved every 30 ms here.
    """
    met = 0
    commands = [command(clips, root, "--save-minutes", "0.0005", model=model)] * processes
    for _ in range(kills):
        codes, said = trainer.run(
            *commands, root=root, signal=9, after=draw.randint(0, STEPS), delay=draw.random() * 0.3,
            to=draw.choice([[0], [processes - 1], list(range(processes))]), patience=2,
        )  # fmt: skip
        met += -9 in codes
        if codes == [0] * processes:
            break
        assert all(code in (0, 2, -9) for code in codes), said
    codes, said = trainer.run(*commands, root=root)
    assert codes == [0] * processes, said
    return met


def kill(trainer, clips, folder, kills, draw, expected, processes=1, model="pairs", at_once=6):
    """Runs that are killed again and again, until so many kills have met a running process; how many runs and kills."""
    met = count = 0
    while met < kills:
        root = folder / f"{model}_{processes}_{count}"
        met += kill_until_done(trainer, clips, root, min(at_once, kills - met), draw, processes, model)
        assert_same(outcome(root), expected)
        count += 1
    return dict(processes=processes, model=model, kills=met, runs=count)


@pairs_and_slowly_clips
def test_killed_three_times_it_ends_the_same(model, trainer, clips, tmp_path, undisturbed):
    """kill -9 at any moment."""
    kill(trainer, clips, tmp_path, 3, random.Random(0), undisturbed(model), model=model)


@pytest.mark.slow  # `test_ranks` has one that stops by itself
def test_two_processes_stop_and_go_on_together(trainer, clips, tmp_path, undisturbed):
    """A signal to one of them stops both, at the end of the second epoch at the latest; killed in the third, both end;
    and the same command goes on."""
    both = [command(clips, tmp_path)] * 2
    codes, said = trainer.run(*both, root=tmp_path, signal=int(signal.SIGTERM), after=4, to=[1])
    assert codes == [143, 143], said
    codes, said = trainer.run(*both, root=tmp_path, signal=9, after=9, to=[0])
    assert codes == [-9, 2] and "another process of the run has ended" in said
    codes, said = trainer.run(*both, root=tmp_path)
    assert codes == [0, 0], said
    assert_same(outcome(tmp_path), undisturbed(processes=2))


def test_a_damaged_state_is_noticed_and_the_one_before_is_used(trainer, clips, tmp_path, undisturbed):
    codes, _ = trainer.run(
        command(clips, tmp_path, "--save-minutes", "0"), root=tmp_path, signal=int(signal.SIGTERM), after=5
    )
    assert codes == [143]
    (last,) = (tmp_path / "checkpoints").glob("*/last.pt")
    steps = load_run(last)["step"]
    with zipfile.ZipFile(last) as archive:
        tensor = max(archive.infolist(), key=lambda record: record.file_size)
    content = bytearray(last.read_bytes())
    content[tensor.header_offset + tensor.file_size // 2] ^= 1  # one bit
    last.write_bytes(content)
    codes, said = trainer.run(command(clips, tmp_path), root=tmp_path)
    assert codes == [0] and "last.pt is damaged: the checksum of" in said
    assert f"previous.pt instead, after {steps - 1} steps" in said
    assert content == last.with_name("damaged.pt").read_bytes()
    assert_same(outcome(tmp_path), undisturbed())


def test_another_configuration_begins_another_run_or_is_refused(trainer, clips, tmp_path):
    trainer.run(command(clips, tmp_path), root=tmp_path, signal=int(signal.SIGTERM), after=2)
    (run,) = (path.name for path in (tmp_path / "checkpoints").iterdir())
    changed = command(clips, tmp_path, "--base-lr", "0.1")
    codes, said = trainer.run([*changed, "--resume", run], root=tmp_path)
    assert codes == [2] and "base_lr was 0.032 and is now 0.1" in said
    codes, said = trainer.run([*changed, "--resume", run, "--allow-changes"], root=tmp_path)
    assert codes == [0] and "although the configuration differs" in said
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    codes, said = trainer.run(command(clips, tmp_path), root=tmp_path)  # the first is finished: a new one
    assert codes == [0] and len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_one_run_is_not_trained_twice_at_once(clips, tmp_path, trainer):
    trainer.run(command(clips, tmp_path), root=tmp_path, signal=int(signal.SIGTERM), after=2)
    from common.errors import InputError
    from ml.checkpoints import only_here

    (folder,) = (tmp_path / "checkpoints").iterdir()
    before = (tmp_path / "losses" / f"{folder.name}.jsonl").read_text()
    with only_here(folder):
        codes, said = trainer.run(command(clips, tmp_path), root=tmp_path)
        assert codes == [2] and "is being trained by another process right now" in said
        assert (tmp_path / "losses" / f"{folder.name}.jsonl").read_text() == before
        with pytest.raises(InputError), only_here(folder):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_thirty_kills(processes, trainer, clips, tmp_path, undisturbed):
    """Thirty random kill points, in runs of one process and of two."""
    print(json.dumps(kill(trainer, clips, tmp_path, 30, random.Random(1), undisturbed(processes=processes), processes)))
