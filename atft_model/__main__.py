"""``python -m atft_model``: train and predict from a panel and a graph, without Dagster.

Also ``structure``: learn from a CSV of series which of them drive which.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from atft_model import settings
from atft_model.config import PRESETS, from_dict, read_run_file, resolve
from atft_model.errors import InputError
from atft_model.process import die_with_parent, keep_freed_memory
from atft_model.structure.config import PRESETS as STRUCTURE_PRESETS
from atft_model.training.reporter import Reporter, open_reporter


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; bad input ends with one line on stderr and exit code 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.die_with_parent:
        die_with_parent()
    if options.command is run_train and (options.nproc > 1 or options.torchrun):
        return launch_training(options, sys.argv[1:] if arguments is None else arguments)
    place = settings.place_from_environment()
    # Opened before anything can fail: a process that never answered would read as a lost one.
    with open_reporter(place) as reporter:
        try:
            return options.command(options, reporter)
        except InputError as error:
            if place.launched:
                from atft_model.training.launch import record_reason

                record_reason(error)
            else:
                print(f"atft_model: {error}", file=sys.stderr)
            return 2


def build_parser() -> argparse.ArgumentParser:
    """The command line: each command's arguments are declared by a function of their own."""
    parser = argparse.ArgumentParser(prog="python -m atft_model", description=__doc__)
    commands = parser.add_subparsers(required=True)
    train_arguments(commands.add_parser("train", help="train a model into a run folder"))
    predict_arguments(
        commands.add_parser("predict", help="score validation and test dates with a run")
    )
    importance_arguments(
        commands.add_parser(
            "importance", help="which features and neighbours a run's scores of test dates rest on"
        )
    )
    bench_arguments(
        commands.add_parser("bench", help="training speed and memory on a random panel")
    )
    structure_arguments(
        commands.add_parser("structure", help="learn which series drive which, from a CSV")
    )
    faults_arguments(commands.add_parser("faults", help="plant every known fault, see it caught"))
    soak_arguments(commands.add_parser("soak", help="a long run, whose memory must stay flat"))
    return parser


def data_arguments(command: argparse.ArgumentParser) -> None:
    """Where the data lie."""
    command.add_argument("--panel", type=Path, required=True, help="panel folder")
    command.add_argument("--graph", type=Path, required=True, help="stock graph folder")


def device_argument(command: argparse.ArgumentParser) -> None:
    """On what it runs."""
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def run_by(
    command: argparse.ArgumentParser, function: Callable[..., int], a_child: bool = True
) -> None:
    """What runs a command.

    Args:
        a_child: Whether Dagster starts it as a process of its own, which must end with it.
    """
    command.set_defaults(command=function, die_with_parent=False)
    if a_child:
        command.add_argument("--die-with-parent", action="store_true", help=argparse.SUPPRESS)


def train_arguments(train: argparse.ArgumentParser) -> None:
    """``train``: data, settings, and how it is shared out."""
    data_arguments(train)
    train.add_argument("--out", type=Path, required=True, help="run folder to write; its name is "
                       "the run id")  # fmt: skip
    train.add_argument("--preset", choices=sorted(PRESETS), help="recipe (default: standard)")
    train.add_argument("--run-file", type=Path, help="run.toml with settings over the preset")
    train.add_argument("--resolved", type=Path, help="complete config.json; nothing else applies")
    train.add_argument("--ledger", type=Path, help="append-only trial ledger to add the run to")
    train.add_argument("--fold", type=Path, help="walk-forward fold (JSON): its split instead of "
                       "the panel's")  # fmt: skip
    train.add_argument("--resume", action="store_true", help="go on with the run in --out that "
                       "was killed, to the same weights as if it had not been")  # fmt: skip
    train.add_argument("--nproc", type=int, default=1, help="processes on this machine that train "
                       "together, one per GPU; their batch is the one of the settings")  # fmt: skip
    train.add_argument("--torchrun", default="", help="further arguments of torchrun, for several "
                       "machines: '--nnodes=2 --node-rank=0 --master-addr=host'")  # fmt: skip
    run_by(train, run_train)


def predict_arguments(predict: argparse.ArgumentParser) -> None:
    """``predict``: a run, and which dates and graphs it scores."""
    predict.add_argument("--run", type=Path, required=True, help="run folder")
    data_arguments(predict)
    predict.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    device_argument(predict)
    predict.add_argument("--random-graph", action="store_true", help="score the test dates with "
                         "a random graph too, as a control")  # fmt: skip
    predict.add_argument("--newest", action="store_true", help="score the newest date alone")
    predict.add_argument(
        "--other-graph",
        type=Path,
        action="append",
        default=[],
        help="score the test dates with this graph too; may be repeated",
    )
    run_by(predict, run_predict)


def importance_arguments(importance: argparse.ArgumentParser) -> None:
    """``importance``: a run, and which features are taken together."""
    importance.add_argument("--run", type=Path, required=True, help="run folder")
    data_arguments(importance)
    importance.add_argument("--out", type=Path, required=True, help="folder for the two tables")
    importance.add_argument("--groups", type=Path, help="JSON of feature names by group (default: "
                            "every feature by itself, which takes long)")  # fmt: skip
    device_argument(importance)
    run_by(importance, run_importance)


def bench_arguments(bench: argparse.ArgumentParser) -> None:
    """``bench``: the sizes of the random panel and of the model."""
    for name, default in (("features", 82), ("stocks", 300), ("dates", 600), ("steps", 6),
                          ("repeats", 3), ("monitor-rounds", 4), ("lookback", 20), ("hidden", 64),
                          ("batch-windows", 2048), ("run-length", 60)):  # fmt: skip
        bench.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    bench.add_argument("--precision", default="32", choices=("32", "bf16-mixed"))
    bench.add_argument("--kept-gib", type=float, help="training.kept_gib; more is faster")
    bench.add_argument("--compile", action="store_true", help="training.compile")
    device_argument(bench)
    bench.add_argument("--json", type=Path, help="file for the result")
    bench.add_argument("--before", type=Path, help="an earlier result, shown beside this one")
    run_by(bench, run_bench, a_child=False)


def structure_arguments(structure: argparse.ArgumentParser) -> None:
    """``structure``: the series and how much is spent on them."""
    structure.add_argument(
        "--data",
        type=Path,
        required=True,
        help="CSV: a header, one row per "
        "date, one column per series (a first column of dates is skipped)",
    )
    structure.add_argument("--out", type=Path, required=True, help="folder for the record")
    structure.add_argument(
        "--exogenous",
        default="",
        help="columns that drive and are not driven (the market), separated by commas",
    )
    structure.add_argument(
        "--lags",
        type=int,
        help="days back that a series may act from (default 1; 0 for rows without time)",
    )
    structure.add_argument("--preset", choices=sorted(STRUCTURE_PRESETS), default="default")
    structure.add_argument(
        "--resamples", type=int, help="bootstrap resamples (default 30; 0: none)"
    )
    structure.add_argument(
        "--common-factor",
        choices=("flag", "take_out"),
        help="an unobserved driver of most series, such as a market that is not given: warn of it "
        "(default), or estimate it with the graph",
    )
    structure.add_argument("--seed", type=int, help="default 1337")
    structure.add_argument("--sweep", action="store_true", help="first train the gradient stage "
                           "over a grid of the four loss weights and take the best")  # fmt: skip
    run_by(structure, run_structure)


def faults_arguments(faults: argparse.ArgumentParser) -> None:
    """``faults``: where the table goes."""
    faults.add_argument("--out", type=Path, help="Markdown file to write the table to")
    faults.add_argument("--clean", type=int, default=20, help="clean runs that must pass")
    run_by(faults, run_faults, a_child=False)


def soak_arguments(soak: argparse.ArgumentParser) -> None:
    """``soak``: on what, and for how long."""
    data_arguments(soak)
    soak.add_argument("--epochs", type=int, default=50, help="default 50")
    device_argument(soak)
    run_by(soak, run_soak, a_child=False)


def launch_training(options: argparse.Namespace, arguments: list[str]) -> int:
    """``train --nproc``: the same command in several processes; the exit code of the run."""
    if options.nproc < 1:
        print(f"atft_model: --nproc is {options.nproc}; expected at least 1", file=sys.stderr)
        return 2
    from atft_model.training.launch import launch

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--nproc")
    own.add_argument("--torchrun")
    _, command = own.parse_known_args(arguments)
    return launch(options.nproc, shlex.split(options.torchrun), command)


def run_train(options: argparse.Namespace, reporter: Reporter) -> int:
    """``train``: settings, then the run, then the ledger."""
    if options.resolved:
        config = from_dict(json.loads(options.resolved.read_text()), str(options.resolved))
    else:
        layers = [("environment", settings.from_environment())]
        preset = None
        if options.run_file:
            preset, values = read_run_file(options.run_file)
            layers.append((str(options.run_file), values))
        config = resolve(options.preset or preset or "standard", layers)
    place = settings.place_from_environment()
    if place.rank == 0:
        start_logging(options.out / "train.log")
    else:
        logging.getLogger("atft").setLevel(logging.CRITICAL + 1)
    # Imported late: bad settings are reported without waiting for torch.
    from atft_model.data.folds import Fold
    from atft_model.run import train
    from atft_model.training.distributed import open_group

    fold = Fold.from_dict(json.loads(options.fold.read_text())) if options.fold else None
    with open_group(place, config.training.device) as group:
        record = train(
            config, options.panel, options.graph, options.out, reporter, options.ledger,
            options.resume, fold, group,
        )  # fmt: skip
    log = logging.getLogger("atft")
    log.info(
        "run %s: best epoch %d of %d, validation rank IC %.4f, weights %s, %.0f s",
        record["run_id"], record["best_epoch"], record["epochs"],
        record["best_validation_rank_ic"], record["checkpoint_hash"], record["seconds"],
    )  # fmt: skip
    return 0


def run_predict(options: argparse.Namespace, reporter: Reporter) -> int:
    """``predict``: scores to a Parquet file, written whole or not at all."""
    start_logging(None)
    import pyarrow.parquet as pq

    from atft_model.run import predict

    table = predict(
        options.run, options.panel, options.graph, options.device, options.random_graph,
        options.newest, options.other_graph,
    )  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, options.out)
    logging.getLogger("atft").info("%s scores written to %s", f"{len(table):,}", options.out)
    reporter.result({"scores": len(table)})
    return 0


def run_importance(options: argparse.Namespace, reporter: Reporter) -> int:
    """``importance``: its tables as Parquet files."""
    start_logging(None)
    import pyarrow.parquet as pq

    from atft_model.importance_command import importance_tables, read_groups

    groups = read_groups(options.groups) if options.groups else None
    tables = importance_tables(options.run, options.panel, options.graph, groups, options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        temporary = options.out / f".{name}.{os.getpid()}.tmp"
        pq.write_table(table, temporary)
        os.replace(temporary, options.out / f"{name}.parquet")
    reporter.result({name: len(table) for name, table in tables.items()})
    return 0


def run_bench(options: argparse.Namespace, _: Reporter) -> int:
    """``bench``: one table on the terminal, the same numbers as JSON."""
    settings_given = {
        "model": {"lookback": options.lookback, "hidden_size": options.hidden},
        "training": {"batch_windows": options.batch_windows, "run_length": options.run_length,
                     "precision": options.precision, "device": options.device,
                     "kept_gib": options.kept_gib, "compile": options.compile},
    }  # fmt: skip
    config = resolve("standard", [("command line", settings_given)])
    from atft_model.bench import BenchSize, measure, read_result, show, write_result

    before = read_result(options.before) if options.before else None
    size = BenchSize(
        options.dates, options.stocks, options.features, options.steps, options.repeats,
        options.monitor_rounds,
    )  # fmt: skip
    result = measure(config, size)
    print(show(result, before))
    if options.json:
        write_result(result, options.json)
    return 0


def run_structure(options: argparse.Namespace, _: Reporter) -> int:
    """``structure``: the record of a learned graph; exit code 1 when one of its checks fails."""
    start_logging(options.out / "structure.log")
    from atft_model.structure.command import learn_from_csv

    return learn_from_csv(options)


def run_faults(options: argparse.Namespace, reporter: Reporter) -> int:
    """``faults``: the fault matrix; exit code 1 where a fault went unnoticed or a clean run not."""
    from atft_model.data.artifacts import write_text_atomically
    from atft_model.faults import as_markdown, run_matrix

    results = []
    for result in run_matrix(options.clean):
        sound = result.caught if result.intended else not result.others
        results.append(result)
        wanted = result.intended or "nothing"
        print(f"{'ok' if sound else 'FAILED':6} {result.name}: {wanted}: {result.seen}", flush=True)
    if options.out:
        write_text_atomically(options.out, as_markdown(results))
    return int(not all(r.caught if r.intended else not r.others for r in results))


def run_soak(options: argparse.Namespace, _: Reporter) -> int:
    """``soak``: memory by epoch, and exit code 1 where it grew."""
    from atft_model.soak import soak

    return int(not soak(options.panel, options.graph, options.epochs, options.device))


def start_logging(path: Path | None) -> None:
    """INFO to the terminal; everything, with times, to the run's log file."""
    log = logging.getLogger("atft")
    log.setLevel(logging.DEBUG)
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.INFO)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(terminal)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
