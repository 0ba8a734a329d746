"""Puts the table of faults into docs/reliability.md, from what faults.py has measured.

    python tests/benchmarks/reliability.py

A row a fault: what is injected, what the pool promises, the test that proves it, and what
came of it in each pool, from docs/figures/faults.json. The suite checks that every test
named here exists (tests/docs/test_documents.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from faults import FIGURES, cell_of_rounds

PAGE = FIGURES.parent.parent / "reliability.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
OURS = "PreforkExecutor"


class Promise(NamedTuple):
    """What the pool promises under a fault, and the test that injects it: file::name."""

    text: str
    test: str


ONLY_ITS_TASK = "only its own task fails: WorkerDied"
NOTHING = "no task is lost"
PROMISES = {
    "kill-self": Promise(ONLY_ITS_TASK, "deaths::a_death_fails_its_own_task_and_says_how"),
    "oom-kill": Promise(
        ONLY_ITS_TASK + ", with the reason if the system reports it",
        "faults::a_kill_as_by_the_out_of_memory_killer_costs_one_task",
    ),
    "kill-idle": Promise(NOTHING, "deaths::the_death_of_an_idle_worker_costs_nothing"),
    "exit": Promise(ONLY_ITS_TASK, "deaths::a_death_fails_its_own_task_and_says_how"),
    "sys-exit": Promise(
        "its future gets the SystemExit", "deaths::sys_exit_in_a_task_is_its_exception_and_no_death"
    ),
    "segfault": Promise(
        ONLY_ITS_TASK, "faulty_tasks::every_end_of_a_task_is_known_under_every_start_method"
    ),
    "stop-idle": Promise(
        "the other workers do the work",
        "faults::a_task_whose_wake_up_went_to_a_worker_that_was_stopped_is_run_by_another",
    ),
    "stop-shutdown": Promise(
        "the pool kills it after 10 s", "faults::a_pool_with_a_stopped_idle_worker_shuts_down"
    ),
    "stop-result": Promise(
        "the pool kills it after 10 s",
        "faults::a_worker_that_was_stopped_just_after_its_outcome_holds_up_no_shutdown",
    ),
    "meddles": Promise(
        "running tasks fail with WorkerDied, which says why; waiting tasks are run",
        "meddling_tasks::a_task_that_shuts_down_the_channels_costs_what_runs_and_no_more",
    ),
    "memory": Promise(
        "its future gets the error",
        "scarcity::a_huge_argument_that_a_worker_has_no_memory_for_fails_alone",
    ),
    "closes": Promise(
        ONLY_ITS_TASK, "faulty_tasks::a_task_that_closes_every_descriptor_costs_its_worker_only"
    ),
    "leaves-child": Promise(
        NOTHING, "faulty_tasks::a_child_that_a_task_leaves_behind_hinders_nobody"
    ),
    "leaves-child-dies": Promise(
        ONLY_ITS_TASK, "faulty_tasks::a_child_that_a_task_leaves_behind_hinders_nobody"
    ),
    "exception": Promise(
        "its future gets a stand-in that prints like the original",
        "bad_input::an_exception_that_refuses_to_travel_arrives_all_the_same",
    ),
    "result": Promise(
        "only its own task fails: PicklingError, which names the culprit",
        "functions::a_result_that_cannot_be_pickled_is_named_in_its_own_future",
    ),
    "argument": Promise(
        "only its own task fails: PicklingError, which names the culprit",
        "functions::an_argument_that_cannot_be_pickled_is_named_in_its_own_future",
    ),
    "result-raises": Promise(
        "only its own task fails: UnpicklingError",
        "bad_input::whatever_a_result_raises_as_it_is_unpickled_fails_its_own_future",
    ),
    "result-exits": Promise(
        "only its own task fails: UnpicklingError",
        "bad_input::whatever_a_result_raises_as_it_is_unpickled_fails_its_own_future",
    ),
    "result-kills": Promise(
        "nothing of the pool is left",
        "deaths::nothing_of_the_pool_is_left_when_the_callers_process_is_killed",
    ),
    "initializer-raises": Promise(
        "the pool is broken at once, and says why",
        "executor::an_initializer_that_raises_breaks_the_pool_and_says_why",
    ),
    "initializer-dies": Promise(
        "the pool is broken after three such deaths in a row, and says why",
        "executor::an_initializer_that_dies_breaks_the_pool_without_a_fork_loop",
    ),
    "ignores-sigterm": Promise(
        "futures resolve at once; the pool kills the worker after 10 s",
        "kill_workers::a_worker_that_ignores_sigterm_is_killed_in_the_end",
    ),
    "limit": Promise(
        "TaskTimeout, and the task really ends",
        "task_limits::a_task_that_runs_for_too_long_is_ended",
    ),
    "client-killed": Promise(
        "nothing is left within 2 s",
        "ends_of_programs::after_sigkill_nothing_is_left_though_workers_are_in_long_c_calls",
    ),
    "client-killed-idle": Promise(
        "nothing is left within 2 s",
        "deaths::nothing_of_the_pool_is_left_when_the_callers_process_is_killed",
    ),
    "client-killed-stopped": Promise(
        "nothing is left within 2 s", "unresponsive::nothing_of_the_pool_outlives_its_caller"
    ),
    "client-killed-unprivileged": Promise(
        "nothing is left within 2 s", "unresponsive::nothing_of_the_pool_outlives_its_caller"
    ),
    "ctrl-c": Promise(
        "the program prints one traceback and ends promptly",
        "ends_of_programs::ctrl_c_ends_a_program_that_waits_for_a_map",
    ),
    "ctrl-c-idle": Promise(
        "the program prints one traceback and ends promptly",
        "ends_of_programs::ctrl_c_ends_a_program_whose_pool_is_idle",
    ),
    "ctrl-c-waiting": Promise(
        "running tasks are ended, and the others never begin",
        "ends_of_programs::ctrl_c_ends_a_program_whose_tasks_are_long",
    ),
    "exit-with-work": Promise(
        "all tasks are finished first",
        "executor::the_interpreter_waits_for_pending_work_at_its_end",
    ),
    "collected": Promise(
        "its tasks are finished, then it ends",
        "executor::an_executor_that_nobody_refers_to_ends_after_its_work",
    ),
    "callback-waits": Promise(
        "an error at once", "callbacks::a_callback_is_refused_to_wait_for_another_task_of_its_pool"
    ),
    "fork-future": Promise(
        "the child gets a clear error, and the parent is not harmed",
        "forks_of_the_caller::who_waits_for_a_future_of_the_parents_is_told_whose_it_is",
    ),
    "fork": Promise(
        "the child gets a clear error, and the parent is not harmed",
        "ends_of_programs::a_fork_of_the_program_has_no_pool_and_harms_none",
    ),
    "nested": Promise("works", "executor::a_task_may_use_an_executor_of_its_own"),
    "supervisor-killed": Promise(
        "another supervisor starts; running tasks fail with WorkerDied, waiting tasks are run",
        "deaths::after_the_supervisors_death_another_goes_on_with_the_queue",
    ),
    "no-forks-first": Promise(
        "submit raises an error, and works later",
        "scarcity::descriptors_may_run_out_at_any_step_of_the_start",
    ),
    "no-forks-later": Promise(
        "tasks wait until forks succeed again", "scarcity::tasks_wait_while_no_worker_can_be_forked"
    ),
    "no-descriptors-first": Promise(
        "submit raises an error, leaves nothing open, and works later",
        "scarcity::descriptors_may_run_out_at_any_step_of_the_start",
    ),
    "no-descriptors-later": Promise(
        "only the big task fails",
        "scarcity::a_big_argument_that_the_caller_has_no_descriptor_for_fails_alone",
    ),
    "shm-full": Promise(
        "the pool does not use it",
        "scarcity::a_big_result_that_a_worker_may_not_write_fails_alone",
    ),
}


def test_of(promise: Promise) -> str:
    """A promise's test as the table shows it."""
    file, name = promise.test.split("::")
    return f"`test_{file}.py`: {name.replace('_', ' ')}"


def rows(faults: dict[str, object], pools: list[str]) -> list[list[str]]:
    """The table's cells."""
    head = ["injected", "promised", "proven by", *(f"`{pool}`" for pool in pools)]
    table = [head, ["---"] * len(head)]
    for fault, found in faults.items():
        assert isinstance(found, dict)
        cells = [cell_of_rounds(found["pools"][pool]) for pool in pools]
        promise = PROMISES[fault]
        table.append([found["title"], promise.text, test_of(promise), *cells])
    return table


def main() -> None:
    """Replace what stands between the two marks of the page."""
    measured = json.loads(FIGURES.read_text(encoding="utf-8"))
    pools = [OURS, *(pool for pool in measured["versions"] if pool != OURS)]
    lines = [f"| {' | '.join(row)} |" for row in rows(measured["faults"], pools)]
    versions = ", ".join(f"{pool} {measured['versions'][pool]}" for pool in pools[1:])
    source = (
        f"Python {measured['python']}, {measured['cpus']} CPUs, {measured['workers']} workers, "
        f"{versions}. A future not resolved after {measured['hangs_after_seconds']:g} s hangs."
    )
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = "\n".join([BEGIN, "", source, "", *lines, "", END])
    Path(PAGE).write_text(before + text + after, encoding="utf-8")


if __name__ == "__main__":
    main()
