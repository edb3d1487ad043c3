"""`echo-ska serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from echo_ska.commands.load import load_model, load_tokenizer, require_model_folder, require_state
from echo_ska.commands.rare_lines import say
from echo_ska.memory import ContextStore
from echo_ska.serving.engine import Engine
from echo_ska.serving.loopback import is_loopback


@dataclass(frozen=True)
class ServeRequest:
    """What was asked for; the options of `echo-ska serve`, which documents them."""

    model: Path
    store: Path | None
    store_bytes: int
    host: str
    port: int
    max_body_bytes: int
    max_prompt_tokens: int
    max_new_tokens: int
    device: str


def serve(request: ServeRequest, console: Console) -> None:
    """Serve until the process is told to end.

    Raises:
        ValueError: the extra is not installed, or the model or a setting is not as it must be.
        OSError: the address cannot be listened at, or the store not be written.
    """
    if lacking := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{' and '.join(lacking)} is not installed: pip install 'echo-ska[serve]'.")
    from echo_ska.serving.app import create_app
    from echo_ska.serving.server import bind, run

    require_model_folder(request.model)
    loopback = is_loopback(request.host)
    with bind(request.host, request.port) as listening:  # before the model is loaded: a taken port is told at once
        model = load_model(request.model, request.device)
        require_state(model, request.model)
        tokenizer = load_tokenizer(request.model, model.config.vocab_size)
        store = None if request.store is None else ContextStore(request.store, request.store_bytes)
        engine = Engine(
            model,
            tokenizer,
            request.model.resolve().name,
            store,
            max_prompt_tokens=request.max_prompt_tokens,
            max_new_tokens=request.max_new_tokens,
        )
        app = create_app(engine, max_body_bytes=request.max_body_bytes, loopback_only=loopback)
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")

        def ready(address: str) -> None:
            say(console, f"{engine.name} answers at {address}. Ctrl-C ends it.")
            if not loopback:
                say(console, f"Whoever reaches {request.host} can use it: there are no passwords.")

        run(app, listening, ready)
