"""The command `lmloop`: the scripted twin of the menu, and everything that is done with a run afterwards."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lmloop.durable import in_words, json_line

Answer = tuple[dict[str, Any] | None, int]
"""What a verb prints under --json (None: nothing, another process of the run does), and its exit status."""


class _UsageError(ValueError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing half a screen of usage before the one line that says what is wrong."""
        raise _UsageError(f"{message.removeprefix('argument ')} (see {self.prog} -h)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; its exit status. User errors are one line on standard error and status 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in words
    for stream in (sys.stdout, sys.stderr):  # what a model writes may not exist in the terminal's character set
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(words)
        answer, status = options.verb(options)
        if as_json and answer is not None:
            _print_json(answer)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 1
    except (ValueError, OSError) as error:  # the user's; the disk's or the network's
        return _fail(in_words(error), as_json, 2 if isinstance(error, ValueError) else 1)
    except KeyboardInterrupt:
        return _fail("interrupted", as_json, 130)


def _fail(message: str, as_json: bool, status: int) -> int:
    if as_json:
        _print_json({"error": message})
    print(f"lmloop: {message}", file=sys.stderr)
    return status


def _print_json(answer: dict[str, Any]) -> None:
    """Strict JSON, with null for NaN and infinities, in ASCII: it survives any terminal and any pipe."""
    print(json.dumps(json.loads(json_line(answer))))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lmloop", description="One training loop for language models that you own.")
    verbs = parser.add_subparsers(required=True, metavar="VERB", dest="VERB")

    def verb(name: str, function: Any, summary: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=summary, description=summary)
        added.add_argument(
            "--json", action="store_true", help="one JSON object on standard output, everything else on standard error"
        )
        added.set_defaults(verb=function)
        return added

    def run_argument(added: argparse.ArgumentParser) -> None:
        added.add_argument("run", nargs="?", metavar="RUN", help="a run's folder; default: the run that was saved last")
        added.add_argument(
            "--checkpoint", choices=("best", "newest"), default="best", help="which of its checkpoints (default: best)"
        )

    train = verb("train", _train, "train a preset, or go on where its run stopped")
    train.add_argument("preset", metavar="PRESET", help="a preset's file, or the name of one in configs/")

    plan = verb("plan", _plan, "forecast memory, disk, speed and time of a preset on this machine")
    plan.add_argument("preset", metavar="PRESET", help="a preset's file, or the name of one in configs/")

    check = verb("check-data", _check_data, "read a preset's data as training would, and say what is wrong with it")
    check.add_argument("preset", metavar="PRESET", help="a preset's file, or the name of one in configs/")
    check.add_argument(
        "--limit", type=_positive, metavar="DOCUMENTS", help="of each source (default: all of it, 10,000 of a stream)"
    )
    check.add_argument("--samples", type=_seed, default=2, metavar="N", help="shown of each source (default 2; 0: none)")

    datasets = verb("datasets", _datasets, "the data sets that a preset can name: size, licence, domain and fields")
    datasets.add_argument("--kind", choices=("pretraining", "fine-tuning", "preferences"), help="only those of one kind")

    prepare = verb(
        "prepare", _prepare, "make training files of chats: exports of ChatGPT and Claude, messages, ShareGPT, Alpaca"
    )
    prepare.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, such as conversations.json, or a folder")
    prepare.add_argument("--out", required=True, metavar="DIR", help="where train.jsonl, validation.jsonl and test.jsonl go")
    prepare.add_argument(
        "--split", default="80/10/10", metavar="PERCENT", help="for training, validation and test (default 80/10/10)"
    )
    prepare.add_argument("--overwrite", action="store_true", help="replace such files in DIR")

    evaluate = verb("evaluate", _evaluate, "cross-entropy, perplexity and bits per byte on held-out text")
    run_argument(evaluate)
    evaluate.add_argument("--data", metavar="FILE", help="a file or folder to evaluate on, whole")
    evaluate.add_argument(
        "--split", choices=("validation", "test"), default="validation", help="a split of the run's own data"
    )

    generate = verb("generate", _generate, "write a continuation")
    run_argument(generate)
    generate.add_argument(
        "--prompt", action="append", metavar="TEXT", help="the beginning; several are written as one batch"
    )
    _sampling_arguments(generate)

    chat = verb("chat", _chat, "talk to a model")
    run_argument(chat)
    _sampling_arguments(chat)

    export = verb("export", _export, "write a model as another program wants it, and check that it is the same model there")
    run_argument(export)
    export.add_argument("--format", required=True, choices=("hf", "gguf", "mlx"), help="a Hugging Face folder, GGUF, MLX")
    export.add_argument("--out", required=True, metavar="DIR", help="a new folder, or one that holds an older export")
    export.add_argument(
        "--quantize", metavar="TYPE", help="type of the numbers: f32, bf16, f16, q8_0, ...; default: the model's own"
    )
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 up")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)


_SAMPLING = {
    "temperature": (float, "how daring: 0 is always the likeliest token, 1 as the model has learned"),
    "top_k": (int, "keep the N likeliest tokens (0: all)"),
    "top_p": (float, "keep the likeliest tokens that together have this probability (1: all)"),
    "min_p": (float, "drop tokens less likely than this share of the likeliest one's probability (0: none)"),
    "repetition_penalty": (float, "divides the logits of tokens that were there before (1: off)"),
    "no_repeat_ngram_size": (int, "no N tokens in a row are written twice (0: off)"),
}


def _sampling_arguments(added: argparse.ArgumentParser) -> None:
    group = added.add_argument_group("sampling (default: the run's preset)")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--greedy", action="store_true", help="always the likeliest token: --temperature 0")
    for name, (kind, words) in _SAMPLING.items():
        where = either if name == "temperature" else group
        metavar = "X" if kind is float else "N"
        where.add_argument("--" + name.replace("_", "-"), dest=name, type=kind, metavar=metavar, help=words)
    group.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest continuation or answer")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="text at which writing ends; may be given several times"
    )
    group.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of the sampling (default 0)")


def _sampling_changes(options: argparse.Namespace) -> dict[str, Any]:
    names = [*_SAMPLING, "stop", "max_new_tokens"]
    greedy = {"temperature": 0.0} if options.greedy else {}
    return greedy | {name: value for name in names if (value := getattr(options, name, None)) is not None}


def _train(options: argparse.Namespace) -> Answer:
    from lmloop.launch import train_chosen
    from lmloop.preset.reading import find_preset, load_preset

    return train_chosen(lambda: load_preset(find_preset(options.preset)), json_mode=options.json)


def _plan(options: argparse.Namespace) -> Answer:
    from rich.console import Console

    from lmloop.plan import print_plan, this_plan
    from lmloop.preset.reading import find_preset, load_preset

    with Console(stderr=True).status("measuring this machine ..."):
        plan = this_plan(load_preset(find_preset(options.preset)))
    if not options.json:
        print_plan(plan)
    return plan.as_dict(), 0


def _check_data(options: argparse.Namespace) -> Answer:
    from lmloop.check.data import check_data
    from lmloop.check.reading import Reading
    from lmloop.check.show import show
    from lmloop.preset.reading import find_preset, load_preset

    loaded = load_preset(find_preset(options.preset))
    with Reading() as reading:
        findings = check_data(loaded, reading, limit=options.limit, samples=options.samples)
    if not options.json:
        show(findings)
    return findings.as_dict(), 130 if findings.interrupted else 0 if findings.ok else 1


def _datasets(options: argparse.Namespace) -> Answer:
    from rich.console import Console

    from lmloop.data.catalog import listed, table

    entries = listed(options.kind)
    if not options.json:
        Console().print(table(entries))
    return {"datasets": entries}, 0


def _prepare(options: argparse.Namespace) -> Answer:
    from lmloop.data.prepare import lines_of, prepare

    report = prepare(options.inputs, options.out, split=options.split, overwrite=options.overwrite)
    if not options.json:
        print("\n".join(lines_of(report)))
    return report, 0


def _evaluate(options: argparse.Namespace) -> Answer:
    from lmloop.use import evaluate_run, print_evaluation

    result = evaluate_run(options.run, options.checkpoint, data=options.data, split=options.split)
    if not options.json:
        print_evaluation(result)
    return result, 0


def _generate(options: argparse.Namespace) -> Answer:
    from lmloop.use import generate_from_run

    return generate_from_run(
        options.run,
        options.checkpoint,
        prompts=options.prompt or [""],
        changes=_sampling_changes(options),
        seed=options.seed,
        json_mode=options.json,
    ), 0


def _export(options: argparse.Namespace) -> Answer:
    from lmloop.export.export import export_run, lines_of

    report = export_run(options.run, options.checkpoint, format=options.format, out=options.out, quantize=options.quantize)
    if not options.json:
        print("\n".join(lines_of(report)))
    return report, 0


def _chat(options: argparse.Namespace) -> Answer:
    from lmloop.use import chat_with_run

    return chat_with_run(
        options.run, options.checkpoint, changes=_sampling_changes(options), seed=options.seed, json_mode=options.json
    ), 0


if __name__ == "__main__":
    sys.exit(main())
