"""A person's mistake is one line; a bug keeps its traceback."""

import dagster as dg
import pytest

from atft_model.errors import InputError
from atft_pipeline.failures import console, input_errors_as_failures, plain_failures


def test_an_input_error_becomes_a_failure_that_says_the_same():
    with (
        pytest.raises(dg.Failure, match=r"^bars\.csv: no such file$") as caught,
        input_errors_as_failures(),
    ):
        raise InputError("bars.csv: no such file")
    assert caught.value.__cause__ is None
    assert caught.value.allow_retries is False


def test_a_bug_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), input_errors_as_failures():
        raise ZeroDivisionError


def test_functions_and_generators_keep_their_name_and_result():
    @plain_failures
    def once() -> int:
        """Doc."""
        return 1

    @plain_failures
    def many():
        yield 1
        raise InputError("the second is bad")

    assert once() == 1
    assert (once.__name__, once.__doc__) == ("once", "Doc.")
    values = many()
    assert next(values) == 1
    with pytest.raises(dg.Failure, match="the second is bad"):
        next(values)


@pytest.mark.parametrize(
    ("error", "trace"),
    [(InputError("bars.csv: no such file"), False), (ZeroDivisionError("a bug"), True)],
)
def test_the_console_leaves_out_the_trace_of_what_is_said_in_words(error, trace, capfd):
    @dg.asset
    @plain_failures
    def broken() -> None:
        raise error

    job = dg.Definitions(assets=[broken], loggers={"console": console})
    with dg.DagsterInstance.ephemeral() as instance:
        job.resolve_implicit_global_asset_job_def().execute_in_process(
            run_config={"loggers": {"console": {"config": {}}}},
            instance=instance,
            raise_on_error=False,
        )
    printed = capfd.readouterr().err
    assert str(error) in printed
    assert ("Stack Trace" in printed) is trace
