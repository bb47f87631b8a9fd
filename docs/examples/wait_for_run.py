"""Report a run and wait for its end, as the page about clients shows."""

import anyio

from dbos_actors.client import (
    DbosStub,
    ModuleState,
    SetModuleStateRequest,
    connect,
    wait_for_run,
)


async def report(dbos: DbosStub) -> None:
    for state in ("started", "running", "completed"):
        await anyio.sleep(0.1)
        run = ModuleState(agent_id="probe-1", module_name="ping", request_id="run-1", state=state)
        await dbos.set_module_state(SetModuleStateRequest(state=run))


async def main() -> None:
    async with connect() as dbos, anyio.create_task_group() as group:
        group.start_soon(report, dbos)
        run = await wait_for_run(dbos, "run-1", timeout_s=60)
        print(run.request_id, run.state)


anyio.run(main)
