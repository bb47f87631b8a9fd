"""Schedule tasks and do them, as the page about clients shows."""

import anyio

from dbos_actors.client import ScheduleTaskRequest, Task, connect, work


async def main() -> None:
    async with connect() as dbos, anyio.create_task_group() as group:
        done = set()

        async def ping(task: Task) -> None:
            print("ping", task.payload.decode())
            done.add(task.id)
            if len(done) == 3:
                group.cancel_scope.cancel()

        for number in range(3):
            task = Task(
                id=f"task-{number}",
                agent_id="probe-1",
                module_name="ping",
                payload=b"192.0.2.%d" % number,
            )
            await dbos.schedule_task(ScheduleTaskRequest(task=task))
        await work(dbos, ping, module_name="ping", concurrency=1)


anyio.run(main)
