"""The command line: every command, what it writes, and one sentence for everything that is wrong."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyquant import cli, load, zoo
from pyquant.cli import main
from pyquant.errors import MissingPackageError
from pyquant.runtime import checkpoint

SOURCE = """
import numpy as np
import torch
from torch import nn


def model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU6()
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def images(rows=12):
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def pairs():
    return [(batch, torch.zeros(len(batch))) for batch in images().split(4)]


def one_shot():
    yield from images().split(12)


def wrong_shape():
    return [torch.zeros(2, 3, 9, 9), torch.zeros(2, 1, 16, 16)]


def not_finite():
    return [images().log()]


def number():
    return 7


text = "not a function"
"""
SITES = ("0", "2", "6")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a small model and its data in an importable module and a .npz."""
    (tmp_path / "small.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "small", raising=False)
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(4)).numpy()
    np.savez(tmp_path / "data.npz", first=images[:5], second=images[5:].astype(np.float64))
    yield tmp_path
    sys.modules.pop("small", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bytes of a checkpoint of the small model whose last site is float."""
    place = tmp_path_factory.mktemp("made")
    (place / "small.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["--data", "small:images", "-o", "net.pq", "--recipe", "nearest", "--exclude", "6"]
        assert main(["quantize", "small:model", *words]) == 0
    sys.modules.pop("small")
    return (place / "net.pq").read_bytes()


@pytest.fixture
def saved(folder, made):
    """The folder, with that checkpoint in it."""
    (folder / "net.pq").write_bytes(made)
    return folder


def small(*words: str) -> list[str]:
    """Arguments that quantise the small model in a second."""
    return ["quantize", "small:model", "--data", "data.npz", "-o", "net.pq", *words]


def plan() -> dict[str, list[int]]:
    return load("net.pq").info["plan"]


# ---------------------------------------------------------------------------------------------------- quantize
def test_quantize_writes_what_the_library_would(folder, capsys):
    assert main(small("--recipe", "w8a8")) == 0
    printed = capsys.readouterr()
    assert "wrote net.pq" in printed.out and "3 sites" in printed.out and printed.err == ""
    net = load("net.pq")
    import small as module

    want = module.model()(module.images())
    assert (net(module.images()) - want).norm() < 0.05 * want.norm()
    assert plan() == {site: [8, 8] for site in SITES}
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["data.npz", "net.pq", "small.py"]


@pytest.mark.parametrize("recipe", ["nearest", "light", "advanced"])
def test_recipes_keep_their_budget(folder, recipe):
    assert main(small("--recipe", recipe, "--budget", "0.2")) == 0
    sizes = load("net.pq").sizes
    assert 0.1 < sizes["weights"] / sizes["float_weights"] <= 0.2
    assert {a for _, a in plan().values()} == {8}


def test_joint_gives_activations_the_width_of_the_weights(folder):
    assert main(small("--recipe", "nearest", "--joint", "--budget", "0.2")) == 0
    assert all(w == a for w, a in plan().values()) and {w for w, _ in plan().values()} == {4, 8}


def test_fixed_bits_keep_the_ends_at_eight(folder):
    assert main(small("--recipe", "W4A6")) == 0
    assert plan() == {"0": [8, 8], "2": [4, 6], "6": [8, 8]}


def test_pins_and_exclusions(folder):
    assert main(small("--recipe", "w8a8", "--bits", "2=3,5", "--exclude", "6")) == 0
    assert plan() == {"0": [8, 8], "2": [3, 5]}
    kinds = {row["name"]: row["kind"] for row in load("net.pq").describe()}
    assert kinds["0"] == kinds["2"] == "conv" and kinds["6"] == "aten.linear.default"


def test_pins_hold_against_a_budget(folder):
    assert main(small("--recipe", "nearest", "--budget", "0.25", "--bits", "0=4,8", "--bits", "6=2,7")) == 0
    assert plan()["0"] == [4, 8] and plan()["6"] == [2, 7]


@pytest.mark.parametrize("source", ["pairs", "one_shot", "images"])
def test_data_from_a_function(folder, source):
    """The same images in any form give the same file."""
    assert main(small("--recipe", "nearest")) == 0
    want = Path("net.pq").read_bytes()
    words = ["--data", f"small:{source}", "-o", "other.pq", "--recipe", "nearest"]
    assert main(["quantize", "small:model", *words]) == 0
    assert Path("other.pq").read_bytes() == want


def test_a_folder_of_images(folder):
    image = pytest.importorskip("PIL.Image")
    (folder / "pictures").mkdir()
    for number in range(3):
        image.effect_noise((40, 30), 60 + number).save(folder / "pictures" / f"{number}.png")
    assert main(small("--recipe", "nearest", "--data", "pictures")) == 0
    assert load("net.pq")(torch.zeros(2, 3, 224, 224)).shape == (2, 5)


def test_an_old_file_is_replaced(folder):
    Path("net.pq").write_text("old")
    assert main(small("--recipe", "nearest")) == 0
    assert len(plan()) == 3


# ----------------------------------------------------------------------------------------------- other commands
def test_show(saved, capsys):
    assert main(["show", "net.pq"]) == 0
    out = capsys.readouterr().out
    sizes, share = load("net.pq").sizes, load("net.pq").share()
    assert f"{share['integer']} ops run in integers and {share['float']} in float" in out
    assert f"{sizes['weights']:,} bytes of weight codes, {sizes['total']:,} in all" in out
    assert "conv" in out and "quantize" in out


def test_bench(saved, capsys):
    words = ["--batch", "3", "--rounds", "2", "--backend", "reference"]
    assert main(["bench", "net.pq", *words]) == 0
    out = capsys.readouterr().out
    found = re.search(r"batch 3: median ([\d.]+) ms, best ([\d.]+) ms, ([\d.,]+) images/s", out)
    assert found is not None and float(found[2]) <= float(found[1]), out
    assert math.isclose(float(found[3]), 3e3 / float(found[1]), rel_tol=0.02)
    assert "reference (pinned)" in out


def test_backends(capsys):
    assert main(["backends"]) == 0
    out = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") > 2}
    assert set(lines) >= {"reference", "cpu", "triton", "cuda"}
    assert "yes" in lines["reference"]
    if not torch.cuda.is_available():
        assert "no" in lines["cuda"] and "CUDA" in lines["cuda"]


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory):
    """A checkpoint of ResNet-20, made from a few of its own images."""
    try:
        images = zoo.calibration("resnet20")[:32]
    except MissingPackageError as error:
        pytest.skip(str(error))
    place = tmp_path_factory.mktemp("resnet20")
    np.savez(place / "data.npz", images.numpy())
    words = [
        "--data",
        str(place / "data.npz"),
        "-o",
        str(place / "net.pq"),
        "--recipe",
        "nearest",
        "--budget",
        "0.25",
    ]
    assert main(["quantize", "resnet20", *words]) == 0
    return place / "net.pq"


def test_evaluate(resnet20, capsys):
    images, accepted = zoo.evaluation("resnet20")
    net = load(resnet20, threads=1)
    top1 = zoo.accuracy(net(images[:100]), accepted[:100])
    assert main(["evaluate", str(resnet20), "resnet20", "--limit", "100", "--threads", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    floats, ours = ([cell.strip() for cell in row.split("│")[1:-1]] for row in rows)
    assert floats[0] == "float32" and floats[3] == "1.0000" and ours[4] == floats[4] == "100"
    assert ours[0] == "net.pq" and ours[1] == f"{top1:.4f}" and float(ours[3]) > 0.9


def test_evaluate_refuses_another_networks_checkpoint(resnet20, made, tmp_path, capsys):
    (tmp_path / "other.pq").write_bytes(made)
    capsys.readouterr()
    assert_refused(["evaluate", str(tmp_path / "other.pq"), "resnet20", "--limit", "2"], capsys, "shape")


def test_the_installed_script(folder):
    """What `pip install` puts beside the interpreter, in a process of its own."""
    script = Path(sys.executable).with_name("pyquant")
    run = [str(script), *small("--recipe", "nearest")]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "wrote net.pq" in done.stdout, done.stderr
    done = subprocess.run(
        [str(script), "show", "none.pq"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: none.pq does not exist; give a file that pyquant saved.\n"


# ------------------------------------------------------------------------------------------------------ refusals
def files() -> dict[Path, bytes]:
    """What lies in the present folder."""
    return {p: p.read_bytes() for p in Path().iterdir() if p.is_file()}


def assert_refused(argv: list[str], capsys, *words: str) -> None:
    """Exit status 1, one sentence on stderr with ``words``, and not a file more or less."""
    before = files()
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert files() == before


REFUSED = {
    "zoo name": (["quantize", "resnet21", "-o", "net.pq"], "resnet21", "resnet20"),
    "module": (["quantize", "nowhere:model", "--data", "data.npz", "-o", "net.pq"], "nowhere", "module:function"),
    "function": (["quantize", "small:nothing", "--data", "data.npz", "-o", "net.pq"], "nothing"),
    "no module": (["quantize", ":model", "--data", "data.npz", "-o", "net.pq"], "module:function"),
    "not callable": (["quantize", "small:text", "--data", "data.npz", "-o", "net.pq"], "str", "function"),
    "not a module": (["quantize", "small:images", "--data", "data.npz", "-o", "net.pq"], "Tensor", "Module"),
    "no data": (["quantize", "small:model", "-o", "net.pq"], "--data"),
    "data function": (small("--data", "small:nothing"), "nothing"),
    "data number": (small("--data", "small:number"), "int", "batches"),
    "data file": (small("--data", "gone.npz"), "gone.npz", "does not exist"),
    "data kind": (small("--data", "small.py"), ".npz"),
    "data shape": (small("--data", "small:wrong_shape"), "shape", "[B, 3, 9, 9]"),
    "data not finite": (small("--data", "small:not_finite"), "NaN"),
    "empty folder": (small("--data", "empty"), "no images"),
    "output folder": (small("-o", "gone/net.pq"), "gone", "does not exist"),
    "output is a folder": (small("-o", "empty"), "folder"),
    "recipe": (small("--recipe", "heavy"), "heavy", "light"),
    "recipe widths": (small("--recipe", "w4"), "w4a8"),
    "recipe superscript": (small("--recipe", "w\u00b2a8"), "w4a8"),
    "recipe width 9": (small("--recipe", "w9a8"), "9"),
    "recipe width 1": (small("--recipe", "w4a1"), "1"),
    "fixed with budget": (small("--recipe", "w8a8", "--budget", "0.2"), "--budget"),
    "pinned site": (small("--bits", "conv9=8,8"), "conv9"),
    "excluded site": (small("--exclude", "conv9"), "conv9"),
    "every site excluded": (small("--exclude", "0", "--exclude", "2", "--exclude", "6"), "no convolution"),
    "bits form": (small("--bits", "2=8"), "SITE=W,A"),
    "bits text": (small("--bits", "2=x,8"), "SITE=W,A"),
    "bits without site": (small("--bits", "8,8"), "SITE=W,A"),
    "bits of 9": (small("--bits", "2=9,8"), "9"),
    "budget 0": (small("--budget", "0"), "budget=0"),
    "budget -1": (small("--budget", "-1"), "budget=-1"),
    "budget nan": (small("--budget", "nan"), "budget=nan"),
    "budget inf": (small("--budget", "inf"), "budget=inf"),
    "no checkpoint": (["show", "gone.pq"], "gone.pq"),
    "not a checkpoint": (["show", "small.py"], "small.py"),
    "bench nothing": (["bench", "gone.pq"], "gone.pq"),
    "bench rounds": (["bench", "net.pq", "--rounds", "0"], "--rounds 0"),
    "evaluate limit": (["evaluate", "net.pq", "resnet20", "--limit", "0"], "--limit 0"),
    "evaluate nothing": (["evaluate", "gone.pq", "resnet20"], "gone.pq"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(folder, capsys, case):
    (folder / "empty").mkdir()
    argv, *words = REFUSED[case]
    assert_refused(argv, capsys, *words)


def test_brackets_in_messages_are_printed(folder, capsys):
    """rich would take them for markup."""
    assert_refused(["show", "[bold]net.pq"], capsys, "[bold]net.pq does not exist")


@pytest.mark.parametrize(
    "budget",
    ["0.05", "1e-9"],
)
def test_an_infeasible_budget_names_the_smallest_feasible_one(folder, capsys, budget):
    """All sites at 4 bits: (48 * 8 + 72 * 8 + 8 * 5) / 2 bytes."""
    assert_refused(small("--recipe", "nearest", "--budget", budget), capsys, "smallest feasible", "500")


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_damaged_checkpoints(saved, capsys, damage):
    data = bytearray(Path("net.pq").read_bytes())
    data[-3] ^= 1
    Path("net.pq").write_bytes({"truncated": data[:-9], "altered": data, "empty": b""}[damage])
    for command in (["show"], ["bench"], ["evaluate"]):
        assert_refused(
            [*command, "net.pq", *(["resnet20"] if command == ["evaluate"] else [])], capsys, "net.pq"
        )


@pytest.mark.parametrize(
    "words", [["--backend", "gpu"], ["--backend", "cuda"], ["--threads", "0"], ["--batch", "0"]]
)
def test_engines_that_cannot_serve(saved, capsys, words):
    assert_refused(["bench", "net.pq", *words], capsys)


@pytest.mark.parametrize("argv", [[], ["quantise"], small("--budget", "little"), ["quantize", "resnet20"]])
def test_what_cannot_be_parsed(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and "usage: pyquant" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- interruptions
def test_stopped_while_it_works(folder, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "quantize_model", stop)
    assert main(small("--recipe", "nearest")) == 130
    assert "no file was written" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["data.npz", "small.py"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_stopped_while_it_writes(folder, capsys, monkeypatch, error):
    Path("net.pq").write_text("old")

    def stop(descriptor):
        raise error

    monkeypatch.setattr(checkpoint.os, "fsync", stop)
    assert main(small("--recipe", "nearest")) == (130 if error is KeyboardInterrupt else 1)
    err = capsys.readouterr().err
    assert "Traceback" not in err and ("no file was written" in err or "No space left" in err), err
    assert Path("net.pq").read_text() == "old"
    assert not [name for name in os.listdir() if name.endswith(".part")]
