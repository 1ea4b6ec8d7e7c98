"""Discovery by real Hydra, the plugin's cost for other applications, and its errors if solo-learn is not as expected."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from support.solo.runs import STANDIN, environment

PROJECT = Path(__file__).parents[3]

APP = """
import json, sys
{before}
import hydra

@hydra.main(version_base="1.2", config_path=None)
def main(cfg):
    from hydra.core.plugins import Plugins
    from hydra.core.hydra_config import HydraConfig
    from hydra.plugins.search_path_plugin import SearchPathPlugin
    print(json.dumps({{
        "plugins": [found.__name__ for found in Plugins.instance().discover(SearchPathPlugin)],
        "sources": [source.path for source in HydraConfig.get().runtime.config_sources],
        "loaded": [name for name in ("torch", "varloss", "varloss_solo", "solo") if name in sys.modules],
        "seconds": Plugins.instance().get_stats().modules_import_time["hydra_plugins.varloss_searchpath"],
    }}))

if __name__ == "__main__":
    main()
"""
QUIET = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null", "hydra.run.dir=."]


def app(folder, *arguments, before="", **extra):
    """Runs a small Hydra application in a folder of its own."""
    (folder / "app.py").write_text(APP.format(before=before))
    command = [sys.executable, "app.py", *QUIET, *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**extra), capture_output=True, text=True, check=False)


def write(folder, **files):
    """Writes a package: a__b stands for a/b.py, ``init`` for __init__.py."""
    for name, text in files.items():
        path = folder.joinpath(*name.replace("init", "__init__").split("___")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_another_application_finds_the_plugin_and_is_left_alone(tmp_path):
    done = app(tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "VarlossSearchPath" in said["plugins"]
    assert said["loaded"] == []
    assert not any("varloss" in source for source in said["sources"])
    # Reading one small file; far below what an import of torch would take.
    assert said["seconds"] < 0.05


def test_an_unrelated_package_called_solo_is_left_alone(tmp_path):
    write(tmp_path, solo___init="", solo___methods="PIANO = 1")
    done = app(tmp_path, before="import solo.methods")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loaded"] == ["solo"]


def test_the_release_of_2021_is_refused_by_name(tmp_path):
    write(
        tmp_path,
        solo___init="",
        solo___methods___init="class BaseMethod:\n    def __init__(self, encoder, num_classes, **kwargs): ...\n"
        "METHODS = {'base': BaseMethod, 'simclr': BaseMethod}",
    )
    done = app(tmp_path, before="import solo.methods")
    assert done.returncode == 1
    assert "RuntimeError: varloss: this solo-learn does not build its methods from one configuration" in done.stderr
    assert "1.0.2 of 2021" in done.stderr
    assert "git clone https://github.com/vturrisi/solo-learn" in done.stderr


@pytest.mark.parametrize("missing", ["solo/utils/auto_resumer.py", "solo/methods/linear.py"])
def test_a_broken_solo_learn_is_an_error_and_not_a_plain_run(tmp_path, missing):
    shutil.copytree(STANDIN, tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    if missing.endswith("linear.py"):
        table = tmp_path / "solo" / "methods" / "__init__.py"
        text = table.read_text().replace("from solo.methods.linear import LinearModel", "LinearModel = object")
        table.write_text(text)
    done = app(tmp_path, before="import solo.methods")
    assert done.returncode == 1
    name = missing.removesuffix(".py").replace("/", ".")
    assert f"RuntimeError: varloss: solo-learn's {name} cannot be imported: No module named '{name}'" in done.stderr
    assert "varloss-solo doctor" in done.stderr


def test_a_broken_varloss_is_an_error_and_not_a_plain_run(tmp_path):
    shutil.copytree(STANDIN, tmp_path, dirs_exist_ok=True)
    write(tmp_path, broken___varloss___init="raise ImportError('libtorch is missing')")
    done = app(tmp_path, before="import solo.methods", PYTHONPATH=str(tmp_path / "broken"))
    assert done.returncode == 1
    assert "RuntimeError: varloss is installed but cannot be imported: libtorch is missing" in done.stderr
    assert "pip uninstall varloss" in done.stderr


def test_an_old_hydra_is_refused(tmp_path):
    shutil.copytree(STANDIN, tmp_path, dirs_exist_ok=True)
    done = app(tmp_path, before="import solo.methods, hydra; hydra.__version__ = '1.1.2'")
    assert done.returncode == 1
    assert "RuntimeError: varloss needs Hydra 1.2 or later; this is 1.1.2: pip install --upgrade" in done.stderr


def standin_says(code):
    """What Python code prints in the stand-in's folder."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=STANDIN, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def installed():
    """What one interpreter says that installs varloss twice: tables, keys, pickled classes, three linear evaluations."""
    return standin_says(
        "import pickle, varloss_solo, solo.methods as m, solo.utils.auto_resumer as r\n"
        "for _ in range(2):\n"
        "    varloss_solo.install()\n"
        "    print({k: [c.__name__ for c in v.__mro__[:3]] for k, v in m.METHODS.items()})\n"
        "print(r.AutoResumer.SHOULD_MATCH)\n"
        "print([pickle.dumps(m.METHODS[name]).hex() for name in ('simclr', 'simsiam')])\n"
        "from omegaconf import OmegaConf\n"
        "from solo.methods.linear import LinearModel\n"
        "for text in ('{}', '{varloss: {enabled: false}}', '{varloss: {weight: 3}}'):\n"
        "    try: print(LinearModel(OmegaConf.create(text)).cfg)\n"
        "    except ValueError as error: print(error)"
    )


def test_installing_twice_is_installing_once(installed):
    first, second, keys = installed[:3]
    assert first == second
    assert "'simclr': ['SimCLRWithVRN', 'VRNMixin', 'ObjectiveMixin']" in first
    assert "'base': ['BaseMethod'," in first
    assert keys == "['name', 'method', 'varloss', 'objective']"


def test_a_class_pickled_in_one_process_is_found_in_a_fresh_one(installed):
    pickled = installed[3]
    assert standin_says(
        f"import pickle; print([pickle.loads(bytes.fromhex(text)).varloss_method for text in {pickled}])"
    ) == ["['simclr', 'simsiam']"]


def test_linear_evaluation_refuses_the_block_that_it_would_ignore(installed):
    plain, off, on = installed[4:]
    assert (plain, off) == ("{}", "{'varloss': {'enabled': False}}")
    assert "varloss belongs to main_pretrain.py" in on


def test_the_entry_point_that_hydra_1_4_reads_names_the_plugin():
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    (found,) = [point for point in metadata.entry_points(group="hydra.plugins") if point.name == "varloss"]
    assert issubclass(found.load(), SearchPathPlugin)
    assert found.value.replace(":", ".") in Plugins.instance().class_name_to_class


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", folder, PROJECT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_the_presets_and_a_namespace_without_init(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    presets = {name for name in names if name.startswith("varloss_solo/conf/varloss/")}
    assert presets == {f"varloss_solo/conf/varloss/{name}.yaml" for name in ("vrn", "vrn_both", "paper", "off")}
    assert "hydra_plugins/varloss_searchpath/__init__.py" in names
    assert "hydra_plugins/__init__.py" not in names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_flag_works_from_an_installed_wheel_and_an_editable_install(tmp_path, wheel, kind):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    what = [str(wheel)] if kind == "wheel" else ["--no-build-isolation", "-e", str(PROJECT)]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    # Or pip would be content with the varloss that it sees over PYTHONPATH.
    pip.append("--ignore-installed")
    # Third-party packages come over PYTHONPATH, where the .pth file of this environment's own varloss is not read.
    site = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run([*pip, *what], env=environment(PYTHONPATH=site), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.copytree(STANDIN, tmp_path / "solo-learn")
    line = [python, "main_pretrain.py", "--config-path", str(tmp_path / "solo-learn"), "--config-name", "mini.yaml"]
    code = "import varloss_solo; print(varloss_solo.__file__)"
    where = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment(PYTHONPATH=""), capture_output=True, text=True, check=True
    ).stdout
    assert where.startswith(str(PROJECT if kind == "editable" else tmp_path / "env"))
    done = subprocess.run(
        [*line, f"out={tmp_path}", "+varloss=vrn_both"],
        cwd=tmp_path / "solo-learn",
        env=environment(PYTHONPATH=site),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "varloss: VRN on, method=simclr, weight=3" in done.stdout
    assert "pairs=both" in done.stdout
