"""Store results over one stream and read them back, as the page about clients shows."""

import anyio

from dbos_actors.client import ListResultsRequest, MeasurementResult, connect, pages, writer


async def main() -> None:
    async with connect() as dbos:
        async with writer(dbos) as results:
            for number in range(1000):
                await results.send(
                    MeasurementResult(
                        id=f"result-{number}",
                        agent_id="probe-1",
                        module_name="ping",
                        data=b'{"rtt_ms": %d}' % number,
                    )
                )
        print(results.durable, "results are durable")

        count = 0
        async for _ in pages.results(dbos, ListResultsRequest(agent_id="probe-1")):
            count += 1
        print(count, "results are listed")


anyio.run(main)
