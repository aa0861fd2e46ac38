"""A run on clips that is killed goes on as if it had not been: the model of clips keeps what `test_resume` asks."""

import signal

import pytest

from ml.checkpoints import load_run
from tests.ml.test_resume import assert_same, outcome

STEPS = 6  # 6 videos × 4 clips in steps of 8 (two batches of 4), 2 epochs
SETTINGS = (
    "--preset", "mae_st_large_smoke", "--visits", "1", "--image-size", "32", "--device", "cpu", "--num-epochs-per-save",
    "2", "--save-minutes", "0",
)  # fmt: skip


def command(clips, root, *more):
    return ["train", "--data", clips, "--root", root, *SETTINGS, *more]


@pytest.fixture(scope="module")
def undisturbed(trainer, clips, tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    codes, said = trainer.run(command(clips, root), root=root)
    assert codes == [0], said
    return outcome(root)


@pytest.mark.parametrize(("number", "after", "workers"), [(signal.SIGKILL, 2, "0"), (signal.SIGTERM, 4, "1")])
def test_stopped_and_started_again_it_ends_the_same(number, after, workers, trainer, clips, tmp_path, undisturbed):
    """kill -9 in the first epoch, SIGTERM in the second; the same command goes on, bit for bit."""
    codes, said = trainer.run(command(clips, tmp_path), root=tmp_path, signal=int(number), after=after)
    assert codes == [-9 if number == signal.SIGKILL else 143], said
    (last,) = (tmp_path / "checkpoints").glob("*/last.pt")
    assert 0 < load_run(last)["step"] < STEPS
    codes, said = trainer.run(command(clips, tmp_path, "--workers", workers), root=tmp_path)
    assert codes == [0] and "after step" in said, said
    state, logs, _ = outcome(tmp_path)
    assert state["step"] == STEPS == len([step for step in logs if "loss" in step])
    assert_same(outcome(tmp_path), undisturbed)


def test_two_processes_end_as_one(trainer, clips, tmp_path, undisturbed):
    """The same clips in the same steps, two batches in turn or one in each of two processes: the same losses."""
    both = [command(clips, tmp_path)] * 2
    codes, said = trainer.run(*both, root=tmp_path)
    assert codes == [0, 0], said
    one = {step["step"]: step["loss"] for step in undisturbed[1] if "loss" in step}
    two = {step["step"]: step["loss"] for step in outcome(tmp_path)[1] if "loss" in step}
    assert two == pytest.approx(one, rel=1e-4) and len(two) == STEPS
