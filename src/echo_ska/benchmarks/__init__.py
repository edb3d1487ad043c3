"""Speed and memory: each route is held to its float64 definition first, then timed beside the others in one run.

`run.run_benchmark(plan)` measures and returns a record; `echo-ska bench` prints, keeps and draws it. docs/benchmarks.md
says what the figures mean. Nothing is imported here, so that the processes that measure memory start small and soon.
"""
