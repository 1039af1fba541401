#!/usr/bin/env python3
"""Serve one GGUF model with llama.cpp's own OpenAI-compatible HTTP server.

`/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health` and
`/metrics` are llama.cpp's. This file reads the command line, refuses what
cannot work with a sentence that says what to do, and ends cleanly: after
SIGTERM, requests that are being answered are answered before the process
exits.
"""

import argparse
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time

import xllamacpp

GGUF_MAGIC = b"GGUF"
DRAIN_POLL_SECONDS = 0.1
REQUESTS_IN_PROCESS = re.compile(r"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)


class ConfigurationError(Exception):
    """What was asked for cannot be served; the message says what to change."""


def whole_number(minimum, maximum):
    """Return an argparse type for integers in a range."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{value} is not between {minimum} and {maximum}")
        return value

    return parse


def parse_command_line(arguments):
    """Return the parsed command line; flags win over the environment."""
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="creo-engine-llama-cpp", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        default=environment.get("CREO_MODEL_PATH"),
        help="the GGUF file, or a folder that holds exactly one (or the parts of one) [CREO_MODEL_PATH]",
    )
    parser.add_argument(
        "--alias",
        default=environment.get("CREO_MODEL_NAME"),
        help="the name under which the model is served (default: the file's name) [CREO_MODEL_NAME]",
    )
    parser.add_argument(
        "--host",
        default=None,
        help="the address to listen on (default: every address, IPv4 and IPv6)",
    )
    parser.add_argument(
        "--port",
        type=whole_number(1, 65535),
        default=environment.get("CREO_PORT", "8000"),
        help="the TCP port to listen on (default: 8000) [CREO_PORT]",
    )
    parser.add_argument(
        "--ctx-size",
        type=whole_number(0, 1 << 24),
        default=0,
        help="tokens of context, shared by the requests in parallel; 0: as the model was trained (default)",
    )
    parser.add_argument(
        "--parallel",
        type=whole_number(1, 256),
        default=4,
        help="requests answered at the same time; more wait (default: 4)",
    )
    parser.add_argument(
        "--gpu-layers",
        type=whole_number(-1, 100_000),
        default=-1,
        help="layers kept in GPU memory; -1: as many as fit, where this build has GPU support (default)",
    )
    parser.add_argument(
        "--threads",
        type=whole_number(0, 1024),
        default=0,
        help="CPU threads for inference; 0: one for each core (default)",
    )
    parser.add_argument(
        "--prompt-cache-mib",
        type=whole_number(0, 1 << 20),
        default=0,
        help="host memory for prompts kept for later requests; 0: none (default)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=whole_number(0, 3600),
        default=20,
        help="after SIGTERM, wait at most so long for requests being answered (default: 20)",
    )
    return parser.parse_args(arguments)


def find_model(path):
    """Return the model file that `path` names."""
    if not path:
        raise ConfigurationError("no model: give --model or set CREO_MODEL_PATH")
    place = pathlib.Path(path)
    try:
        if place.is_dir():
            place = only_model_in(place)
        with place.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the model {path}: {error.strerror}; is the path right, and the image that holds it mounted?"
        ) from error
    if magic != GGUF_MAGIC:
        raise ConfigurationError(f"{place} is not a GGUF file; convert the model, or choose an engine that reads it")
    return str(place)


def only_model_in(folder):
    """Return the one model of a folder; of a model in parts, the first part."""
    files = sorted(folder.glob("*.gguf"))
    first_part = re.compile(r"-00001-of-(\d{5})\.gguf$")
    for file in files:
        parts = first_part.search(file.name)
        if parts and len(files) == int(parts.group(1)):
            return file
    if len(files) == 1:
        return files[0]
    found = ", ".join(file.name for file in files) or "none"
    raise ConfigurationError(f"{folder} must hold exactly one model in GGUF, found: {found}; name the file itself")


def every_address():
    """Return the address that stands for all; IPv6 may be switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return "0.0.0.0"
    return "::"


def server_parameters(options):
    """Return llama.cpp's parameters for the command line."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = find_model(options.model)
    parameters.model_alias = {options.alias or pathlib.Path(parameters.model.path).stem}
    parameters.hostnames = [options.host or every_address()]
    parameters.port = options.port
    parameters.n_ctx = options.ctx_size
    parameters.n_parallel = options.parallel
    # One pool of context for all slots: a single long request may use it all.
    parameters.kv_unified = True
    parameters.n_gpu_layers = options.gpu_layers
    if options.threads:
        parameters.cpuparams.n_threads = options.threads
        parameters.cpuparams_batch.n_threads = options.threads
    parameters.cache_ram_mib = options.prompt_cache_mib
    parameters.endpoint_metrics = True
    # The slots' state holds other callers' prompts, and a page for people
    # does not belong on a model's port.
    parameters.endpoint_slots = False
    parameters.ui = False
    # The model is what was mounted. Nothing is ever fetched.
    parameters.offline = True
    return parameters


def start(parameters):
    """Return the running server; it answers from here on."""
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError as error:
        address = f"{parameters.hostnames[0]} port {parameters.port}"
        raise ConfigurationError(
            f"llama.cpp could not load {parameters.model.path} or listen on {address}; "
            "its own messages are above"
        ) from error


def drain(server, seconds):
    """Wait until no request is being answered, at most `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(int(count) for count in REQUESTS_IN_PROCESS.findall(str(server.handle_metrics()))):
            return
        time.sleep(DRAIN_POLL_SECONDS)
    say(f"still answering after {seconds} s; ending all the same")


def say(message):
    """Write one line to the log."""
    print(f"creo-engine-llama-cpp: {message}", file=sys.stderr, flush=True)


def main(arguments=None):
    """Serve until SIGTERM or SIGINT; return the process's exit status."""
    options = parse_command_line(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = start(server_parameters(options))
    except ConfigurationError as error:
        say(error)
        return 2
    say(f"serving on {server.listening_address}")
    stop.wait()
    say("asked to stop")
    drain(server, options.drain_seconds)
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
