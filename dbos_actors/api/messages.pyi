from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Agent(_message.Message):
    __slots__ = ("id", "hostname", "alive", "last_seen", "first_seen", "config", "total_heartbeats")
    class ConfigEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TOTAL_HEARTBEATS_FIELD_NUMBER: _ClassVar[int]
    id: str
    hostname: str
    alive: bool
    last_seen: int
    first_seen: int
    config: _containers.ScalarMap[str, str]
    total_heartbeats: int
    def __init__(self, id: _Optional[str] = ..., hostname: _Optional[str] = ..., alive: _Optional[bool] = ..., last_seen: _Optional[int] = ..., first_seen: _Optional[int] = ..., config: _Optional[_Mapping[str, str]] = ..., total_heartbeats: _Optional[int] = ...) -> None: ...

class ModuleState(_message.Message):
    __slots__ = ("agent_id", "module_name", "state", "error_message", "details", "timestamp", "request_id", "version", "inferred_from")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INFERRED_FROM_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    module_name: str
    state: str
    error_message: str
    details: _containers.ScalarMap[str, str]
    timestamp: int
    request_id: str
    version: int
    inferred_from: str
    def __init__(self, agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., state: _Optional[str] = ..., error_message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ..., timestamp: _Optional[int] = ..., request_id: _Optional[str] = ..., version: _Optional[int] = ..., inferred_from: _Optional[str] = ...) -> None: ...

class MeasurementResult(_message.Message):
    __slots__ = ("id", "agent_id", "module_name", "data", "timestamp", "received_at", "agent_start_time", "agent_runtime_version", "module_revision", "dbos_server_id", "ingest_source")
    ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    AGENT_START_TIME_FIELD_NUMBER: _ClassVar[int]
    AGENT_RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODULE_REVISION_FIELD_NUMBER: _ClassVar[int]
    DBOS_SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    INGEST_SOURCE_FIELD_NUMBER: _ClassVar[int]
    id: str
    agent_id: str
    module_name: str
    data: bytes
    timestamp: int
    received_at: int
    agent_start_time: int
    agent_runtime_version: str
    module_revision: str
    dbos_server_id: str
    ingest_source: str
    def __init__(self, id: _Optional[str] = ..., agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., data: _Optional[bytes] = ..., timestamp: _Optional[int] = ..., received_at: _Optional[int] = ..., agent_start_time: _Optional[int] = ..., agent_runtime_version: _Optional[str] = ..., module_revision: _Optional[str] = ..., dbos_server_id: _Optional[str] = ..., ingest_source: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "agent_id", "module_name", "payload", "scheduled_at", "created_at", "status", "visibility_time", "retry_count", "lease_token", "last_error", "max_attempts")
    ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SCHEDULED_AT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_TIME_FIELD_NUMBER: _ClassVar[int]
    RETRY_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    agent_id: str
    module_name: str
    payload: bytes
    scheduled_at: int
    created_at: int
    status: str
    visibility_time: int
    retry_count: int
    lease_token: str
    last_error: str
    max_attempts: int
    def __init__(self, id: _Optional[str] = ..., agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., payload: _Optional[bytes] = ..., scheduled_at: _Optional[int] = ..., created_at: _Optional[int] = ..., status: _Optional[str] = ..., visibility_time: _Optional[int] = ..., retry_count: _Optional[int] = ..., lease_token: _Optional[str] = ..., last_error: _Optional[str] = ..., max_attempts: _Optional[int] = ...) -> None: ...

class RegisterAgentRequest(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: Agent
    def __init__(self, agent: _Optional[_Union[Agent, _Mapping]] = ...) -> None: ...

class RegisterAgentResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("agent_id", "last_seen", "total_heartbeats")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_HEARTBEATS_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    last_seen: int
    total_heartbeats: int
    def __init__(self, agent_id: _Optional[str] = ..., last_seen: _Optional[int] = ..., total_heartbeats: _Optional[int] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("success", "error", "found")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    found: bool
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ..., found: _Optional[bool] = ...) -> None: ...

class GetAgentRequest(_message.Message):
    __slots__ = ("agent_id",)
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    def __init__(self, agent_id: _Optional[str] = ...) -> None: ...

class GetAgentResponse(_message.Message):
    __slots__ = ("found", "agent", "error")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    found: bool
    agent: Agent
    error: str
    def __init__(self, found: _Optional[bool] = ..., agent: _Optional[_Union[Agent, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class ListAgentsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "include_unregistered", "id_prefix", "liveness", "config")
    class ConfigEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_UNREGISTERED_FIELD_NUMBER: _ClassVar[int]
    ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIVENESS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    include_unregistered: bool
    id_prefix: str
    liveness: str
    config: _containers.ScalarMap[str, str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_unregistered: _Optional[bool] = ..., id_prefix: _Optional[str] = ..., liveness: _Optional[str] = ..., config: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListAgentsResponse(_message.Message):
    __slots__ = ("agents", "error", "next_page_token")
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    agents: _containers.RepeatedCompositeFieldContainer[Agent]
    error: str
    next_page_token: str
    def __init__(self, agents: _Optional[_Iterable[_Union[Agent, _Mapping]]] = ..., error: _Optional[str] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteAgentRequest(_message.Message):
    __slots__ = ("agent_id",)
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    def __init__(self, agent_id: _Optional[str] = ...) -> None: ...

class DeleteAgentResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class SetModuleStateRequest(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: ModuleState
    def __init__(self, state: _Optional[_Union[ModuleState, _Mapping]] = ...) -> None: ...

class SetModuleStateResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class GetModuleStateRequest(_message.Message):
    __slots__ = ("request_id", "agent_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    agent_id: str
    def __init__(self, request_id: _Optional[str] = ..., agent_id: _Optional[str] = ...) -> None: ...

class GetModuleStateResponse(_message.Message):
    __slots__ = ("found", "state", "error")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    found: bool
    state: ModuleState
    error: str
    def __init__(self, found: _Optional[bool] = ..., state: _Optional[_Union[ModuleState, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class ListModuleStatesRequest(_message.Message):
    __slots__ = ("agent_id", "module_name", "page_size", "page_token", "states")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    module_name: str
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[str]] = ...) -> None: ...

class ListModuleStatesResponse(_message.Message):
    __slots__ = ("states", "error", "next_page_token")
    STATES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[ModuleState]
    error: str
    next_page_token: str
    def __init__(self, states: _Optional[_Iterable[_Union[ModuleState, _Mapping]]] = ..., error: _Optional[str] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StoreResultRequest(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: MeasurementResult
    def __init__(self, result: _Optional[_Union[MeasurementResult, _Mapping]] = ...) -> None: ...

class StoreResultResponse(_message.Message):
    __slots__ = ("success", "error", "duplicate")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    duplicate: bool
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class StoreResultsResponse(_message.Message):
    __slots__ = ("durable", "duplicates", "rejected")
    class Rejected(_message.Message):
        __slots__ = ("index", "agent_id", "id", "error")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        AGENT_ID_FIELD_NUMBER: _ClassVar[int]
        ID_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        index: int
        agent_id: str
        id: str
        error: str
        def __init__(self, index: _Optional[int] = ..., agent_id: _Optional[str] = ..., id: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    durable: int
    duplicates: int
    rejected: _containers.RepeatedCompositeFieldContainer[StoreResultsResponse.Rejected]
    def __init__(self, durable: _Optional[int] = ..., duplicates: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[StoreResultsResponse.Rejected, _Mapping]]] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("agent_id", "request_id")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    request_id: str
    def __init__(self, agent_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetResultResponse(_message.Message):
    __slots__ = ("found", "result", "error")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    found: bool
    result: MeasurementResult
    error: str
    def __init__(self, found: _Optional[bool] = ..., result: _Optional[_Union[MeasurementResult, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class ListResultsRequest(_message.Message):
    __slots__ = ("agent_id", "page_size", "page_token", "since", "until", "module_name", "newest_first")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    page_size: int
    page_token: str
    since: int
    until: int
    module_name: str
    newest_first: bool
    def __init__(self, agent_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., since: _Optional[int] = ..., until: _Optional[int] = ..., module_name: _Optional[str] = ..., newest_first: _Optional[bool] = ...) -> None: ...

class ListResultsResponse(_message.Message):
    __slots__ = ("results", "error", "next_page_token")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[MeasurementResult]
    error: str
    next_page_token: str
    def __init__(self, results: _Optional[_Iterable[_Union[MeasurementResult, _Mapping]]] = ..., error: _Optional[str] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ScheduleTaskRequest(_message.Message):
    __slots__ = ("task", "revive")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REVIVE_FIELD_NUMBER: _ClassVar[int]
    task: Task
    revive: bool
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., revive: _Optional[bool] = ...) -> None: ...

class ScheduleTaskResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class GetTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class GetTaskResponse(_message.Message):
    __slots__ = ("found", "task", "error")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    found: bool
    task: Task
    error: str
    def __init__(self, found: _Optional[bool] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("status", "agent_id", "module_name", "page_size", "page_token")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    status: str
    agent_id: str
    module_name: str
    page_size: int
    page_token: str
    def __init__(self, status: _Optional[str] = ..., agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "error", "next_page_token")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    error: str
    next_page_token: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., error: _Optional[str] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListDueTasksRequest(_message.Message):
    __slots__ = ("timestamp", "limit", "agent_id", "module_name")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    timestamp: int
    limit: int
    agent_id: str
    module_name: str
    def __init__(self, timestamp: _Optional[int] = ..., limit: _Optional[int] = ..., agent_id: _Optional[str] = ..., module_name: _Optional[str] = ...) -> None: ...

class ListDueTasksResponse(_message.Message):
    __slots__ = ("tasks", "error")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    error: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...

class LeaseTasksRequest(_message.Message):
    __slots__ = ("agent_id", "module_name", "limit", "lease_seconds", "worker_id", "request_key")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_KEY_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    module_name: str
    limit: int
    lease_seconds: int
    worker_id: str
    request_key: str
    def __init__(self, agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., limit: _Optional[int] = ..., lease_seconds: _Optional[int] = ..., worker_id: _Optional[str] = ..., request_key: _Optional[str] = ...) -> None: ...

class LeaseTasksResponse(_message.Message):
    __slots__ = ("tasks", "error")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    error: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...

class ExtendLeaseRequest(_message.Message):
    __slots__ = ("task_id", "lease_token", "lease_seconds")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    lease_token: str
    lease_seconds: int
    def __init__(self, task_id: _Optional[str] = ..., lease_token: _Optional[str] = ..., lease_seconds: _Optional[int] = ...) -> None: ...

class ExtendLeaseResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class AckTaskRequest(_message.Message):
    __slots__ = ("task_id", "lease_token")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    lease_token: str
    def __init__(self, task_id: _Optional[str] = ..., lease_token: _Optional[str] = ...) -> None: ...

class AckTaskResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class NackTaskRequest(_message.Message):
    __slots__ = ("task_id", "retry_delay_seconds", "lease_token", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    retry_delay_seconds: int
    lease_token: str
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., retry_delay_seconds: _Optional[int] = ..., lease_token: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class NackTaskResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class CancelTaskRequest(_message.Message):
    __slots__ = ("task_id", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelTaskResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class RequeueTaskRequest(_message.Message):
    __slots__ = ("task_id", "scheduled_at")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEDULED_AT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    scheduled_at: int
    def __init__(self, task_id: _Optional[str] = ..., scheduled_at: _Optional[int] = ...) -> None: ...

class RequeueTaskResponse(_message.Message):
    __slots__ = ("success", "error")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    success: bool
    error: str
    def __init__(self, success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class SubscribeTasksRequest(_message.Message):
    __slots__ = ("start", "ack", "nack", "extend")
    class Start(_message.Message):
        __slots__ = ("agent_id", "module_name", "lease_seconds", "max_in_flight", "worker_id")
        AGENT_ID_FIELD_NUMBER: _ClassVar[int]
        MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
        LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
        MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
        WORKER_ID_FIELD_NUMBER: _ClassVar[int]
        agent_id: str
        module_name: str
        lease_seconds: int
        max_in_flight: int
        worker_id: str
        def __init__(self, agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., lease_seconds: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., worker_id: _Optional[str] = ...) -> None: ...
    class Ack(_message.Message):
        __slots__ = ("task_id", "lease_token")
        TASK_ID_FIELD_NUMBER: _ClassVar[int]
        LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
        task_id: str
        lease_token: str
        def __init__(self, task_id: _Optional[str] = ..., lease_token: _Optional[str] = ...) -> None: ...
    class Nack(_message.Message):
        __slots__ = ("task_id", "lease_token", "retry_delay_seconds", "reason")
        TASK_ID_FIELD_NUMBER: _ClassVar[int]
        LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
        RETRY_DELAY_SECONDS_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        task_id: str
        lease_token: str
        retry_delay_seconds: int
        reason: str
        def __init__(self, task_id: _Optional[str] = ..., lease_token: _Optional[str] = ..., retry_delay_seconds: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...
    class Extend(_message.Message):
        __slots__ = ("task_id", "lease_token", "lease_seconds")
        TASK_ID_FIELD_NUMBER: _ClassVar[int]
        LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
        LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
        task_id: str
        lease_token: str
        lease_seconds: int
        def __init__(self, task_id: _Optional[str] = ..., lease_token: _Optional[str] = ..., lease_seconds: _Optional[int] = ...) -> None: ...
    START_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    EXTEND_FIELD_NUMBER: _ClassVar[int]
    start: SubscribeTasksRequest.Start
    ack: SubscribeTasksRequest.Ack
    nack: SubscribeTasksRequest.Nack
    extend: SubscribeTasksRequest.Extend
    def __init__(self, start: _Optional[_Union[SubscribeTasksRequest.Start, _Mapping]] = ..., ack: _Optional[_Union[SubscribeTasksRequest.Ack, _Mapping]] = ..., nack: _Optional[_Union[SubscribeTasksRequest.Nack, _Mapping]] = ..., extend: _Optional[_Union[SubscribeTasksRequest.Extend, _Mapping]] = ...) -> None: ...

class SubscribeTasksResponse(_message.Message):
    __slots__ = ("tasks", "outcomes")
    class Outcome(_message.Message):
        __slots__ = ("task_id", "success", "error")
        TASK_ID_FIELD_NUMBER: _ClassVar[int]
        SUCCESS_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        task_id: str
        success: bool
        error: str
        def __init__(self, task_id: _Optional[str] = ..., success: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...
    TASKS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    outcomes: _containers.RepeatedCompositeFieldContainer[SubscribeTasksResponse.Outcome]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[SubscribeTasksResponse.Outcome, _Mapping]]] = ...) -> None: ...

class StatisticsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatisticsResponse(_message.Message):
    __slots__ = ("server", "error", "store", "agents", "results", "tasks")
    class Server(_message.Message):
        __slots__ = ("version", "server_id", "uptime_seconds", "time", "memory_bytes", "memory_limit_bytes", "calls_per_second")
        VERSION_FIELD_NUMBER: _ClassVar[int]
        SERVER_ID_FIELD_NUMBER: _ClassVar[int]
        UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
        TIME_FIELD_NUMBER: _ClassVar[int]
        MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
        MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
        CALLS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        version: str
        server_id: str
        uptime_seconds: int
        time: int
        memory_bytes: int
        memory_limit_bytes: int
        calls_per_second: int
        def __init__(self, version: _Optional[str] = ..., server_id: _Optional[str] = ..., uptime_seconds: _Optional[int] = ..., time: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., calls_per_second: _Optional[int] = ...) -> None: ...
    class Store(_message.Message):
        __slots__ = ("state", "epoch", "sequence", "durability", "warnings", "writes_refused", "commit_seconds_p50", "commit_seconds_p99", "queued_bytes", "replay_bytes", "replay_limit_bytes", "written_bytes_per_second", "memory_bytes", "memory_limit_bytes", "commits_lost")
        STATE_FIELD_NUMBER: _ClassVar[int]
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        SEQUENCE_FIELD_NUMBER: _ClassVar[int]
        DURABILITY_FIELD_NUMBER: _ClassVar[int]
        WARNINGS_FIELD_NUMBER: _ClassVar[int]
        WRITES_REFUSED_FIELD_NUMBER: _ClassVar[int]
        COMMIT_SECONDS_P50_FIELD_NUMBER: _ClassVar[int]
        COMMIT_SECONDS_P99_FIELD_NUMBER: _ClassVar[int]
        QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
        REPLAY_BYTES_FIELD_NUMBER: _ClassVar[int]
        REPLAY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
        WRITTEN_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
        MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
        COMMITS_LOST_FIELD_NUMBER: _ClassVar[int]
        state: str
        epoch: int
        sequence: int
        durability: str
        warnings: _containers.RepeatedScalarFieldContainer[str]
        writes_refused: str
        commit_seconds_p50: float
        commit_seconds_p99: float
        queued_bytes: int
        replay_bytes: int
        replay_limit_bytes: int
        written_bytes_per_second: int
        memory_bytes: int
        memory_limit_bytes: int
        commits_lost: int
        def __init__(self, state: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., durability: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., writes_refused: _Optional[str] = ..., commit_seconds_p50: _Optional[float] = ..., commit_seconds_p99: _Optional[float] = ..., queued_bytes: _Optional[int] = ..., replay_bytes: _Optional[int] = ..., replay_limit_bytes: _Optional[int] = ..., written_bytes_per_second: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., commits_lost: _Optional[int] = ...) -> None: ...
    class Agents(_message.Message):
        __slots__ = ("known", "alive", "silent", "counting", "resident")
        KNOWN_FIELD_NUMBER: _ClassVar[int]
        ALIVE_FIELD_NUMBER: _ClassVar[int]
        SILENT_FIELD_NUMBER: _ClassVar[int]
        COUNTING_FIELD_NUMBER: _ClassVar[int]
        RESIDENT_FIELD_NUMBER: _ClassVar[int]
        known: int
        alive: int
        silent: int
        counting: bool
        resident: int
        def __init__(self, known: _Optional[int] = ..., alive: _Optional[int] = ..., silent: _Optional[int] = ..., counting: _Optional[bool] = ..., resident: _Optional[int] = ...) -> None: ...
    class Results(_message.Message):
        __slots__ = ("stored", "duplicates", "conflicts", "stored_per_second", "deleted", "horizon")
        STORED_FIELD_NUMBER: _ClassVar[int]
        DUPLICATES_FIELD_NUMBER: _ClassVar[int]
        CONFLICTS_FIELD_NUMBER: _ClassVar[int]
        STORED_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        DELETED_FIELD_NUMBER: _ClassVar[int]
        HORIZON_FIELD_NUMBER: _ClassVar[int]
        stored: int
        duplicates: int
        conflicts: int
        stored_per_second: int
        deleted: int
        horizon: int
        def __init__(self, stored: _Optional[int] = ..., duplicates: _Optional[int] = ..., conflicts: _Optional[int] = ..., stored_per_second: _Optional[int] = ..., deleted: _Optional[int] = ..., horizon: _Optional[int] = ...) -> None: ...
    class Tasks(_message.Message):
        __slots__ = ("scheduled", "pending", "inflight", "completed", "dead", "cancelled", "deleted", "due", "late", "oldest_due_seconds", "subscribers", "unreadable")
        SCHEDULED_FIELD_NUMBER: _ClassVar[int]
        PENDING_FIELD_NUMBER: _ClassVar[int]
        INFLIGHT_FIELD_NUMBER: _ClassVar[int]
        COMPLETED_FIELD_NUMBER: _ClassVar[int]
        DEAD_FIELD_NUMBER: _ClassVar[int]
        CANCELLED_FIELD_NUMBER: _ClassVar[int]
        DELETED_FIELD_NUMBER: _ClassVar[int]
        DUE_FIELD_NUMBER: _ClassVar[int]
        LATE_FIELD_NUMBER: _ClassVar[int]
        OLDEST_DUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
        SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
        UNREADABLE_FIELD_NUMBER: _ClassVar[int]
        scheduled: int
        pending: int
        inflight: int
        completed: int
        dead: int
        cancelled: int
        deleted: int
        due: int
        late: int
        oldest_due_seconds: int
        subscribers: int
        unreadable: str
        def __init__(self, scheduled: _Optional[int] = ..., pending: _Optional[int] = ..., inflight: _Optional[int] = ..., completed: _Optional[int] = ..., dead: _Optional[int] = ..., cancelled: _Optional[int] = ..., deleted: _Optional[int] = ..., due: _Optional[int] = ..., late: _Optional[int] = ..., oldest_due_seconds: _Optional[int] = ..., subscribers: _Optional[int] = ..., unreadable: _Optional[str] = ...) -> None: ...
    SERVER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    server: StatisticsResponse.Server
    error: str
    store: StatisticsResponse.Store
    agents: StatisticsResponse.Agents
    results: StatisticsResponse.Results
    tasks: StatisticsResponse.Tasks
    def __init__(self, server: _Optional[_Union[StatisticsResponse.Server, _Mapping]] = ..., error: _Optional[str] = ..., store: _Optional[_Union[StatisticsResponse.Store, _Mapping]] = ..., agents: _Optional[_Union[StatisticsResponse.Agents, _Mapping]] = ..., results: _Optional[_Union[StatisticsResponse.Results, _Mapping]] = ..., tasks: _Optional[_Union[StatisticsResponse.Tasks, _Mapping]] = ...) -> None: ...

class GetEventsRequest(_message.Message):
    __slots__ = ("limit", "page_token", "types", "agent_id")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    limit: int
    page_token: str
    types: _containers.RepeatedScalarFieldContainer[str]
    agent_id: str
    def __init__(self, limit: _Optional[int] = ..., page_token: _Optional[str] = ..., types: _Optional[_Iterable[str]] = ..., agent_id: _Optional[str] = ...) -> None: ...

class GetEventsResponse(_message.Message):
    __slots__ = ("events", "error", "next_page_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedScalarFieldContainer[bytes]
    error: str
    next_page_token: str
    def __init__(self, events: _Optional[_Iterable[bytes]] = ..., error: _Optional[str] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("cursor", "agent_id", "module_name", "request_id", "types", "progress_seconds")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    agent_id: str
    module_name: str
    request_id: str
    types: _containers.RepeatedScalarFieldContainer[str]
    progress_seconds: int
    def __init__(self, cursor: _Optional[str] = ..., agent_id: _Optional[str] = ..., module_name: _Optional[str] = ..., request_id: _Optional[str] = ..., types: _Optional[_Iterable[str]] = ..., progress_seconds: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("cursor", "type", "message", "metadata", "timestamp")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    type: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    timestamp: int
    def __init__(self, cursor: _Optional[str] = ..., type: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., timestamp: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("events", "cursor", "fell_behind")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FELL_BEHIND_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    cursor: str
    fell_behind: bool
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., cursor: _Optional[str] = ..., fell_behind: _Optional[bool] = ...) -> None: ...
