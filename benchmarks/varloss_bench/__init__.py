"""Does variance reduction (VRN) help on my data at my batch size? The commands of `varloss-bench` as functions.

`import varloss_bench` loads neither torch nor the packages of the extra `bench`; the functions do.
"""

from varloss_bench.commands.running import Running
from varloss_bench.compare.api import compare
from varloss_bench.compare.options import Grid, Selection
from varloss_bench.config import TrialConfig
from varloss_bench.report.api import report
from varloss_bench.tune.api import tune
from varloss_bench.tune.options import Search

__all__ = ["Grid", "Running", "Search", "Selection", "TrialConfig", "compare", "report", "tune"]
