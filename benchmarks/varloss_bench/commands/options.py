"""The options of `varloss-bench compare`: their types and what `--help` says of them, in the order of its panels.

`tune` has those of them that say what is trained. Imports nothing heavy: `--help` answers at once. Defaults stand in the
commands, and where an option is a field of `TrialConfig` they are that field's.
"""

from pathlib import Path
from typing import Annotated

import typer

from varloss_bench.commands.config_file import load_defaults
from varloss_bench.config import (
    FRAMEWORKS,
    LR_RULES,
    PRECISIONS,
    STRATEGIES,
    VRN_AGAINST,
)
from varloss_bench.measures import SELECTABLE
from varloss_bench.methods import NEGATIVES, methods_with_negatives, trained_methods

_COMPARED = "What is compared"
_SELECTION = "Choosing on validation"
_DATA = "Data"
_TRAINING = "Training"
_RUNNING = "Running"


def _listed(values: "tuple[str, ...] | dict[str, str]") -> str:
    return ", ".join(values)


Method = Annotated[
    str, typer.Option(help=f"Comma-separated list of {_listed(trained_methods())}.", rich_help_panel=_COMPARED)
]
BatchSize = Annotated[str, typer.Option(help="Comma-separated list.", rich_help_panel=_COMPARED)]
Weight = Annotated[
    str,
    typer.Option(
        help="Weights of VRN, comma-separated; 0 is always among them. Of the order of 1 to 10 on a thousand images, "
        "30 on fifty thousand.",
        rich_help_panel=_COMPARED,
    ),
]
Temperature = Annotated[str, typer.Option(help="Comma-separated list.", rich_help_panel=_COMPARED)]
ControlTemperature = Annotated[
    str,
    typer.Option(
        help="Temperatures to run at weight 0 only: part of what VRN gives, a lower temperature gives too. "
        "An empty string for none.",
        rich_help_panel=_COMPARED,
    ),
]
Seeds = Annotated[
    int,
    typer.Option(help="Paired seeds; an interval needs 2, few-label gains 4 to 10.", rich_help_panel=_COMPARED),
]
Interval = Annotated[
    bool,
    typer.Option(
        "--interval/--no-interval",
        help="Whether intervals are wanted; without, a single seed is accepted (and settles nothing).",
        rich_help_panel=_COMPARED,
    ),
]
FirstSeed = Annotated[int, typer.Option(help="Seeds are this one and those after it.", rich_help_panel=_COMPARED)]

Select = Annotated[
    bool,
    typer.Option(
        "--select",
        help="Choose temperature and weight first: run the grid on the validation split with seeds of its own, then only the "
        "best baseline and the best VRN of each method and batch size on the test split.",
        rich_help_panel=_SELECTION,
    ),
]
SelectBy = Annotated[
    str,
    typer.Option(
        help=f"What is best: {_listed(SELECTABLE)}.",
        rich_help_panel=_SELECTION,
    ),
]
SelectSeeds = Annotated[
    int, typer.Option(help="Validation seeds a cell's score is the mean of.", rich_help_panel=_SELECTION)
]
SelectFirstSeed = Annotated[
    int,
    typer.Option(
        help="The first of them; must not meet those of --first-seed. Trials that are there already, of `--evaluate-on val` "
        "as well, are used.",
        rich_help_panel=_SELECTION,
    ),
]
Effect = Annotated[
    float,
    typer.Option(
        help="An accuracy difference in points that would matter to you: where nothing is settled, the table says how many "
        "seeds it would need.",
        rich_help_panel=_COMPARED,
    ),
]

Data = Annotated[
    str,
    typer.Option(
        help="digits (in scikit-learn), fashion-mnist, fashion-pairs (100 classes), cifar10, cifar100, stl10, or "
        "imagefolder:PATH, a folder of class folders.",
        rich_help_panel=_DATA,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where the files are or are downloaded to; by default Debian's folder for Fashion-MNIST if it is there, else "
        "~/.cache/varloss-bench.",
        rich_help_panel=_DATA,
    ),
]
NumTrain = Annotated[
    int | None,
    typer.Option(help="Training samples; by default the data set's own number.", rich_help_panel=_DATA),
]
NumVal = Annotated[int | None, typer.Option(help="Validation samples, likewise.", rich_help_panel=_DATA)]
NumTest = Annotated[int | None, typer.Option(help="Test samples, likewise.", rich_help_panel=_DATA)]
OfficialTest = Annotated[
    bool,
    typer.Option(
        "--official-test/--drawn-test",
        help="Test on the split published with the data, or on a part of its training images that the seed draws.",
        rich_help_panel=_DATA,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Side in pixels of the images of an imagefolder; by default 32.", rich_help_panel=_DATA),
]
EvaluateOn = Annotated[
    str, typer.Option(help="test, or val for choosing weight and temperature.", rich_help_panel=_DATA)
]

Framework = Annotated[
    str,
    typer.Option(
        help=f"{_listed(FRAMEWORKS)}: what trains. For solo, SOLO_LEARN_ROOT names an unmodified checkout of solo-learn and "
        "SOLO_LEARN_PYTHON the Python of its environment.",
        rich_help_panel=_TRAINING,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="small, or any timm model (untrained, made fit for small images); with --framework solo resnet18 or resnet50.",
        rich_help_panel=_TRAINING,
        show_default="small; resnet18 with --framework solo",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Equal for all trials; 20 where --steps is not given either.", rich_help_panel=_TRAINING),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Equal optimiser steps for all trials instead of equal epochs: small batches then see less data.",
        rich_help_panel=_TRAINING,
    ),
]
BaseLr = Annotated[float, typer.Option(help="Learning rate at batch size 256.", rich_help_panel=_TRAINING)]
LrRule = Annotated[str, typer.Option(help=f"Over batch size: {_listed(LR_RULES)}.", rich_help_panel=_TRAINING)]
Warmup = Annotated[
    float,
    typer.Option(help="Fraction of the steps over which the learning rate rises from 0.", rich_help_panel=_TRAINING),
]
WeightDecay = Annotated[float, typer.Option(help="SGD's, of weights with two axes or more.", rich_help_panel=_TRAINING)]
HiddenDim = Annotated[int, typer.Option(help="Width of the projection head's hidden layer.", rich_help_panel=_TRAINING)]
OutputDim = Annotated[int, typer.Option(help="Width of the projections.", rich_help_panel=_TRAINING)]
WeightWarmup = Annotated[
    float,
    typer.Option(
        help="Fraction of the steps over which VRN's weight rises from 0; .5 helps large batches with few steps.",
        rich_help_panel=_TRAINING,
    ),
]
Negatives = Annotated[
    str | None,
    typer.Option(
        help=f"{_listed(NEGATIVES)}: whose rows are negatives, for {_listed(methods_with_negatives())}; by default both.",
        rich_help_panel=_TRAINING,
    ),
]
HeadBatchNorm = Annotated[
    bool | None,
    typer.Option(
        "--head-batch-norm/--no-head-batch-norm",
        help="BatchNorm in the projection head; by default in all but MoCo's.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
Fused = Annotated[
    bool | None,
    typer.Option(
        "--fused/--split",
        help="Both views in one forward pass, or one each, which is all that --framework solo can do.",
        rich_help_panel=_TRAINING,
        show_default="fused; split with --framework solo",
    ),
]
QueueSize = Annotated[
    int,
    typer.Option(help="MoCo's queue; 0: largest power of two up to half of the data.", rich_help_panel=_TRAINING),
]
KeyMomentum = Annotated[float, typer.Option(help="MoCo's momentum of the key encoder.", rich_help_panel=_TRAINING)]
VrnAgainst = Annotated[
    str,
    typer.Option(
        help=f"{_listed(VRN_AGAINST)}: VRN between the two views by the trained encoder, or, for MoCo, between each and "
        "the queue, which carries no gradient: 1 of 4 such runs collapsed.",
        rich_help_panel=_TRAINING,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help=f"{_listed(PRECISIONS)}; losses and evaluation compute in fp32 all the same.", rich_help_panel=_TRAINING
    ),
]

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto for cuda where there is one.", rich_help_panel=_RUNNING)]
Devices = Annotated[
    int,
    typer.Option(
        help="Processes (one per GPU, or on the CPU) that share each trial's batch; --batch-size is that of all.",
        rich_help_panel=_RUNNING,
    ),
]
Nodes = Annotated[
    int, typer.Option(help="Machines with --devices processes each; needs --cluster slurm.", rich_help_panel=_RUNNING)
]
Strategy = Annotated[
    str,
    typer.Option(help=f"Lightning's, for several processes: {_listed(STRATEGIES)}.", rich_help_panel=_RUNNING),
]
Workers = Annotated[int, typer.Option(help="Trials side by side, of one thread each.", rich_help_panel=_RUNNING)]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="local or slurm: trials as jobs, through submitit, at most --workers at a time. By default processes of this "
        "command's own.",
        rich_help_panel=_RUNNING,
    ),
]
Slurm = Annotated[
    str,
    typer.Option(
        help="Of each job: `partition=gpu,time=2:00:00,gpus=1,cpus=4,mem=16GB` and whatever else submitit knows.",
        rich_help_panel=_RUNNING,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="Results go to ./varloss-runs/NAME; by default the data set.", rich_help_panel=_RUNNING),
]
Output = Annotated[Path | None, typer.Option(help="Results go exactly here instead.", rich_help_panel=_RUNNING)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh",
        help="Keep the trials that are there and run the others; or refuse a folder that holds any.",
        rich_help_panel=_RUNNING,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="List the trials and measure how long they would take.", rich_help_panel=_RUNNING),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of these options by name (`base-lr: 0.3`, several values as `[16, 64]`); the command line wins over it.",
        rich_help_panel=_RUNNING,
        is_eager=True,
        callback=load_defaults,
    ),
]
DumpConfig = Annotated[
    bool,
    typer.Option(
        "--dump-config", help="Print the options in effect as such a file, and run nothing.", rich_help_panel=_RUNNING
    ),
]
