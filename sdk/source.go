package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	sourcev1 "github.com/levada-io/levada/proto/numaflow/source/v1"
)

// A Source hands messages over to the pipeline. Read, Ack and Nack are called concurrently with one another, each for one
// request at a time. A message that was read and neither acknowledged nor given back when the process or its Read
// stream ends has to be read again: the platform may have lost it.
//
// A Source may also be a Pender and a Partitioner.
type Source interface {
	// Read returns up to max messages. It need not fill a batch: it returns what there is, and waits only for the first message.
	// The context ends when the platform's patience does; its error is not a failure.
	Read(ctx context.Context, max int) ([]Record, error)
	// Ack says that the messages at these offsets are safe.
	Ack(ctx context.Context, offsets []Offset) error
	// Nack gives the messages at these offsets back: they must be read again.
	Nack(ctx context.Context, offsets []Offset, options NackOptions) error
}

// A Pender knows how many messages wait to be read. Negative: unknown. Autoscaling needs it.
type Pender interface {
	Pending(ctx context.Context) (int64, error)
}

// A Partitioner knows which partitions this replica reads. Without it, it is Replica alone.
// Total is the number of all partitions, 0 if that is not known.
type Partitioner interface {
	Partitions(ctx context.Context) (active []int32, total int32, err error)
}

// A Reopener is a source that wants to know when the platform opens a new Read stream: what is unacknowledged must be read again.
type Reopener interface {
	Reopen(ctx context.Context) error
}

// Record is a message read from a source.
type Record struct {
	Offset Offset
	Keys   []string
	Value  []byte
	// EventTime is what watermarks are made of. The zero time stands for now.
	EventTime time.Time
	Headers   map[string]string
	// Metadata is the user metadata of the message.
	Metadata map[string]map[string][]byte
}

// Offset names a message within its source.
type Offset struct {
	// Value means something to the source alone. It must not be empty.
	Value     []byte
	Partition int32
}

// Replica is the number of this replica, from 0: the usual partition of a source that has no partitions of its own.
func Replica() int32 {
	n, err := strconv.ParseInt(os.Getenv(envReplica), 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// ServeSource serves a source until the context ends, SIGTERM or SIGINT arrives, or user code fails.
func ServeSource(ctx context.Context, source Source, opts ...Option) error {
	k := kind{endpoint: endpoint{"source.sock", "sourcer-server-info"}, container: "udsource"}
	return serve(ctx, k, opts, func(s *server) {
		sourcev1.RegisterSourceServer(s.grpc, &sourceServer{server: s, source: source})
	})
}

type sourceServer struct {
	sourcev1.UnimplementedSourceServer
	server *server
	source Source
}

func (*sourceServer) IsReady(context.Context, *emptypb.Empty) (*sourcev1.ReadyResponse, error) {
	return &sourcev1.ReadyResponse{Ready: true}, nil
}

func (s *sourceServer) ReadFn(stream grpc.BidiStreamingServer[sourcev1.ReadRequest, sourcev1.ReadResponse]) error {
	return s.server.run(func() error {
		hello, err := stream.Recv()
		if err != nil {
			return err
		}
		if !hello.GetHandshake().GetSot() {
			return errHandshake
		}
		if reopener, ok := s.source.(Reopener); ok {
			if err := done(func() error { return reopener.Reopen(stream.Context()) }); err != nil {
				return err
			}
		}
		if err := stream.Send(&sourcev1.ReadResponse{
			Handshake: &sourcev1.Handshake{Sot: true},
			Status:    &sourcev1.ReadResponse_Status{},
		}); err != nil {
			return err
		}
		for {
			request, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := s.read(stream, request.GetRequest()); err != nil {
				return err
			}
		}
	})
}

func (s *sourceServer) read(stream grpc.ServerStream, request *sourcev1.ReadRequest_Request) error {
	ctx, cancel := context.WithTimeout(stream.Context(), time.Duration(request.GetTimeoutInMs())*time.Millisecond)
	defer cancel()
	limit := int(min(request.GetNumRecords(), 1<<30))
	records, err := call(func() ([]Record, error) {
		records, err := s.source.Read(ctx, limit)
		if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil // time is up, or the platform is gone
		}
		if err == nil && len(records) > limit {
			err = fmt.Errorf("Read returned %d messages, at most %d were asked for", len(records), limit)
		}
		return records, err
	})
	if err != nil {
		return err
	}
	for i := range records {
		b, err := appendRecord(make([]byte, 0, len(records[i].Value)+128), &records[i])
		if err != nil {
			return userError(err)
		}
		if err := stream.SendMsg(reply{&b}); err != nil {
			return err
		}
	}
	return stream.SendMsg(&sourcev1.ReadResponse{Status: &sourcev1.ReadResponse_Status{Eot: true}})
}

func (s *sourceServer) AckFn(stream grpc.BidiStreamingServer[sourcev1.AckRequest, sourcev1.AckResponse]) error {
	return s.server.run(func() error {
		hello, err := stream.Recv()
		if err != nil {
			return err
		}
		if !hello.GetHandshake().GetSot() {
			return errHandshake
		}
		success := &sourcev1.AckResponse_Result{Success: &emptypb.Empty{}}
		if err := stream.Send(&sourcev1.AckResponse{Handshake: &sourcev1.Handshake{Sot: true}, Result: success}); err != nil {
			return err
		}
		for {
			request, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			offsets := offsetsOf(request.GetRequest().GetOffsets())
			if err := done(func() error { return s.source.Ack(stream.Context(), offsets) }); err != nil {
				return err
			}
			if err := stream.Send(&sourcev1.AckResponse{Result: success}); err != nil {
				return err
			}
		}
	})
}

func (s *sourceServer) NackFn(ctx context.Context, request *sourcev1.NackRequest) (*sourcev1.NackResponse, error) {
	for _, part := range request.GetRequest() {
		offsets, options := offsetsOf(part.GetOffsets()), nackOptions(part.GetNackOptions())
		if err := done(func() error { return s.source.Nack(ctx, offsets, options) }); err != nil {
			return nil, s.server.report(err)
		}
	}
	return &sourcev1.NackResponse{Result: &sourcev1.NackResponse_Result{Success: &emptypb.Empty{}}}, nil
}

func (s *sourceServer) PendingFn(ctx context.Context, _ *emptypb.Empty) (*sourcev1.PendingResponse, error) {
	count := int64(-1)
	if pender, ok := s.source.(Pender); ok {
		var err error
		if count, err = call(func() (int64, error) { return pender.Pending(ctx) }); err != nil {
			return nil, s.server.report(err)
		}
	}
	return &sourcev1.PendingResponse{Result: &sourcev1.PendingResponse_Result{Count: count}}, nil
}

func (s *sourceServer) PartitionsFn(ctx context.Context, _ *emptypb.Empty) (*sourcev1.PartitionsResponse, error) {
	result := &sourcev1.PartitionsResponse_Result{}
	if partitioner, ok := s.source.(Partitioner); ok {
		if err := done(func() (err error) {
			var total int32
			if result.Partitions, total, err = partitioner.Partitions(ctx); total > 0 {
				result.TotalPartitions = &total
			}
			return err
		}); err != nil {
			return nil, s.server.report(err)
		}
	}
	if len(result.Partitions) == 0 {
		result.Partitions = []int32{Replica()}
	}
	return &sourcev1.PartitionsResponse{Result: result}, nil
}

// done is call for user code without a result.
func done(user func() error) error {
	_, err := call(func() (struct{}, error) { return struct{}{}, user() })
	return err
}

func offsetsOf(encoded []*sourcev1.Offset) []Offset {
	offsets := make([]Offset, len(encoded))
	for i, o := range encoded {
		offsets[i] = Offset{Value: o.GetOffset(), Partition: o.GetPartitionId()}
	}
	return offsets
}

// appendRecord appends ReadResponse{result, status{}}: each message carries a status, which is not the end.
func appendRecord(b []byte, r *Record) ([]byte, error) {
	if len(r.Offset.Value) == 0 {
		return b, errors.New("Read returned a message without an offset")
	}
	when := r.EventTime
	if when.IsZero() {
		when = time.Now()
	}
	b, result := begin(b, 1)
	b = appendBytes(b, 1, r.Value)
	b, offset := begin(b, 2)
	b = appendBytes(b, 1, r.Offset.Value)
	if p := r.Offset.Partition; p != 0 {
		b = appendVarint(b, 2, uint64(int64(p))) // int32 is sign-extended on the wire
	}
	b = end(b, offset)
	b = appendTime(b, 3, when)
	b, err := appendStrings(b, 4, r.Keys)
	if err != nil {
		return b, err
	}
	if b, err = appendHeaders(b, 5, r.Headers); err != nil {
		return b, err
	}
	if b, err = appendMetadata(b, 6, r.Metadata); err != nil {
		return b, err
	}
	b = end(b, result)
	b, status := begin(b, 2)
	return end(b, status), nil
}
