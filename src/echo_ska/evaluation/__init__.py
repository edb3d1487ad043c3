"""What is measured of a model, one module each; nothing is imported here.

- `echo_ska.evaluation.recall`: accuracy on a recall task at any length.
- `echo_ska.evaluation.memory`: bytes of state beside a KV cache; `echo_ska.evaluation.memory_plot` draws them.
- `echo_ska.evaluation.sampling`: reading a context of any length and writing on from it;
  `echo_ska.evaluation.streaming` hands the text out while it comes.
- `echo_ska.evaluation.context_length`: bits per byte of a text at several lengths of context.
- `echo_ska.evaluation.harness`: lm-evaluation-harness asked in this process; `echo_ska.evaluation.local_tasks`: on
  local files.
"""
