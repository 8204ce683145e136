"""`capstan init`: a commented starter spec, by flags, or asked where someone sits at the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from capstan.console import err
from specs.errors import InputError, nearest_names

ENGINES = ("vllm", "sglang", "trtllm", "capstan")


@dataclass(frozen=True)
class Answers:
    """What a starter spec is made of, as written: quantities keep their units."""

    model: str = "Qwen/Qwen3-8B"
    device: str = "h100-sxm"
    gpus: str = "8"
    price: str = ""  # none: the fewest GPUs win
    rate: str = "5/s"
    prompt_tokens: str = "1000"
    output_tokens: str = "250"
    ttft: str = "1s"
    tpot: str = "50ms"
    engine: str = "vllm"


QUESTIONS = {
    "model": "model (a name of the catalogue, or a path to config.json)",
    "device": "GPU (capstan catalog lists them)",
    "gpus": "how many of them may be used",
    "price": "price per GPU, such as $2.90/h (empty: the fewest GPUs win)",
    "rate": "requests, such as 5/s or 300/min",
    "prompt_tokens": "prompt tokens per request, on average",
    "output_tokens": "output tokens per request, on average",
    "ttft": "time to first token that 90 % of requests keep, such as 1s",
    "tpot": "time per further token that 90 % of requests keep, such as 50ms",
    "engine": f"engine ({', '.join(ENGINES)})",
}


def run_init(
    output: Path | None,
    force: bool,
    model: str | None = None,
    device: str | None = None,
    gpus: int | None = None,
    price: str | None = None,
    rate: str | None = None,
    prompt_tokens: str | None = None,
    output_tokens: str | None = None,
    ttft: str | None = None,
    tpot: str | None = None,
    engine: str | None = None,
) -> None:
    """Write a starter spec to `output` (None: stdout). What no flag says is asked at a terminal, else the default.

    An existing file is refused without `force`. `InputError` names the flag whose value is wrong.
    """
    if output is not None and output.exists() and not force:
        raise InputError("exists already", file=str(output), expected="another name, or --force to replace it")
    given: dict[str, Any] = {
        "model": model, "device": device, "gpus": gpus, "price": price, "rate": rate, "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens, "ttft": ttft, "tpot": tpot, "engine": engine,
    }  # fmt: skip
    flags = {name: str(value).strip() for name, value in given.items() if value is not None}
    for name, value in flags.items():
        check_answer(name, value)
    answers = replace(Answers(), **flags)
    if sys.stdin.isatty() and sys.stderr.isatty() and not flags:
        answers = _ask(answers)
    text = starter_spec(answers, output.stem if output is not None else "")
    if output is None:
        sys.stdout.write(text)
        return
    from specs.document import write_atomically

    write_atomically(output, text)
    err().print(f"wrote {output}; next: capstan plan {output}", markup=False)


def starter_spec(answers: Answers, stem: str = "") -> str:
    """The commented YAML. It is read back before it is returned: what `init` writes loads."""
    from specs.catalog import load_device
    from specs.deployment import parse_deployment

    per_node = min(load_device(answers.device).gpus_per_node, int(answers.gpus))
    whole_nodes = int(answers.gpus) % per_node == 0
    rent = "node" if whole_nodes else "gpu"
    pool = f"name: {_name(answers.device)}, device: {_plain(answers.device)}, count: {answers.gpus}"
    pool += f", gpus_per_node: {per_node}"
    if answers.price:
        pool += f", price: {_plain(answers.price)}, rent: {rent}"
    objective = "cost" if answers.price else "gpus"
    text = TEMPLATE.format(
        name=_name(stem or "deployment"),
        model=_plain(answers.model),
        pool=pool,
        rate=_plain(answers.rate),
        prompt_tokens=_plain(answers.prompt_tokens),
        output_tokens=_plain(answers.output_tokens),
        ttft=_plain(answers.ttft),
        tpot=_plain(answers.tpot),
        objective=objective,
        other="gpus" if answers.price else "cost (needs `price: $2.90/h` on every pool)",
        engine=answers.engine,
    )
    parse_deployment(text, "starter spec").refuse_unhonoured()
    return text


TEMPLATE = """\
# A starter spec. Plan it:                 capstan plan THIS_FILE
# See every default of what is left out:   capstan validate THIS_FILE
# Quantities carry units: 1s, 50ms, 5/s, 300/min, $2.90/h. SI prefixes are decimal (2k = 2000), Ki and Gi binary.
apiVersion: capstan/v1
kind: Deployment
name: {name}

models:
  main:
    architecture: {model}
    weights: bf16              # one type, or the choices left to the planner: [bf16, fp8]
    kv_cache: bf16
    # max_context: 16Ki        # longest prompt plus output to serve

hardware:
  pools:                       # what may be used, not what must be; add a line per kind of GPU to compare them
    - {{{pool}}}

traffic:
  - name: requests
    model: main
    arrivals: {{rate: {rate}}}   # Poisson; bursty: {{rate: {rate}, process: gamma, cv: 4}}
    # a length is a number, or a distribution: {{lognormal: {{mean: 2k, p99: 7k}}}}, {{uniform: [100, 1024]}}
    prompt_tokens: {{mean: {prompt_tokens}}}
    output_tokens: {{mean: {output_tokens}}}
    # Recorded requests instead of the lines above (csv: arrival_s,prompt_tokens,output_tokens):
    # trace: {{file: requests.csv, format: csv, rate: {rate}}}
    slo: {{ttft: {{p90: {ttft}}}, tpot: {{p90: {tpot}}}}}
    # or jointly:  slo: {{ttft: {ttft}, tpot: {tpot}, attainment: 95%}}

objective: minimise {objective}        # or: minimise {other}

# limits:
#   budget: $40/h
#   utilisation: 85%           # headroom: the promises hold at 1/0.85 of this traffic

choices:                       # a value here is a pin; what is left out is the planner's to choose
  engine: {engine}
  # main: {{tensor_parallel: [1, 2, 4], max_num_seqs: auto, replicas: auto}}
"""


def check_answer(name: str, value: str) -> None:
    """`InputError` naming the flag where `value` is not an answer to the question `name`."""
    from specs import quantities

    parsers: dict[str, Callable[[str], object]] = {
        "rate": quantities.parse_per_s, "prompt_tokens": quantities.parse_tokens,
        "output_tokens": quantities.parse_tokens, "ttft": _positive_seconds, "tpot": _positive_seconds,
        "price": quantities.parse_usd_per_hour, "gpus": _gpus, "device": _device, "engine": _engine, "model": _model,
    }  # fmt: skip
    if name == "price" and not value:
        return
    try:
        parsers[name](value)
    except InputError as error:
        flag = "--" + name.replace("_", "-")
        raise InputError(error.message, field=flag, expected=error.expected, nearest=error.nearest) from None


def _positive_seconds(text: str) -> None:
    from specs.quantities import parse_seconds

    if parse_seconds(text) == 0:
        raise InputError(f"{text!r} is zero", expected="a duration such as 50ms")


def _gpus(text: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text, re.ASCII):
        raise InputError(f"{text!r} is not a number of GPUs", expected="a whole number from 1 to 999,999")


def _device(text: str) -> None:
    from specs.catalog import load_device

    load_device(text)


def _engine(text: str) -> None:
    if text not in ENGINES:
        raise InputError(f"unknown engine {text!r}", expected=f"one of {', '.join(ENGINES)}",
                         nearest=nearest_names(text, ENGINES))  # fmt: skip


def _model(text: str) -> None:
    if not text or len(text) > 1024 or not text.isprintable():
        raise InputError("is not a model", expected="a name such as Qwen/Qwen3-8B, or a path to config.json")


def _ask(answers: Answers) -> Answers:
    """Ask every question on stderr, with the default in brackets; a wrong answer is explained and asked again."""
    console = err()
    console.print("A starter spec. Enter takes the value in brackets.", markup=False)
    for field in fields(Answers):
        default = getattr(answers, field.name)
        while True:
            console.print(f"{QUESTIONS[field.name]} [{default}]: ", end="", markup=False)
            line = sys.stdin.readline()
            if not line:
                raise InputError("the input ended before all questions were answered", expected="flags, or answers")
            value = line.strip() or default
            try:
                check_answer(field.name, value)
            except InputError as error:
                console.print(f"  {error.message}; expected {error.expected}", markup=False)
                continue
            answers = replace(answers, **{field.name: value})
            break
    return answers


def _plain(text: str) -> str:
    """`text` as one YAML value, quoted where YAML would read something else into it."""
    import json

    plain = re.fullmatch(r"[A-Za-z0-9$./][A-Za-z0-9$./%_+ -]*", text, re.ASCII) and text != "null"
    return text if plain else json.dumps(text, ensure_ascii=False)


def _name(text: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-._")
    return cleaned or "deployment"
