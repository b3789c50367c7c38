"""``python -m atft_model structure``: any CSV in, a record out, one line for what it cannot use."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from atft_model.__main__ import main
from atft_model.errors import InputError
from atft_model.structure import command
from atft_model.structure.record import read_record
from atft_model.structure.simulate import var_with_dag


def write_csv(path, values, names, dates=True):
    lines = [",".join((["date"] if dates else []) + list(names))]
    for day, row in enumerate(values):
        cells = ["" if np.isnan(cell) else f"{cell:.6f}" for cell in row]
        lines.append(",".join(([f"2020-01-01T{day:05d}"] if dates else []) + cells))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def data(tmp_path):
    values = var_with_dag(21, 6, 300, edges_per_node=1.0).values
    values[5, 2] = np.nan
    return write_csv(tmp_path / "x.csv", values, "abcdef")


def test_a_csv_becomes_a_record(data, tmp_path, capsys):
    code = main(["structure", "--data", str(data), "--out", str(tmp_path / "out"),
                 "--resamples", "4"])  # fmt: skip
    record = read_record(tmp_path / "out")
    printed = capsys.readouterr().out
    assert code in (0, 1)
    assert record.names == tuple("abcdef")
    assert "is_acyclic" in printed
    assert f"{record.kept_edges[0].source} -> " in printed
    assert pq.read_table(tmp_path / "out" / "edges.parquet").num_rows == len(record.edges)
    assert (tmp_path / "out" / "structure.log").exists()


def test_a_sweep_prints_a_table_and_takes_its_best_row(data, tmp_path, capsys, monkeypatch):
    grid = {"lambda_sparse": (0.02, 0.05), "lambda_acyclic": (1.0,), "lambda_disen": (0.0,),
            "lambda_recon": (1.0,)}  # fmt: skip
    monkeypatch.setattr(command, "SWEEP", grid)
    main(["structure", "--data", str(data), "--out", str(tmp_path / "out"), "--sweep",
          "--resamples", "0"])  # fmt: skip
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())
    best = max(rows, key=lambda row: row["score"])
    record = read_record(tmp_path / "out")
    assert record.config["gradient"]["lambda_sparse"] == best["lambda_sparse"]
    assert "sweep 2 of 2" in capsys.readouterr().out


def test_exogenous_columns_are_set_apart(data):
    series = command.read_series(data, ("a", "d"))
    assert series.names == ("b", "c", "e", "f")
    assert series.exogenous is not None
    assert series.exogenous.shape == (300, 2)
    assert np.isnan(series.values[5, 1])


@pytest.mark.parametrize(
    ("text", "exogenous", "message"),
    [
        (None, (), "data file not found"),
        ("a,b\n1,2\n3,4,5\n", (), "not a readable CSV"),
        ("a,b\n1,x\n3,y\n", (), "column 'b' holds string, expected numbers"),
        ("a,b\n1,2\n3,4\n", ("c",), "no column 'c' for --exogenous; found a, b"),
        ("a\nx\ny\n", (), "no numeric columns"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, text, exogenous, message):
    path = tmp_path / "x.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        command.read_series(path, exogenous)
    assert "\n" not in str(error.value)


def test_the_terminal_shows_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["structure", "--data", str(tmp_path / "no.csv"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("atft_model: ")
