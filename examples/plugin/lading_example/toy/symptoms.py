"""What the toy runtime prints when something is wrong, for ``lading explain``."""

from backends.symptoms import Symptom

SYMPTOMS = {
    "no cells left": Symptom(
        "no cells left",
        says=(r"toy: cell \d+ of (?P<cells>\d+)",),
        happens="The model needs more than the {cells} cells that the toy runtime has.",
        causes=("the model was compiled without --target", "it was quantized to wider codes than planned"),
        do=(("lading compile CHECKPOINT -o OUT --to toy", "refuses a model that does not fit"),),
        codes=("B950",),
    ),
}
