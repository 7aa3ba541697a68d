"""Everything that is MNN: dialect, lowering, releases, writing, reading, running, doctor. `plugin` is its row."""

from backends.mnn.codes import CODES
from ir.base.diag import more_codes

# Child processes import single modules of this package, without the tables of plugins.
more_codes(CODES.items)
