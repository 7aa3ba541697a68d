"""Live ONNX exports of small random language models, by the exporters that people use, and changes to them.

::

    from tests.support.exports import export, run

    made = export("mistral", "script", opset=17, mask=True, positions=True, history=True)
    made.path                        # model.onnx
    made.checkpoint                  # the folder of the checkpoint it was made of
    feeds = made.feeds(batch=1, past=3, seq=12)
    run(made.path, feeds)["logits"]  # what onnxruntime says
    made.reference(feeds)["logits"]  # what torch says

Every export is made once in a run of the tests and lies in a folder that goes with the process; take a copy of
``made.model()`` to change it. Inputs have the names that exporters give them; `Export.roles` says what each one is.

``script``
    torch's TorchScript-based exporter, which optimum drives too (optimum-onnx 0.1.0 needs transformers < 4.58 and cannot
    be installed beside the tests' own; opset 18 with mask, positions and history is what it writes).
``dynamo``
    torch's newer exporter.
``genai``
    the model builder of onnxruntime-genai; options ``precision`` and those of the builder.
``contrib``
    by hand: a decoder of ``com.microsoft`` operators, with what the builder does not write for a processor.
``llm-exporter``
    by hand: the form that MNN's own exporter leaves, with ``LlmExporter`` operators; onnxruntime has none of them.
"""

from tests.support.exports.export import Export, export, run
from tests.support.exports.families import FAMILIES, checkpoint, config_of

__all__ = ["FAMILIES", "Export", "checkpoint", "config_of", "export", "run"]
