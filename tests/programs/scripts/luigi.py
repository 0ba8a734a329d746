"""Asks in a Pool which tasks are complete (`parallel_scheduling`), results by a manager's queue."""

import luigi


class Number(luigi.Task):
    number = luigi.IntParameter()

    def output(self) -> luigi.LocalTarget:
        return luigi.LocalTarget(f"number_{self.number}.txt")

    def run(self) -> None:
        with self.output().open("w") as file:
            file.write(str(self.number**2))


class Sum(luigi.Task):
    def requires(self) -> list[Number]:
        return [Number(number) for number in range(8)]

    def output(self) -> luigi.LocalTarget:
        return luigi.LocalTarget("sum.txt")

    def run(self) -> None:
        total = sum(int(target.open().read()) for target in self.input())
        with self.output().open("w") as file:
            file.write(str(total))


if __name__ == "__main__":
    done = luigi.build(
        [Sum()],
        local_scheduler=True,
        parallel_scheduling=True,
        parallel_scheduling_processes=2,
        log_level="WARNING",
    )
    with open("sum.txt") as file:
        print(done, file.read())
