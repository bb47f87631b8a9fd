"""A client's own ``dbos_pb2``, of either old generation, in the same process as the server.

Generated modules register their files and messages in protobuf's default pool, under the same
names as ours: whatever is imported first, nothing clashes. Each case has a process of its own,
since that pool cannot be emptied.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.contracts import PROTO_OF, compile_proto
from tests.support.valkey import ValkeyServer

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys

first, redis_addr = sys.argv[1:]
if first == "client":
    import dbos_pb2, dbos_pb2_grpc
    from tests.support.servers import ServerThread
else:
    from tests.support.servers import ServerThread
    import dbos_pb2, dbos_pb2_grpc
import grpc

server = ServerThread(redis_addr).start()
try:
    with grpc.insecure_channel(server.address) as channel:
        stub = dbos_pb2_grpc.DBOSStub(channel)
        agent = dbos_pb2.Agent(id="a", hostname="h", alive=True, config={"k": "v"})
        assert stub.RegisterAgent(dbos_pb2.RegisterAgentRequest(agent=agent)).success
        found = stub.GetAgent(dbos_pb2.GetAgentRequest(agent_id="a"))
        assert found.found and found.agent.config == {"k": "v"}, found
        assert [a.id for a in stub.ListAgents(dbos_pb2.ListAgentsRequest()).agents] == ["a"]
        state = dbos_pb2.ModuleState(
            agent_id="a", module_name="ping", request_id="r", state="running", details={"n": "1"}
        )
        assert stub.SetModuleState(dbos_pb2.SetModuleStateRequest(state=state)).success
        found = stub.GetModuleState(dbos_pb2.GetModuleStateRequest(request_id="r"))
        assert found.state.details == {"n": "1"}, found
        request = dbos_pb2.ListModuleStatesRequest(agent_id="a", module_name="ping")
        assert len(stub.ListModuleStates(request).states) == 1
        result = dbos_pb2.MeasurementResult(id="r", agent_id="a", module_name="ping", data=b"\\xff")
        assert stub.StoreResult(dbos_pb2.StoreResultRequest(result=result)).success
        found = stub.GetResult(dbos_pb2.GetResultRequest(agent_id="a", request_id="r"))
        assert found.result.data == b"\\xff", found
        assert len(stub.ListResults(dbos_pb2.ListResultsRequest(agent_id="a")).results) == 1
        if hasattr(stub, "GetEvents"):
            assert len(stub.GetEvents(dbos_pb2.GetEventsRequest()).events) == 2
        print("served", sorted(f.name for f in dbos_pb2.ModuleState.DESCRIPTOR.fields)[-1])
finally:
    server.stop()
"""


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize(("generation", "last_field"), [("a", "timestamp"), ("b", "version")])
def test_generated_modules_of_an_old_generation_live_beside_the_server(
    generation: str, last_field: str, first: str, tmp_path: Path, redis: ValkeyServer
) -> None:
    proto = tmp_path / "dbos.proto"
    shutil.copyfile(PROTO_OF[generation], proto)
    compile_proto(proto, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, first, redis.address],
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"served {last_field}"
