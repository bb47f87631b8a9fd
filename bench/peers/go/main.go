// A peer: grpc-go server, go-redis client, generated protobuf messages.
//
// PEER_ROUND_TRIPS=one (default) writes each call as one pipelined transaction;
// "separate" writes record, index and idempotency mark one after the other, as
// the service's predecessor did. Keys are those of bench/peers/durable.py.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"dbosbench/pb"
)

type server struct {
	redis    *redis.Client
	separate bool
}

var ranks = map[string]int{"": -1, "created": 0, "started": 1, "running": 2, "completed": 3, "error": 3, "failed": 3}

func (s *server) noOp(_ context.Context, _ *pb.StoreResultRequest) (*pb.StoreResultResponse, error) {
	return &pb.StoreResultResponse{Success: true}, nil
}

func (s *server) storeResult(ctx context.Context, request *pb.StoreResultRequest) (*pb.StoreResultResponse, error) {
	result := request.GetResult()
	if result == nil {
		return &pb.StoreResultResponse{Error: "result is required"}, nil
	}
	if result.ReceivedAt == 0 {
		result.ReceivedAt = time.Now().Unix()
	}
	if result.DbosServerId == "" {
		result.DbosServerId = "peer"
	}
	record, err := proto.Marshal(result)
	if err != nil {
		return nil, err
	}
	index := redis.Z{Score: float64(result.ReceivedAt), Member: result.Id}
	if s.separate {
		if err := s.redis.Set(ctx, "result:"+result.AgentId+":"+result.Id, record, 0).Err(); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		if err := s.redis.ZAdd(ctx, "results-at:"+result.AgentId, index).Err(); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		if err := s.redis.Set(ctx, "seen:"+result.Id, 1, 0).Err(); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return &pb.StoreResultResponse{Success: true}, nil
	}
	_, err = s.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.HSetNX(ctx, "results:"+result.AgentId, result.Id, record)
		pipe.ZAddNX(ctx, "results-at:"+result.AgentId, index)
		return nil
	})
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &pb.StoreResultResponse{Success: true}, nil
}

func (s *server) getResult(ctx context.Context, request *pb.GetResultRequest) (*pb.GetResultResponse, error) {
	var record []byte
	var err error
	if s.separate {
		record, err = s.redis.Get(ctx, "result:"+request.AgentId+":"+request.RequestId).Bytes()
	} else {
		record, err = s.redis.HGet(ctx, "results:"+request.AgentId, request.RequestId).Bytes()
	}
	if err == redis.Nil {
		return &pb.GetResultResponse{Error: "not found"}, nil
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	result := &pb.MeasurementResult{}
	if err := proto.Unmarshal(record, result); err != nil {
		return nil, err
	}
	return &pb.GetResultResponse{Found: true, Result: result}, nil
}

func (s *server) listResults(ctx context.Context, request *pb.ListResultsRequest) (*pb.ListResultsResponse, error) {
	ids, err := s.redis.ZRange(ctx, "results-at:"+request.AgentId, 0, int64(request.PageSize)-1).Result()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	response := &pb.ListResultsResponse{}
	if len(ids) == 0 {
		return response, nil
	}
	var records []any
	if s.separate {
		keys := make([]string, len(ids))
		for i, id := range ids {
			keys[i] = "result:" + request.AgentId + ":" + id
		}
		records, err = s.redis.MGet(ctx, keys...).Result()
	} else {
		records, err = s.redis.HMGet(ctx, "results:"+request.AgentId, ids...).Result()
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	for _, record := range records {
		text, ok := record.(string)
		if !ok {
			continue
		}
		result := &pb.MeasurementResult{}
		if err := proto.Unmarshal([]byte(text), result); err != nil {
			return nil, err
		}
		response.Results = append(response.Results, result)
	}
	return response, nil
}

func (s *server) registerAgent(ctx context.Context, request *pb.RegisterAgentRequest) (*pb.RegisterAgentResponse, error) {
	agent := request.GetAgent()
	if agent == nil {
		return &pb.RegisterAgentResponse{Error: "agent is required"}, nil
	}
	record, err := s.redis.HGet(ctx, "agents", agent.Id).Bytes()
	isNew := err == redis.Nil
	if err != nil && !isNew {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	if !isNew {
		known := &pb.Agent{}
		if err := proto.Unmarshal(record, known); err != nil {
			return nil, err
		}
		agent.FirstSeen = min(agent.FirstSeen, known.FirstSeen)
		agent.LastSeen = max(agent.LastSeen, known.LastSeen)
		agent.TotalHeartbeats = max(agent.TotalHeartbeats, known.TotalHeartbeats)
	}
	agent.Alive = true
	if record, err = proto.Marshal(agent); err != nil {
		return nil, err
	}
	_, err = s.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.HSet(ctx, "agents", agent.Id, record)
		if isNew {
			pipe.ZAdd(ctx, "agents:index", redis.Z{Member: agent.Id})
		}
		return nil
	})
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &pb.RegisterAgentResponse{Success: true}, nil
}

func (s *server) getAgent(ctx context.Context, request *pb.GetAgentRequest) (*pb.GetAgentResponse, error) {
	record, err := s.redis.HGet(ctx, "agents", request.AgentId).Bytes()
	if err == redis.Nil {
		return &pb.GetAgentResponse{Error: "not found"}, nil
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	agent := &pb.Agent{}
	if err := proto.Unmarshal(record, agent); err != nil {
		return nil, err
	}
	return &pb.GetAgentResponse{Found: true, Agent: agent}, nil
}

func (s *server) setModuleState(ctx context.Context, request *pb.SetModuleStateRequest) (*pb.SetModuleStateResponse, error) {
	state := request.GetState()
	if state == nil {
		return &pb.SetModuleStateResponse{Error: "state is required"}, nil
	}
	key := "states:" + state.AgentId
	record, err := s.redis.HGet(ctx, key, state.RequestId).Bytes()
	isNew := err == redis.Nil
	if err != nil && !isNew {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	known := &pb.ModuleState{}
	if err := proto.Unmarshal(record, known); err != nil {
		return nil, err
	}
	if ranks[state.State] <= ranks[known.State] {
		return &pb.SetModuleStateResponse{Error: fmt.Sprintf("invalid transition %s -> %s", known.State, state.State)}, nil
	}
	state.Version = known.Version + 1
	if record, err = proto.Marshal(state); err != nil {
		return nil, err
	}
	_, err = s.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.HSet(ctx, key, state.RequestId, record)
		pipe.ZAdd(ctx, "states-at:"+state.AgentId, redis.Z{Score: float64(time.Now().UnixMilli()), Member: state.RequestId})
		if isNew {
			pipe.Set(ctx, "request:"+state.RequestId, state.AgentId, 0)
			pipe.SAdd(ctx, "unfinished:"+state.AgentId, state.RequestId)
		}
		if ranks[state.State] == 3 {
			pipe.SRem(ctx, "unfinished:"+state.AgentId, state.RequestId)
		}
		return nil
	})
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &pb.SetModuleStateResponse{Success: true}, nil
}

func (s *server) getModuleState(ctx context.Context, request *pb.GetModuleStateRequest) (*pb.GetModuleStateResponse, error) {
	agentID, err := s.redis.Get(ctx, "request:"+request.RequestId).Result()
	if err == redis.Nil {
		return &pb.GetModuleStateResponse{Error: "not found"}, nil
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	record, err := s.redis.HGet(ctx, "states:"+agentID, request.RequestId).Bytes()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	state := &pb.ModuleState{}
	if err := proto.Unmarshal(record, state); err != nil {
		return nil, err
	}
	return &pb.GetModuleStateResponse{Found: true, State: state}, nil
}

// unary describes a method as generated code does.
func unary[Request, Response any](name string, call func(context.Context, *Request) (*Response, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			request := new(Request)
			if err := decode(request); err != nil {
				return nil, err
			}
			return call(ctx, request)
		},
	}
}

func main() {
	pool := 0 // go-redis's default: ten connections per processor
	if text := os.Getenv("PEER_POOL"); text != "" {
		fmt.Sscan(text, &pool)
	}
	s := &server{
		redis: redis.NewClient(&redis.Options{
			Addr: os.Getenv("REDIS_ADDR"), Protocol: 2, PoolSize: pool, PoolTimeout: time.Minute,
		}),
		separate: os.Getenv("PEER_ROUND_TRIPS") == "separate",
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	grpcServer := grpc.NewServer()
	grpcServer.RegisterService(&grpc.ServiceDesc{
		ServiceName: "dbos.DBOS",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			unary("StoreResult", s.storeResult),
			unary("GetResult", s.getResult),
			unary("ListResults", s.listResults),
			unary("RegisterAgent", s.registerAgent),
			unary("GetAgent", s.getAgent),
			unary("SetModuleState", s.setModuleState),
			unary("GetModuleState", s.getModuleState),
		},
	}, s)
	grpcServer.RegisterService(&grpc.ServiceDesc{
		ServiceName: "dbos.Bench",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{unary("NoOp", s.noOp)},
	}, s)
	fmt.Printf("ready address=%s\n", listener.Addr())
	log.Fatal(grpcServer.Serve(listener))
}
