"""Using a model: noria eval, chat, serve; noria import and export for the formats of others."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noria.cli.app import OK, JsonOption, StoreOption, app, make_room, open_store
from noria.studio.output import console, notices, print_json

if TYPE_CHECKING:
    from noria.deployment.gateway import GatewayOptions


class Computing(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


ComputingOption = Annotated[
    Computing,
    typer.Option(
        help="Of the products and the cache; int8 and int4 keep the weights in so many bits, else as bfloat16."
    ),
]


class Training(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


TrainingOption = Annotated[
    Training,
    typer.Option(help="Of products in training and its rollouts; auto: bfloat16 where the processor has units for it."),
]


class Weights(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


WeightsOption = Annotated[
    Weights,
    typer.Option(help="Of the matrices in training; bfloat16: half the memory, and needs --precision bfloat16."),
]


class Precision(StrEnum):
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"


@app.command(
    name="eval",
    epilog="Examples: noria eval release/prod my_tasks.jsonl    noria eval better/model new.jsonl --grader grader.json",
)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a key, an alias or a step's name.")],
    tasks: Annotated[
        Path | None, typer.Argument(metavar="TASKS", help="Tasks in JSON Lines; the built-in families if left out.")
    ] = None,
    grader: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A grader as of noria rft, for all of TASKS.")
    ] = None,
    per_domain: Annotated[int, typer.Option(min=1, help="Without TASKS: held-out tasks a domain.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Sampled tokens a reply.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the tasks and of the sampling.")] = 2000,
    precision: ComputingOption = Computing.float32,
    out: Annotated[Path | None, typer.Option(help="Write an item a line, with its answer and grade, here.")] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> int:
    """Let a model answer tasks and grade the answers; every number has n and a 95% interval."""
    import time

    from noria.studio import show
    from noria.studio.evaluate import Asked, evaluate_folder
    from noria.studio.lookup import model_folder

    if grader and tasks is None:
        raise typer.BadParameter("--grader grades TASKS: name a file of them")
    folder = model_folder(model, open_store(store))
    if out:
        make_room(out)
    started = time.monotonic()
    asked = Asked(tasks, per_domain, max_tokens, temperature, seed, precision.value, grader)
    summary = evaluate_folder(folder, asked, out)
    if json_:
        return print_json(summary)
    show.evaluation(console(), summary, time.monotonic() - started)
    return OK


@app.command(epilog="Examples: noria chat release/prod    noria chat models/smol --precision int8")
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a key or an alias.")] = "release/prod",
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Sampled tokens a reply.")] = 512,
    system: Annotated[str, typer.Option(help="The system message, if any.")] = "",
    precision: ComputingOption = Computing.float32,
    store: StoreOption = None,
) -> int:
    """Talk to a model in the terminal; replies appear as they are sampled. Nothing is logged."""
    from noria.studio.lookup import model_folder

    folder = model_folder(model, open_store(store))
    from noria.deployment.chat_terminal import ChatOptions, chat_terminal

    chat_terminal(folder, ChatOptions(seed, temperature, max_tokens, system, precision.value))
    return OK


@app.command(
    epilog="Examples: noria serve release/prod --port 8000    "
    "noria serve models/smol --api-keys keys.txt --host 0.0.0.0 --allow-host llm.example"
)
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a key or an alias.")] = "release/prod",
    host: Annotated[str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name the server answers to; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; MODEL if not given.")] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Who may ask: a line NAME KEY each; or set NORIA_API_KEYS to such lines."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Choices decoded together.")] = 32,
    precision: ComputingOption = Computing.float32,
    max_live: Annotated[int, typer.Option(min=1, help="Choices running and queued; beyond it a 429.")] = 256,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request's body.")] = 1 << 20,
    drain_seconds: Annotated[float, typer.Option(min=0, help="For running replies to end when stopped.")] = 30.0,
    traffic: Annotated[Path | None, typer.Option(help="The traffic log; <store>/traffic.sqlite if not given.")] = None,
    record: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Record in full what is asked at /traces/NAME/v1 into this folder."),
    ] = None,
    store: StoreOption = None,
) -> int:
    """Serve a model with the OpenAI API and a chat page, and log what is consented to."""
    from noria.studio.lookup import model_folder

    opened = open_store(store)
    folder = model_folder(model, opened)
    log = traffic or opened.root / "traffic.sqlite"
    log.parent.mkdir(parents=True, exist_ok=True)
    from noria import studio
    from noria.deployment.gateway import GatewayOptions, promised_retention
    from noria.deployment.gateway import serve as start
    from noria.inference.openai_api import ServerLimits

    options = GatewayOptions(
        traffic_db=log,
        name=name or model,
        host=host,
        port=port,
        page=Path(studio.__file__).parent / "chat",
        hosts=tuple(allow_host or ()),
        rows=rows,
        precision=precision.value,
        limits=ServerLimits(max_live, max_body),
        retention=promised_retention(folder),
        keys=_keys(api_keys),
        drain_seconds=drain_seconds,
        record=record,
    )
    start(folder, options, on_ready=lambda address: _announce(model, options, address))
    return OK


def _keys(path: Path | None) -> Mapping[str, str]:
    from noria.deployment.api_keys import KeyFileError, given_keys

    try:
        return given_keys(path)
    except KeyFileError as error:
        raise typer.BadParameter(str(error)) from error


def _announce(model: str, options: GatewayOptions, address: str) -> None:
    from noria.deployment.origin_guard import LOOPBACK

    if options.record:
        typer.echo(f"agents whose base URL is {address}/traces/NAME/v1 are recorded into {options.record}")
    served = f"{model} at {address} (chat page) and {address}/v1 (OpenAI API)"
    typer.echo(f"{served}; traffic in {options.traffic_db}; Ctrl-C stops")
    if not options.keys and options.host not in LOOPBACK:
        typer.echo("no API keys are set: whoever reaches this address can use the model", err=True)


@app.command(
    name="import", epilog="Examples: noria import SmolLM2-135M-Instruct/ models/smol    noria import m.gguf models/m"
)
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", exists=True, help="A Hugging Face folder, or a .gguf file.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The model folder to write.")],
    bf16: Annotated[bool, typer.Option("--bf16", help="Store bf16 and not fp32: half the size.")] = False,
    json_: JsonOption = False,
) -> int:
    """Make a model folder of an open model: Llama, Qwen 2 and 3, Qwen3-MoE, Gemma 3 (text), SmolLM2.

    What it can't import it refuses, naming each thing that is in the way.
    """
    import torch

    from noria.model.huggingface import UnsupportedModel, import_model

    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty; name a new folder")
    with notices().status(f"reading {source}"):
        try:
            config = import_model(source, folder, torch.bfloat16 if bf16 else torch.float32)
        except UnsupportedModel as error:
            raise typer.BadParameter(str(error)) from error
    if json_:
        return print_json(
            {"folder": str(folder), "parameters": config.parameters(), "architecture": config.model_dump()}
        )
    typer.echo(f"{folder}: {config.parameters():,} parameters; try `noria eval {folder}` or `noria chat {folder}`")
    return OK


@app.command(
    epilog="Examples: noria export release/prod models/hf    noria export models/smol smol.gguf --precision Q8_0"
)
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a key, an alias or a step's name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder; or a file whose name ends in .gguf.")],
    precision: Annotated[Precision, typer.Option(help="Of the matrices; Q8_0 in GGUF only.")] = Precision.F32,
    store: StoreOption = None,
) -> int:
    """Write a model as a folder that transformers and vLLM load, or as a GGUF file for llama.cpp."""
    import torch

    from noria.model.huggingface import UnsupportedModel, export_folder, export_gguf
    from noria.studio.lookup import model_folder

    folder = model_folder(model, open_store(store))
    if out.exists():
        raise typer.BadParameter(f"{out} is there already; name a new one")
    if precision is Precision.Q8_0 and out.suffix != ".gguf":
        raise typer.BadParameter("Q8_0 is a format of GGUF; name a file that ends in .gguf")
    dtypes = {Precision.F32: torch.float32, Precision.F16: torch.float16, Precision.BF16: torch.bfloat16}
    with notices().status(f"writing {out}"):
        try:
            if out.suffix == ".gguf":
                export_gguf(folder, out, precision.value)
            else:
                export_folder(folder, out, dtypes[precision])
        except UnsupportedModel as error:
            raise typer.BadParameter(str(error)) from error
    typer.echo(f"{out} written")
    return OK
