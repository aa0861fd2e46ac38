"""The report reads what runs leave behind: numbers on the page are those of the files."""

import json
import re

import numpy as np
import pytest

from common.errors import InputError
from ml.foreign_logs import Curve, metric_name, read_log
from ml.report import _packed, find, write_report
from pages.page import write_page


@pytest.fixture
def root(tmp_path):
    """Two runs of 2 epochs of 3 steps that differ in mask_ratio, one with validation; and an evaluation."""
    for k, ratio in enumerate((0.5, 0.95)):
        name = f"mask{k}_2026-01-0{k + 1}_00-00-00"
        losses = [[1.0 + k, 0.9, 0.8], [0.7, 0.6, 0.5 + k]]
        write(
            tmp_path / "losses" / f"{name}.txt",
            "".join(f"Epoch {n} - Avg Loss: {np.mean(row)} Losses - {row}\n" for n, row in enumerate(losses, 1)),
        )
        lines = []
        for n, row in enumerate(losses):
            for j, loss in enumerate(row, 1):
                lines.append(dict(step=3 * n + j, epoch=n + 1, loss=loss, lr=0.1, pairs_per_second=2.0, waiting=0.25))
            lines.append({"step": 3 * n + 3, "epoch": n + 1, "epoch_loss": float(np.mean(row)), "J&F-Mean": 0.3 + n})
        write(tmp_path / "losses" / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        config = dict(
            model=dict(mask_ratio=ratio), train=dict(epochs=2, steps_per_epoch=3, batch_size=4), run=dict(seed=0)
        )
        write(tmp_path / "checkpoints" / name / "config.json", json.dumps(config))
    write(
        tmp_path / "test_losses" / f"{name}.txt",
        "".join(f"Epoch {n} - Avg Loss: {2 / n} Losses - []\n" for n in (1, 2)),
    )
    result = dict(
        row={"J&F-Mean": 0.512}, in_words="dino: short240", source=dict(name=f"{name}/2"),
        benchmark=dict(kind="objects"), seconds=3.5, videos=[{}, {}], commit="a" * 40,
    )  # fmt: skip
    write(tmp_path / "scores" / "results.json", json.dumps(result))
    write(tmp_path / "scores" / "index.html", "<p>")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def page_data(path):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found[1])


def report_of(root, *more, **options):
    size = write_report(root / "report.html", find([root, *more]), **options)
    assert size == (root / "report.html").stat().st_size
    return page_data(root / "report.html")


def test_numbers_on_the_page_are_those_of_the_files(root):
    data = report_of(root)
    first, second = data["runs"]
    curves = {curve["metric"]: curve for curve in second["curves"]}
    assert curves["loss"]["y"] == [2.0, 0.9, 0.8, 0.7, 0.6, 1.5]
    assert curves["loss"]["step"] == [1, 2, 3, 4, 5, 6]
    assert curves["loss"]["epoch"] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-4)
    assert (curves["validation loss"]["y"], curves["validation loss"]["step"]) == ([2.0, 1.0], [3, 6])
    assert (curves["J&F-Mean"]["y"], curves["J&F-Mean"]["epoch"]) == ([0.3, 1.3], [1, 2])
    facts = second["facts"]
    assert facts["best validation"] == 1.0 and facts["at epoch"] == 2 and facts["epochs"] == "2 of 2"
    assert facts["last loss"] == pytest.approx(np.mean([0.7, 0.6, 1.5]))
    assert facts["pairs/s"] == pytest.approx(2.0) and facts["waiting"] == "25%"
    assert facts["minutes"] == pytest.approx(6 * 4 / 2.0 / 60)
    assert "best validation" not in first["facts"]


def test_what_differs_and_what_is_common(root):
    data = report_of(root)
    assert data["differing"] == ["mask_ratio"]
    assert data["common"] == dict(seed=0, epochs=2, steps_per_epoch=3, batch_size=4)


def test_an_evaluation_is_a_row_with_its_protocol_and_a_link_from_the_page(root):
    (row,) = report_of(root)["evaluations"]
    assert row["row"] == {"J&F-Mean": 0.512} and row["how"] == "dino: short240" and row["videos"] == 2
    assert row["link"] == "scores/index.html" and row["run"] == "mask1_2026-01-02_00-00-00"
    other = root / "elsewhere" / "page.html"
    write_report(other, find([root]))
    assert page_data(other)["evaluations"][0]["link"] == "../scores/index.html"


def test_starts_stand_beside_a_run_whatever_else_is_in_their_file(root):
    folder = root / "checkpoints" / "mask0_2026-01-01_00-00-00"
    (folder / "starts.jsonl").write_text('{"command": "siammae train", "commit": null}\nhalf a li')
    assert report_of(root)["runs"][0]["starts"] == [{"command": "siammae train", "commit": None}]


def test_long_curves_become_means_with_their_range():
    curve = _packed(Curve("loss", [1.0, 3.0, float("nan"), 5.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]), 2)
    assert curve["y"] == [2.0, 7.0] and curve["low"] == [1.0, 5.0] and curve["high"] == [3.0, 9.0]
    assert curve["step"] == [3, 5] and curve["every"] == 3


def test_a_million_steps_stay_below_the_limit(tmp_path):
    numbers = np.random.default_rng(0).random(200_000).round(6).tolist()
    write(tmp_path / "losses" / "long.txt", f"Epoch 1 - Avg Loss: 0.5 Losses - {numbers}\n")
    assert write_report(tmp_path / "report.html", find([tmp_path])) < 300_000


def test_a_damaged_log_is_noted_and_the_others_are_shown(root):
    write(root / "losses" / "notes.txt", "to do: more runs\n")
    data = report_of(root)
    assert len(data["runs"]) == 2
    assert "notes.txt, line 1" in data["notes"][0]


def test_numbers_that_are_none_do_not_break_the_page(root):
    with (root / "losses" / "mask1_2026-01-02_00-00-00.jsonl").open("a") as file:
        file.write('{"step": 7, "epoch": 3, "loss": "nan", "lr": 0.1, "skipped": true}\n')
    run = report_of(root)["runs"][1]
    assert run["curves"][0]["y"][-1] is None
    assert run["facts"]["left out"] == 1 and run["facts"]["waiting"] == "25%" and run["facts"]["steps"] == 7


def test_find_says_what_is_missing(tmp_path, root):
    with pytest.raises(InputError, match="does not exist"):
        find([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no run lies below"):
        find([tmp_path / "empty"])
    with pytest.raises(InputError, match="no run 'x'; there are mask0"):
        find([root], ["x"])
    assert [run.name for run in find([root], ["mask1_2026-01-02_00-00-00"]).runs] == ["mask1_2026-01-02_00-00-00"]


def test_the_state_changes_when_a_run_goes_on(root):
    before = find([root]).state()
    assert find([root]).state() == before
    with (root / "losses" / "mask1_2026-01-02_00-00-00.jsonl").open("a") as file:
        file.write("\n")
    assert find([root]).state() != before


def test_text_in_data_cannot_end_the_script(tmp_path):
    text = "</script><script>alert(1)</script> <!-- \udce4"
    write_page(tmp_path / "page.html", "report", "a <title>", {"x": text, "y": float("inf")})
    assert page_data(tmp_path / "page.html") == {"x": text, "y": None}
    assert (tmp_path / "page.html").read_text().count("</script>") == 2


# ---------------------------------------------------------------------------------------------- other people's logs


def test_text_lists(tmp_path):
    write(tmp_path / "a.txt", "Avg Loss: 0.5 Losses - [tensor(0.6, device='cuda:0'), tensor(0.4)]\n")
    write(tmp_path / "b.txt", "[0.9, 0.8,\n 7e-1]")
    write(tmp_path / "c.txt", "0.9\n0.8\n")
    steps, means = read_log(tmp_path / "a.txt")["a"]
    assert steps.values == [0.6, 0.4] and steps.steps == [1, 2] and means.values == [0.5] and means.epochs == [1]
    assert read_log(tmp_path / "b.txt")["b"][0].values == [0.9, 0.8, 0.7]
    assert read_log(tmp_path / "c.txt")["c"][0].steps == [1, 2]


def test_json_lines_of_mae_and_its_descendants(tmp_path):
    lines = [{"train_lr": 0.1 * n, "train_loss": 1 / (n + 1), "epoch": n} for n in range(3)]
    write(tmp_path / "cropmae" / "log.txt", "".join(json.dumps(line) + "\n" for line in lines))
    rate, loss = read_log(tmp_path / "cropmae" / "log.txt")["cropmae"]
    assert rate.metric == "learning rate" and rate.steps is None
    assert (loss.metric, loss.values, loss.epochs) == ("loss", [1, 1 / 2, 1 / 3], [1, 2, 3])


def test_a_csv_export_of_weights_and_biases(tmp_path):
    write(
        tmp_path / "wandb.csv",
        '"Step","calm-sun-3 - train_loss","calm-sun-3 - train_loss__MIN","old - old - loss"\n'
        '"0","0.9","0.9",""\n"50","0.7","0.7","0.8"\n',
    )
    found = read_log(tmp_path / "wandb.csv")
    assert found["calm-sun-3"][0].values == [0.9, 0.7] and found["calm-sun-3"][0].steps == [0, 50]
    assert found["old - old"][0].values == [0.8] and found["old - old"][0].metric == "loss"
    assert len(found["calm-sun-3"]) == 1
    write(tmp_path / "epochs.csv", "epoch,loss,val_loss\n1,0.9,1.0\n2,0.7,0.8\n")
    loss, held_out = read_log(tmp_path / "epochs.csv")["epochs"]
    assert loss.epochs == [1, 2] and held_out.metric == "validation loss"


def test_tensorboard_events_of_a_file_and_of_a_folder(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        for step in range(3):
            writer.add_scalar("Loss/train", 1 / (step + 1), step)
            writer.add_scalar("lr", 0.1, step)
    loss, rate = read_log(tmp_path / "theirs")["theirs"]
    assert (loss.metric, loss.steps, rate.metric) == ("loss", [0, 1, 2], "learning rate")
    assert loss.values == pytest.approx([1, 1 / 2, 1 / 3])
    (file,) = (tmp_path / "theirs").iterdir()
    assert read_log(file)["theirs"][0].values == loss.values
    assert find([tmp_path]).logs == [tmp_path / "theirs"]


def test_logs_stand_beside_runs(root, tmp_path):
    write(tmp_path / "others" / "b.txt", "0.9 0.8")
    data = report_of(root, tmp_path / "others" / "b.txt")
    assert data["runs"][-1]["name"] == "b" and data["runs"][-1]["foreign"]
    assert data["runs"][-1]["curves"][0]["y"] == [0.9, 0.8]


@pytest.mark.parametrize("text", ["", "hello", "a,b\n1,2\n", "{}"])
def test_what_is_no_log_is_said(tmp_path, text):
    for name in ("x.txt", "x.csv"):
        write(tmp_path / name, text)
        with pytest.raises(InputError, match=f"{name} holds no curve"):
            read_log(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/loss", "loss"), ("Loss", "loss"), ("val_loss", "validation loss"), ("Loss/test", "validation loss"),
        ("train_lr", "learning rate"), ("learning_rate", "learning rate"), ("loss_kl", "loss_kl"), ("acc", "acc"),
    ],
)  # fmt: skip
def test_names_of_metrics(name, expected):
    assert metric_name(name) == expected
