"""Echo: recall without a KV cache.

- `echo_ska.ops`: the op, `echo_ska.ops.spectral_koopman_attention`, and decoding.
- `echo_ska.algebra`: the mathematics behind it, as pure functions and values.
- `echo_ska.nn`: layers for your own models.
- `echo_ska.models`: Echo, as a Hugging Face model.
- `echo_ska.parallel`: one sequence over several processes.
- `echo_ska.memory`: an associative memory; a model's state as a value that is saved, forked and found again.
- `echo_ska.tasks`: recall tasks.
- `echo_ska.training`: one training loop, its data and its records.
- `echo_ska.corpus`: text as shards of tokens on disk, and training batches from them.
- `echo_ska.evaluation`: recall, memory, writing, benchmark questions.
- `echo_ska.convert`: other models' softmax attention replaced by SKA.
- `echo_ska.serving`: a model behind OpenAI's HTTP interface.
- `echo_ska.experiments`: what stands behind the tables and figures.
"""

__version__ = "0.1.0"
