"""``varloss-solo doctor`` names each problem and the command that fixes it."""

import shutil
import subprocess
import sys
from pathlib import Path

from support.solo.runs import STANDIN, environment

import varloss_solo


def doctor(*arguments, cwd=STANDIN, **extra):
    command = [sys.executable, "-m", "varloss_solo", "doctor", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, check=False)


def test_a_checkout_that_is_ready(tmp_path):
    done = doctor("--no-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[  ok] Hydra finds the plugin hydra_plugins.varloss_searchpath" in done.stdout
    assert "[  ok] 9 methods patched: simclr, supcon, byol, simsiam, mocov2plus, mae, nt_xent, dcl, dhel" in done.stdout
    assert done.stdout.endswith("Ready: add +varloss=vrn to your main_pretrain.py command.\n")


def test_a_folder_that_is_no_checkout(tmp_path):
    done = doctor(cwd=tmp_path)
    assert done.returncode == 1
    assert f"[FAIL] no main_pretrain.py and solo/methods in {tmp_path}" in done.stdout
    assert "type: git clone https://github.com/vturrisi/solo-learn && cd solo-learn" in done.stdout
    assert done.stdout.endswith("Not ready.\n")


def test_a_training_step_that_fails_is_told_with_its_last_line():
    # The stand-in has no option for a folder of images, so its own configuration check stops the dry run.
    done = doctor()
    assert done.returncode == 1
    assert "[FAIL] a training step with +varloss=vrn ends in: " in done.stdout


def test_a_solo_learn_that_does_not_import(tmp_path):
    methods = tmp_path / "solo" / "methods"
    methods.mkdir(parents=True)
    (tmp_path / "main_pretrain.py").touch()
    (methods / "__init__.py").write_text("import pkg_resources_that_setuptools_dropped")
    done = doctor(cwd=tmp_path)
    assert done.returncode == 1
    assert "[FAIL] importing solo-learn: ModuleNotFoundError: No module named 'pkg_resources_" in done.stdout
    assert 'type: pip install "setuptools<82"' in done.stdout


def test_the_release_of_2021_and_an_old_hydra_are_named(tmp_path):
    for name, version in (("solo_learn", "1.0.2"), ("hydra_core", "1.1.2"), ("torchmetrics", "1.9.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    done = doctor("--no-run", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "[FAIL] solo-learn 1.0.2 from PyPI (2021) is installed" in done.stdout
    assert "type: pip uninstall -y solo-learn && git clone" in done.stdout
    assert "[FAIL] hydra-core 1.1.2 is older than 1.2" in done.stdout
    assert (
        '[note] torchmetrics 1.9.0: knn_eval and main_knn.py need 0.11.4\n       type: pip install "torchmetrics<0.12"'
        in done.stdout
    )


def test_without_any_package_it_still_runs_and_says_what_to_install(tmp_path):
    shutil.copytree(Path(varloss_solo.__file__).parent, tmp_path / "varloss_solo")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from varloss_solo.__main__ import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=STANDIN, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert '[FAIL] torch is not installed\n       type: pip install -r requirements.txt "setuptools<82"' in done.stdout
    assert "[FAIL] hydra-core is not installed" in done.stdout


def test_hydra_1_4_is_told_to_refuse_solo_learns_scripts(tmp_path):
    info = tmp_path / "hydra_core-1.4.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hydra-core\nVersion: 1.4.0\n")
    done = doctor("--no-run", PYTHONPATH=str(tmp_path))
    assert "[note] hydra-core 1.4.0 refuses main_pretrain.py's version_base='1.2'" in done.stdout
    assert 'type: pip install "hydra-core<1.4"' in done.stdout
