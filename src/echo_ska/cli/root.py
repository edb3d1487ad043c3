"""All commands of `echo-ska` under one name; those that take little stand here in full."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska import __version__
from echo_ska.cli.context import context_app
from echo_ska.cli.convert import convert
from echo_ska.cli.data import data_app
from echo_ska.cli.inspect import inspect
from echo_ska.cli.options import JsonFile, ModelFolder, console
from echo_ska.cli.recall import recall_text
from echo_ska.cli.recipe import recipe_app
from echo_ska.cli.report import report
from echo_ska.cli.train import train
from echo_ska.commands.errors import OneSentenceErrors

app = typer.Typer(
    cls=OneSentenceErrors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"echo-ska {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Echo: recall without a KV cache. Spectral Koopman Attention (SKA) for PyTorch.

    Start with **echo-ska demo**, which trains four small models side by side and shows what each remembers
    and what it keeps for that. Every command has its own --help, with examples.

    An error is one sentence; set ECHO_SKA_DEBUG=1 to see where it came from.
    """


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the plot and the runs are kept.")
    ] = Path("echo-demo"),
    json_file: JsonFile = None,
) -> None:
    """Train four small models side by side and show what they recall, and in how many bytes.

    A state space model, two with softmax attention and one with SKA, of equal size, learn to recall key-value
    pairs in 64 tokens and are asked in up to 4,096. Then a small Echo reads a novel. About five minutes on two CPU
    cores.

    **Example:** `echo-ska demo --json demo.json`
    """
    from echo_ska.commands.files import require_apart, require_folder, require_writable

    require_writable(json_file, "--json")
    require_folder(output, "--output")
    require_apart(output, json_file, files=["recall.png"])
    from echo_ska.commands.run import start_demo

    start_demo(output, json_file, console(json_file))


@app.command()
def models(json_file: JsonFile = None) -> None:
    """List the presets: layers, parameters, and the state after 1k and 1M tokens by kind of layer.

    Every Echo has two twins of the same size: **-ssm**, all Mamba-2, and **-ssm-attention**, with softmax attention
    where Echo has SKA. Train one with `echo-ska train --model NAME`.

    **Example:** `echo-ska models --json models.json`
    """
    from echo_ska.commands.files import require_writable

    require_writable(json_file, "--json")
    from echo_ska.commands.show import show_models

    show_models(json_file, console(json_file))


@app.command()
def memory(
    presets: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET]...", help="Names from `echo-ska models`.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="What the models run in: fp32 or bf16.")] = "fp32",
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw bytes against tokens.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare what a model keeps with its attention twin's KV cache, from 1k to 1M tokens.

    Without a PRESET: echo-180m. The first rows are summed from a live state and checked against the formula that
    gives the others. A ratio of 100x says that the twin keeps a hundred times as many bytes.

    **Examples:** `echo-ska memory` · `echo-ska memory echo-1m echo-180m --plot memory.png --json memory.json`
    """
    from echo_ska.commands.files import require_apart, require_writable

    require_writable(json_file, "--json")
    require_writable(plot, "--plot", suffix=".png")
    require_apart(plot, json_file, "--plot")
    from echo_ska.commands.show import show_memory

    show_memory(presets or ["echo-180m"], dtype, plot, json_file, console(json_file))


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The experiment; leave it out for a list.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds to run; the experiment's own number else.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The small version, about ten minutes on two cores.")] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FOLDER",
            help="Your texts, in the form that the list names for an experiment on language.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where models are trained: cpu, or cuda, where the experiment can use a GPU.")
    ] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Run an experiment behind a table or figure, and draw it from its records.

    **Examples:** `echo-ska reproduce` lists the experiments · `echo-ska reproduce NAME --quick --seeds 1` ·
    `echo-ska reproduce language-model --text texts/`
    """
    from echo_ska.commands.files import require_apart, require_apart_from_texts, require_writable

    require_writable(json_file, "--json")
    require_apart_from_texts([] if text is None else [text], json_file)
    require_apart(Path("results"), json_file, "the records", files=["*.jsonl", "*.png"])
    from echo_ska.commands.run import start_experiment

    start_experiment(name, seeds, quick, text, device, json_file, console(json_file))


@app.command()
def bench(
    lengths: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Tokens of the sequences, ascending; the plan's own else.")
    ] = None,
    routes: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Rows to measure, such as ska,softmax; all else.")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(metavar="PART,...", help="Some of training, memory, prefill, decoding, layers; all else."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Torch's threads; the cores that are there else.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the interleaved timings.")] = None,
    decode_tokens: Annotated[
        int | None, typer.Option(help="Tokens to decode in a row, to see whether memory grows; 0 leaves it out.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="A look that takes about a minute.")] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where bench.jsonl and its picture are kept.")
    ] = Path("echo-bench"),
    json_file: JsonFile = None,
) -> None:
    """Measure time and memory of SKA beside softmax attention, linear attention and Mamba-2.

    Every route is first held to its definition in float64, gradients included; one that fails is named and not
    timed. Then all are timed in one run, turn by turn: training, reading a long context, decoding, whole layers.
    About fifteen minutes on two CPU cores; what would take too long or too much memory is left out and named, and
    Ctrl-C keeps what was measured (exit code 130).

    **Examples:** `echo-ska bench --quick` · `echo-ska bench --lengths 512,2048 --routes ska,softmax --parts training`
    """
    from echo_ska.commands.files import require_apart, require_folder, require_writable

    require_writable(json_file, "--json")
    require_folder(output, "--output")
    require_apart(output, json_file, files=["bench.jsonl", "bench.png", "bench-*.png"])
    from echo_ska.commands.bench import BenchRequest, start_bench

    request = BenchRequest(lengths, routes, parts, threads, rounds, decode_tokens, device, quick)
    start_bench(request, output, json_file, console(json_file))


@app.command()
def generate(
    model: ModelFolder,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to go on from; - reads standard input.")
    ],
    context: Annotated[
        Path | None, typer.Option("--context", metavar="FILE", help="Text to read before the prompt, of any length.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="STATE", help="What `echo-ska context read` saved, instead of --context."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the so many likeliest tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the printed figures to FILE as JSON.")
    ] = None,
) -> None:
    """Write on from a prompt, and from a context read before it in constant memory, now or by `context read`.

    The text goes to standard output as it comes; what was read and written, the time of a token and the bytes of
    state by kind of layer to standard error. The prompt follows the context at once: put a line end where there is
    to be one.

    **Examples:** `echo-ska generate runs/books/model --prompt "It was"` ·
    `printf 'Who came?' | echo-ska generate MODEL --context novel.txt --prompt - --temperature 0 --json figures.json`
    """
    from echo_ska.commands.files import require_apart, require_apart_from_model, require_writable

    require_writable(json_file, "--json")
    require_apart_from_model(model, json_file)
    require_apart(state, json_file, "--state")
    require_apart(context, json_file, "--context")
    from echo_ska.commands.generate import GenerateRequest
    from echo_ska.commands.generate import generate as start

    start(GenerateRequest(model, prompt, context, state, max_new_tokens, temperature, top_k, seed, device), json_file)


@app.command()
def export(
    model: ModelFolder,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write it; new or empty.")],
) -> None:
    """Write a model folder that loads where this package is not installed.

    It holds the weights, the tokenizer if there is one, and one file of readable code, modeling_echo.py, made from this
    package's sources (PyTorch alone: no C, no Triton). `AutoModelForCausalLM.from_pretrained(FOLDER,
    trust_remote_code=True)` loads it.

    **Example:** `echo-ska export runs/books/model exported`
    """
    from echo_ska.commands.files import require_new_folder

    require_new_folder(folder, "FOLDER")
    from echo_ska.commands.export import export as start

    start(model, folder, console())


@app.command("eval")
def evaluate(
    model: ModelFolder,
    tasks: Annotated[str, typer.Option("--tasks", metavar="NAME,...", help="The harness's tasks, or ours: see above.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="The files that tasks named ..._local read.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task at most; all else.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a forward call.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Ask a model the tasks of lm-evaluation-harness (`pip install 'echo-ska[eval]'`).

    Its own tasks, such as hellaswag, download their data. hellaswag_local, piqa_local, arc_easy_local,
    arc_challenge_local, lambada_local, wikitext_local and babi_qa1_local ask the same questions in the same form from
    files in --data FOLDER; docs/commands.md says which.

    **Examples:** `echo-ska eval MODEL --tasks hellaswag,piqa` ·
    `echo-ska eval MODEL --tasks lambada_local,babi_qa1_local --data data/ --limit 100 --json scores.json`
    """
    from echo_ska.commands.files import require_apart_from_model, require_writable

    require_writable(json_file, "--json")
    require_apart_from_model(model, json_file)
    from echo_ska.commands.evaluate import EvaluateRequest
    from echo_ska.commands.evaluate import evaluate as start

    start(EvaluateRequest(model, tasks, data, limit, batch_size, device), json_file, console(json_file))


@app.command()
def serve(
    model: ModelFolder,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="FOLDER", help="Keep states of prompts here, and find them again.")
    ] = None,
    store_bytes: Annotated[
        int, typer.Option(min=1, help="Of the store's files; beyond it, those least recently used are deleted.")
    ] = 10_000_000_000,
    host: Annotated[str, typer.Option(help="The address to listen at; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and says which.")] = 8000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Of a request; longer ones are refused.")] = 2_000_000,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are refused.")] = 131_072,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Requests for longer answers are refused.")] = 1024,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
) -> None:
    """Serve a model by OpenAI's HTTP interface, on this machine (`pip install 'echo-ska[serve]'`).

    /v1/chat/completions and /v1/completions, whole or streamed, /v1/models, /health. One answer is written at a time,
    other requests wait in order. With --store, the beginning of a prompt that was read once is not read again.
    docs/serving.md says what requests may hold.

    **Example:** `echo-ska serve runs/books/model --store contexts/`
    """
    from echo_ska.commands.files import require_folder

    require_folder(store, "--store")
    from echo_ska.commands.serve import ServeRequest
    from echo_ska.commands.serve import serve as start

    start(
        ServeRequest(model, store, store_bytes, host, port, max_body_bytes, max_prompt_tokens, max_new_tokens, device),
        console(),
    )


app.command("convert")(convert)
app.command("train")(train)
app.command("inspect")(inspect)
app.command("recall-text")(recall_text)
app.command("report")(report)
app.add_typer(context_app, name="context")
app.add_typer(data_app, name="data")
app.add_typer(recipe_app, name="recipe")

tokenizer_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Tokenizers from local text: **echo-ska tokenizer train**.",
)
app.add_typer(tokenizer_app, name="tokenizer")


@tokenizer_app.command("train")
def train_tokenizer(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Text files, or folders of *.txt and *.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to keep it; new or empty.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens to end with, at least 257.")] = 8192,
) -> None:
    """Learn a byte-level BPE tokenizer from text on this machine.

    Any text comes back from it exactly. Models of `echo-ska train --text` read bytes and have the byte tokenizer; this
    one is for `echo-ska data prepare --tokenizer FOLDER`, and for models that you train with other tools.

    **Example:** `echo-ska tokenizer train books/ notes.md --vocab-size 4096 -o tokenizers/books`
    """
    from echo_ska.commands.files import require_new_folder

    require_new_folder(output, "--output")
    from echo_ska.commands.tokenizer import train_tokenizer as start

    start(paths, vocab_size, output, console())


def main() -> None:
    """Run the command line."""
    app()
