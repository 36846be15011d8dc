"""The command line: every command, what it writes, and one sentence for everything that is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from rich.console import Console

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
pairs = lambda: [(batch, torch.zeros(len(batch))) for batch in images().split(4)]
one_shot = lambda: iter(images().split(12))
wrong_shape = lambda: [torch.zeros(2, 3, 9, 9), torch.zeros(2, 1, 16, 16)]
not_finite = lambda: [images().log()]
number = lambda: 7
needs = lambda path: path
text = "not a function"
def breaks():
    raise RuntimeError("no weights\\nlong story")
def breaks_late():
    yield images()
    raise LookupError
class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
def branching():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), Branch()).eval()
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
    assert f"ops: {share['integer']} in integers, {share['float']} in float" in out
    assert f"{share['boundary']} to quantise or dequantise" in out
    assert f"bytes: {sizes['weights']:,} of weight codes, {sizes['total']:,} in all" in out


def test_show_cuts_nothing_in_a_narrow_terminal(saved, capsys, monkeypatch):
    monkeypatch.setattr(cli, "console", Console(width=40))
    assert main(["show", "net.pq"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    rows = [list(row.values()) for row in load("net.pq").describe()]
    assert found == [["" if value is None else str(value) for value in row] for row in rows]


def test_bench(saved, capsys):
    words = ["--batch", "3", "--rounds", "2", "--backend", "reference"]
    assert main(["bench", "net.pq", *words]) == 0
    out = capsys.readouterr().out
    found = re.search(r"batch 3: median ([\d.]+) ms, best ([\d.]+) ms, ([\d.,]+) images/s", out)
    assert found is not None and float(found[2]) <= float(found[1]), out
    # Milliseconds come with two decimals, images a second with one.
    slowest, fastest = (3e3 / (float(found[1]) + half) for half in (0.00501, -0.00501))
    assert slowest - 0.06 <= float(found[3].replace(",", "")) <= fastest + 0.06
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
    files = ["--data", str(place / "data.npz"), "-o", str(place / "net.pq")]
    assert main(["quantize", "resnet20", *files, "--recipe", "nearest", "--budget", "0.25"]) == 0
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


def script(*words, stdout=subprocess.PIPE):
    """What `pip install` puts beside the interpreter, in a process of its own."""
    argv = [str(Path(sys.executable).with_name("pyquant")), *words]
    return subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120)


def test_the_installed_script(folder):
    done = script(*small("--recipe", "nearest"))
    assert done.returncode == 0 and "wrote net.pq" in done.stdout, done.stderr
    done = script("show", "none.pq")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: none.pq does not exist; give a file that pyquant saved.\n"


def test_a_reader_that_has_seen_enough(saved):
    """Nobody reads the pipe any more, as behind `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        done = script("show", "net.pq", stdout=out)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_reader_that_has_seen_enough_of_an_older_rich(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.backends, "missing", Mock(side_effect=BrokenPipeError))
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["backends"]) == 1
        print("what was left", flush=True)
    assert (tmp_path / "out").read_text() == ""


def test_torch_dumps_no_graph_before_the_sentence(folder):
    done = script("quantize", "small:branching", *small()[2:])
    assert done.returncode == 1 and done.stderr.startswith("error: Sequential could not be captured")
    assert done.stderr.count("\n") == 1 and "forward(self" not in done.stdout, done.stderr


def test_what_a_model_says_while_it_works_is_passed_on(folder, capsys):
    says = "print('hello', file=__import__('sys').stderr); return x"
    Path("small.py").write_text(SOURCE.replace("return x if x.sum() > 0 else -x", says))
    assert main(["quantize", "small:branching", *small("--recipe", "nearest")[2:]]) == 0
    assert "hello" in capsys.readouterr().err


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
    assert all(word in err for word in words) and "None" not in err, err
    assert files() == before


REFUSED = {
    "zoo name": (["quantize", "resnet21", "-o", "net.pq"], "resnet21", "resnet20"),
    "module": (["quantize", "nowhere:model", "--data", "data.npz", "-o", "net.pq"], "nowhere", "module:function"),
    "function": (["quantize", "small:nothing", "--data", "data.npz", "-o", "net.pq"], "nothing"),
    "no module": (["quantize", ":model", "--data", "data.npz", "-o", "net.pq"], "module:function"),
    "not callable": (["quantize", "small:text", "--data", "data.npz", "-o", "net.pq"], "str", "function"),
    "not a module": (["quantize", "small:images", "--data", "data.npz", "-o", "net.pq"], "Tensor", "Module"),
    "function breaks": (small("--data", "small:breaks"), "'small:breaks' raised RuntimeError: no weights; it is"),
    "import breaks": (small("--data", "broken:images"), "'broken:images' could not be imported: ZeroDivisionError: division by"),
    "arguments": (small("--data", "small:needs"), "'small:needs' raised TypeError", "'path'; it is called without"),
    "data breaks": (small("--data", "small:breaks_late"), "'small:breaks_late' raised LookupError; it is"),
    "output is a pipe": (small("-o", "pipe"), "'pipe' is no plain file"),
    # Not even root may write there, and it is found before the data is looked for.
    "output not writable": (small("-o", "/proc/self/net.pq", "--data", "gone.npz"), "'/proc/self"),
    "output name": (small("-o", "n" * 250, "--data", "gone.npz"), "cannot be written", "File name too long"),
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
    # All sites at 4 bits: (48 * 8 + 72 * 8 + 8 * 5) / 2 bytes.
    "budget 0.05": (small("--recipe", "nearest", "--budget", "0.05"), "smallest feasible", "500"),
    "budget 1e-9": (small("--recipe", "nearest", "--budget", "1e-9"), "smallest feasible", "500"),
    "budget nan": (small("--budget", "nan"), "budget=nan"),
    "budget inf": (small("--budget", "inf"), "budget=inf"),
    "no checkpoint": (["show", "gone.pq"], "gone.pq"),
    "not a checkpoint": (["show", "small.py"], "small.py"),
    "what rich takes for markup": (["show", "[bold]net.pq"], "[bold]net.pq does not exist"),
    "bench nothing": (["bench", "gone.pq"], "gone.pq"),
    "bench rounds": (["bench", "net.pq", "--rounds", "0"], "--rounds 0"),
    "evaluate limit": (["evaluate", "net.pq", "resnet20", "--limit", "0"], "--limit 0"),
    "evaluate nothing": (["evaluate", "gone.pq", "resnet20"], "gone.pq"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(folder, capsys, case):
    (folder / "empty").mkdir()
    (folder / "broken.py").write_text("1 / 0")
    os.mkfifo(folder / "pipe")
    argv, *words = REFUSED[case]
    assert_refused(argv, capsys, *words)


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_damaged_checkpoints(saved, capsys, damage):
    data = bytearray(Path("net.pq").read_bytes())
    data[-3] ^= 1
    Path("net.pq").write_bytes({"truncated": data[:-9], "altered": data, "empty": b""}[damage])
    for words in (["show", "net.pq"], ["bench", "net.pq"], ["evaluate", "net.pq", "resnet20"]):
        assert_refused(words, capsys, "net.pq")


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
    monkeypatch.setattr(cli, "quantize_model", Mock(side_effect=KeyboardInterrupt))
    assert main(small("--recipe", "nearest")) == 130
    assert "no file was written" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["data.npz", "small.py"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_stopped_while_it_writes(folder, capsys, monkeypatch, error):
    Path("net.pq").write_text("old")
    monkeypatch.setattr(checkpoint.os, "fsync", Mock(side_effect=error))
    assert main(small("--recipe", "nearest")) == (130 if error is KeyboardInterrupt else 1)
    err = capsys.readouterr().err
    assert "Traceback" not in err and ("no file was written" in err or "No space left" in err), err
    assert Path("net.pq").read_text() == "old"
    assert not [name for name in os.listdir() if name.endswith(".part")]
