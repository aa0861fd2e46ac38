"""What several test folders share: a small folder of encoded videos, and real data of others, where it is here."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from dataset_loader.preparing.encoding import write_video
from dataset_loader.synthetic import synthetic_video
from tests.processes import Trainer, hear_ctrl_c

SHARED = Path(__file__).parents[2] / "shared" / "data"
# What takes longest begins first, so that of the two processes of `make test` none is left alone with it in the end.
LONGEST = (
    "test_notebook.py", "test_resume.py", "test_ranks.py", "test_clips.py", "test_contract.py", "test_cli.py",
    "test_decoding.py", "test_ablate.py", "test_propagation.py", "test_fitting.py", "test_training_benchmarks.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and sums keep their order. The same in programs that tests start: beside
    two test processes on two cores their threads would wait for each other."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _sigint():
    hear_ctrl_c()


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of six synthetic clips of 2 s at 96×128, H.264."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(6):
        scene = synthetic_video(seed, height=96, width=128, seconds=2, fps=30)
        write_video(folder / f"family{seed % 2}_{seed}.mp4", scene.frames.transpose(0, 2, 3, 1), scene.times)
    return folder


@pytest.fixture(scope="session")
def trainer():
    """Where runs are started, killed and started again; one for all tests, as its imports take seconds."""
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture(scope="session")
def quick():
    """Run a command that trains, without the figures and the rehearsal of a run: both take as long as the few steps of
    these. `cli/test_cli` and `ml/test_training` have them."""
    from cli.main import main
    from ml.reporting import Listener

    def quick(*words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ml.training.Figures", lambda *given: Listener())
            patch.setattr("cli.train.try_out", lambda config: None)
            return main([str(word) for word in words])

    return quick


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project; a fresh machine has none."""
    if not SHARED.is_dir():
        pytest.skip(f"real data of others is not here: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def chromium():
    """The class of headless browsers, `Browser` of tests/browser.py; a test of pages skips where there is none."""
    spec = spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.missing():
        pytest.skip(module.missing())
    return module.Browser


@pytest.fixture(scope="module")
def browser(chromium):
    """One for all tests of a file, as it takes long to start; each opens a page of its own."""
    with chromium() as browser:
        yield browser
