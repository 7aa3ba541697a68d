"""The intermediate representation: graphs, operators, types, tensors, and what is known about them.

Every process that uses the compiler imports this package before any third-party library, so this is the one place that
says for all of them, child processes included, that libraries must not report on their use: onnxruntime otherwise
writes a device number and a database of events below the user's cache folder and looks its makers' host up, and
huggingface_hub tells the hub what calls it. Who has set a variable keeps it.
"""

import os as _os

for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    _os.environ.setdefault(_name, "1")
