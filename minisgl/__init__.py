"""minisgl: an LLM inference engine that a person can stop, look into and step.

>>> import minisgl
>>> engine = minisgl.load("tiny")
>>> request = engine.add("Once upon a time")
>>> record = engine.step()  # one batch, and all that was decided about it
>>> records = engine.run()  # the rest
>>> print(request.text)
"""

from __future__ import annotations

from minisgl.config import EngineConfig
from minisgl.core import (
    Batch,
    Logprob,
    Outcome,
    Plan,
    Refusal,
    Request,
    Row,
    SamplingParams,
    Span,
    StepRecord,
    Why,
)
from minisgl.inspector.show import inspect
from minisgl.trace import Trace
from minisgl.trace.compare import compare

from minisgl.build import load  # isort: skip  (a top room: it stands on all that is above)
from minisgl.attach import attach  # isort: skip
from minisgl.llm import LLM  # isort: skip
from minisgl.whatif import replay  # isort: skip
from minisgl.bench.ablate import ablate  # isort: skip
from minisgl.bench.workload import Workload  # isort: skip

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Batch",
    "EngineConfig",
    "Logprob",
    "Outcome",
    "Plan",
    "Refusal",
    "Request",
    "Row",
    "SamplingParams",
    "Span",
    "StepRecord",
    "Trace",
    "Why",
    "Workload",
    "ablate",
    "attach",
    "compare",
    "inspect",
    "load",
    "replay",
]
