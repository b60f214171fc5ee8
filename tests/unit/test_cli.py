"""The command line: quick, quiet imports, and messages instead of tracebacks."""

import os
import re
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from llambert import STAGES, cli
from llambert.errors import StageError

HEAVY = ("torch", "vllm", "transformers", "ray", "deepspeed", "sklearn", "pandas")


@pytest.mark.parametrize(
    "code",
    [
        "import llambert",
        "from llambert.cli import cli; cli(['--help'], standalone_mode=False)",
        "import llambert.pipeline",
    ],
)
def test_heavy_packages_are_loaded_only_when_used(code):
    script = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_help_is_quick():
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "llambert", "--help"], capture_output=True, text=True
        )
        seconds.append(time.monotonic() - started)
        assert done.returncode == 0 and "llambert" in done.stdout
    assert min(seconds) < 0.5


def test_help_has_every_command_and_the_stages_last_in_their_order():
    told = CliRunner().invoke(cli.cli, ["--help"]).output.partition("Commands:")[2]
    names = re.findall(r"^  (\w+)", told, re.MULTILINE)
    assert sorted(names) == sorted(cli.cli.commands) and tuple(names[-len(STAGES) :]) == STAGES
    assert "..." not in told  # every summary is whole


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://head:8265", "ray job submit --address http://head:8265"),
        ("https://head", "ray job submit --address https://head"),
        ("ray://head:10001", "Ray Client is not supported"),
        ("gcs://head:6379", "give host:port"),
        ("nonsense", "cannot join .*nonsense"),
        ("127.0.0.1:port", "cannot join .*127.0.0.1:port"),
    ],
)
def test_a_ray_address_that_is_none(monkeypatch, address, says):
    from llambert.cluster import connection
    from llambert.errors import UserError

    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=says), connection():
        pass


def test_an_error_of_ours_is_found_behind_rays():
    from llambert.errors import UserError, ours

    inner = UserError("the value", "the remedy")
    outer = RuntimeError("a task failed")
    outer.__cause__ = inner
    assert ours(outer) is inner
    outer.__cause__, outer.cause = None, inner  # as Ray keeps a worker's
    assert ours(outer) is inner
    own = RuntimeError("its own cause")
    own.__cause__ = own
    assert ours(own) is ours(RuntimeError("other")) is None


WAITING = """
import sys
from llambert import cli, driver

STAGE = (
    "import sys, time; from llambert.driver import follow_supervisor; "
    "assert follow_supervisor('report'); print(sys.argv[1], flush=True); time.sleep(60)"
)

@cli.cli.command()
def wait():
    commands = {name: [sys.executable, "-c", STAGE, name] for name in ("first", "second")}
    with driver.StageProcesses(commands, commands, {"LLAMBERT_SUPERVISED": "1"}) as processes:
        processes.run("first")

cli.main(["wait"])
"""


def _one_stage_at_work_and_one_that_waits() -> subprocess.Popen[str]:
    running = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout and running.stdout.readline() == "first\n"
    return running


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_a_command_and_its_stages_with_one_sentence(heeds_ctrl_c, sent):
    running = _one_stage_at_work_and_one_that_waits()
    os.killpg(running.pid, sent)  # as a terminal does with Ctrl-C, to all at once
    # returns when the stages too have closed their output
    done, said = running.communicate(timeout=30)
    assert (running.returncode, done) == (128 + sent, "")
    assert said.strip() == "stopped; the same command goes on from here"


def test_a_kill_of_a_command_ends_its_stages():
    running = _one_stage_at_work_and_one_that_waits()
    running.kill()
    done, said = running.communicate(timeout=30)
    assert done == "" and "Traceback" not in said


FAILING = """
import sys
from llambert import cli, driver

@cli.cli.command()
def fail():
    driver.StageProcesses({"train": [sys.executable, "-c", sys.argv[1]]}, (), {}).run("train")

cli.main(["fail"])
"""


@pytest.mark.parametrize(
    ("stage", "code", "says"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            1,
            "error: stage train was ended by signal 9 (Killed)",
        ),
        ("import sys; sys.exit(4)", 4, ""),  # it has said why by itself
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_run_ends_as_its_stage_did(stage, code, says):
    command = [sys.executable, "-c", FAILING, stage]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == code and says in ended.stderr
    assert ("-> " in ended.stderr) == ("signal" in says)
    assert ended.stderr.count("Traceback") == ("Error: " in says)  # of the run there is none


def fail_with(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (StageError("the cause", "the remedy"), "error: the cause\n  -> the remedy\n"),
        (ValueError("a mistake of ours"), "Traceback"),
    ],
)
def test_a_failure_is_exit_code_1(monkeypatch, capfd, error, says):
    failing = click.Command("fail", callback=lambda: fail_with(error))
    monkeypatch.setitem(cli.cli.commands, "fail", failing)
    with pytest.raises(SystemExit) as ended:
        cli.main(["fail"])
    assert ended.value.code == 1 and capfd.readouterr().err.startswith(says)
