"""A model behind OpenAI's HTTP interface, on this machine.

    protocol    what a request may say, and how answers are written; knows neither a model nor a network
    engine      the model, its tokenizer and its store of contexts: from a prompt to pieces of text
    worker      one generation at a time, the others in order
    loopback    which hosts are this machine itself
    app         HTTP: Starlette's routes around them

`app` and `server` need the extra `serve`; the rest does not.
"""
