"""Codes of what can go wrong in this plugin: a letter of ``ir.base.codes.AREAS`` and a number that nobody else has."""

CODES = {
    "B950": "The toy runtime has too few cells for the model.",
    "B951": "The target of the toy runtime is a number of cells, and the text is none.",
    "V950": "The toy runtime gives other numbers than the original model.",
}
