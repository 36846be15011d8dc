import pytest

from pyquant.errors import DataError, MissingPackageError
from pyquant.zoo import sources
from pyquant.zoo.sources import debian_path, package_folder


def put(root, text):
    path = root / "usr/share/thing"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_given_folder_wins_then_data_then_system(monkeypatch, tmp_path):
    given, system = tmp_path / "given", tmp_path / "system"
    given.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "SYSTEM", system)
    found = []
    for root, name in ((system, "system"), (tmp_path / ".data", "data"), (given, "given")):
        put(root, name)
        found.append(debian_path("thing", "usr/share/thing", given).read_text())
    assert found == ["system", "data", "given"]
    assert debian_path("thing", "usr/share/thing").read_text() == "data"


def test_missing_debian_package_names_both_commands(nothing_installed, tmp_path):
    with pytest.raises(MissingPackageError, match=r"run: make data, or: apt-get install thing$") as caught:
        debian_path("thing", "usr/share/thing", tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "file"])
def test_data_must_be_a_folder(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{name}' is not a folder"):
        debian_path("thing", "usr/share/thing", tmp_path / name)


def test_package_folder_does_not_import(monkeypatch, tmp_path):
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_folder("heavy", "heavy==1") == tmp_path / "heavy"


@pytest.mark.parametrize("module", ["certainly_not_installed", "this_is_a_file"])
def test_missing_python_package_names_the_command(monkeypatch, tmp_path, module):
    (tmp_path / "this_is_a_file.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"run: pip install --no-deps thing==1\.2$"):
        package_folder(module, "thing==1.2")
